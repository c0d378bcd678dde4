"""What this machine is, in one line for a report."""

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
