"""What this machine is, in one line for a report, and how much memory it has."""

import contextlib
import os
import platform
from pathlib import Path

import tensorflow as tf


def hardware():
    """What this runs on: processor or accelerators, cores."""
    accelerators = [
        tf.config.experimental.get_device_details(device).get("device_name", "GPU")
        for device in tf.config.list_physical_devices("GPU")
    ]
    if accelerators:
        return ", ".join(accelerators)
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {os.cpu_count()} cores"


def memory_bytes():
    """Bytes of memory that this process may use, int."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # "max", or no control group
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        memory = min(memory, limit)
    return memory
