"""Competitors run side by side, and what is written down of it.

Each competitor is a fresh process (worker.py), so that peak memory is its own. They
take turns, so that a change in the machine's load meets all of them alike.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from worker import high_water_mark

from keras_minilmv2.utils.files import replacing_file
from keras_minilmv2.utils.tables import markdown_table

HERE = Path(__file__).parent
NOT_MEASURED = "not measured"
OUT_OF_MEMORY = ("above the memory limit", "out of memory")
WARM_UPS = 3
LIBRARIES = ("keras-minilmv2", "tensorflow", "keras", "keras-hub", "numpy")
# Idle ones must not spin, nor TensorFlow chat.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_WAIT_POLICY": "PASSIVE"}
# Of a CPU, what decides the speed of a product.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
# What frameworks say when they get no memory.
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "OOM", "out of memory", "can't allocate memory")


@dataclass
class Competitor:
    """A process that does one piece of work.

    Args:
        script: str. File in this directory, such as `"keras_work.py"`.
        work: str. Name of one of its functions.
        options: dict. Arguments of that function.
        python: str or None. The interpreter. Without one, nothing is measured.
        environment: dict. Variables beside `ENVIRONMENT`.
        memory_limit: int or None. Bytes at which the process is ended.
    """

    script: str
    work: str
    options: dict
    python: str | None = sys.executable
    environment: dict = field(default_factory=dict)
    memory_limit: int | None = None


class CompetitorError(Exception):
    """A competitor that ended before its time, and why."""


class Worker:
    """A competitor's process.

    Args:
        competitor: `Competitor`.
    """

    def __init__(self, competitor):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        # Whatever Python it is, it finds this package and the works.
        path = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [
                competitor.python,
                str(HERE / competitor.script),
                competitor.work,
                json.dumps(competitor.options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={
                **os.environ,
                **ENVIRONMENT,
                "PYTHONPATH": os.pathsep.join(path),
                **competitor.environment,
            },
        )
        self._over_limit = False
        if competitor.memory_limit is not None:
            watch = threading.Thread(
                target=self._watch, args=(competitor.memory_limit,), daemon=True
            )
            watch.start()

    def ready(self):
        """Waits until it is set up; returns its facts."""
        answer = self._answer()
        del answer["ready"]
        return answer

    def run(self, key=""):
        """Seconds of one piece of work."""
        self._say(f"run {key}")
        return self._answer()["seconds"]

    def end(self):
        """Ends it; returns its last facts, with `peak_memory` in bytes."""
        self._say("end")
        answer = self._answer()
        self.close()
        return answer

    def close(self):
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def _say(self, text):
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()

    def _answer(self):
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        errors = self._errors.read().decode(errors="replace").strip()
        self.close()
        if self._over_limit:
            raise CompetitorError(OUT_OF_MEMORY[0])
        if code == -9 or any(words in errors for words in _NO_MEMORY):
            raise CompetitorError(OUT_OF_MEMORY[1])
        raise CompetitorError(
            errors.splitlines()[-1] if errors else f"exit code {code}"
        )

    def _watch(self, limit):
        while self._process.poll() is None:
            with contextlib.suppress(OSError):
                if high_water_mark(self._process.pid) > limit:
                    self._over_limit = True
                    self._process.kill()
            time.sleep(0.02)


def measure(competitors, repeats, budget=60.0, warm_ups=WARM_UPS, keys=("",)):
    """Runs competitors in turn.

    Args:
        competitors: dict by name of `Competitor`.
        repeats: int. Timed runs of each, for each key.
        budget: float. Seconds after which a key gets no more than three repeats, and
            after a quarter of which no more than one warm-up.
        warm_ups: int. Runs before that are not counted.
        keys: sequence of str. What is asked for: of each competitor the same.

    Returns:
        dict by name of dict: `seconds`, a list by key, `memory` (bytes when set up),
        `peak_memory` (bytes) and the facts of the competitor; or `error` alone.
    """
    results, workers = {}, {}
    for name, competitor in competitors.items():
        if competitor.python is None:
            results[name] = {"error": NOT_MEASURED}
        else:
            workers[name] = Worker(competitor)
            results[name] = {"seconds": {key: [] for key in keys}}

    def attempt(name, function):
        try:
            return function()
        except CompetitorError as error:
            del workers[name]
            results[name] = {"error": str(error)}
            return None

    def everyone(key, least, most, budget):
        started = time.perf_counter()
        for number in range(most):
            if number >= least and time.perf_counter() - started > budget:
                break
            for name, worker in list(workers.items()):
                yield name, attempt(name, lambda worker=worker: worker.run(key))

    try:
        for name, worker in list(workers.items()):
            results[name].update(attempt(name, worker.ready) or {})
        for key in keys:
            for _ in everyone(key, 1, warm_ups, budget / 4):
                pass
            for name, seconds in everyone(key, min(3, repeats), repeats, budget):
                if seconds is not None:
                    results[name]["seconds"][key].append(seconds)
        for name, worker in list(workers.items()):
            results[name].update(attempt(name, worker.end) or {})
    finally:
        for worker in workers.values():
            worker.close()
    return results


def median(result, key=""):
    """Median of a competitor's seconds, or None if it has none."""
    seconds = result.get("seconds", {}).get(key)
    return statistics.median(seconds) if seconds else None


def cell(result, number):
    """What a table shows: a number as text, or why there is none."""
    return result.get("error", number)


def milliseconds(result, key=""):
    """Median and range, in milliseconds."""
    if "error" in result:
        return result["error"]
    times = [1e3 * seconds for seconds in result["seconds"][key]]
    digits = 1 if statistics.median(times) < 100 else 0
    middle, low, high = (
        f"{time:,.{digits}f}"
        for time in (statistics.median(times), min(times), max(times))
    )
    return f"{middle} ({low} to {high})"


def memory(result, name="peak_memory"):
    """Memory in MB of 10^6 bytes."""
    return cell(result, f"{(result.get(name) or 0) / 1e6:,.0f}")


def times_faster(result, other, key=""):
    """How many times faster the first is, as text."""
    one, two = median(result, key), median(other, key)
    return f"{two / one:.2f}" if one and two else NOT_MEASURED


class Report:
    """Tables for people, everything measured for machines.

    Args:
        benchmark: str. Name of the section of RESULTS.md.
        options: `argparse.Namespace` of the script; its `json` says where to write.
    """

    def __init__(self, benchmark, options):
        self._json = options.json
        busy = busy_share()
        self.content = {
            "benchmark": benchmark,
            "date": datetime.date.today().isoformat(),
            "command": shlex.join(_command()),
            "environment": environment(),
            "busy_before": busy,
            "options": {
                name: value if isinstance(value, int | float | None) else str(value)
                for name, value in vars(options).items()
            },
            "notes": [],
            "tables": [],
            "measurements": [],
        }
        if busy is not None and busy > 0.1:
            self.note(
                "The machine did other work too: its processors were "
                f"{100 * busy:.0f}% busy before."
            )

    def add(self, results, **facts):
        """Notes results of `measure`, and what they are of."""
        for name, result in results.items():
            measurement = {"name": name, **facts, **result}
            self.content["measurements"].append(measurement)
            for library in ("torch", "transformers", "tokenizers", "jax", "device"):
                if library in result:
                    versions = self.content["environment"]["versions"]
                    versions[library] = result[library]
        return results

    def note(self, text):
        """Adds a sentence."""
        self.content["notes"].append(text)
        print(text, flush=True)

    def table(self, title, header, rows):
        """Adds a table, prints it and writes everything so far."""
        table = {"title": title, "header": header, "rows": rows}
        self.content["tables"].append(table)
        print(f"\n{title}\n\n{markdown_table(header, rows)}\n", flush=True)
        if self._json:
            with replacing_file(self._json) as path:
                path.write_text(json.dumps(self.content, indent=1) + "\n")


def _command():
    """What was called, from the root; of paths the last part."""
    arguments = [a if "->" in a else Path(a).name for a in sys.argv]
    return ["python", f"benchmarks/{arguments[0]}", *arguments[1:]]


def busy_share(seconds=1.0):
    """Share of the processors' time that goes to others, or None if it is not known."""

    def times():
        with open("/proc/stat") as file:
            _, *times = file.readline().split()
        times = [int(time) for time in times]
        return times[3] + times[4], sum(times)  # idle, all

    try:
        idle_before, before = times()
        time.sleep(seconds)
        idle, after = times()
    except (OSError, ValueError, IndexError):
        return None
    if after == before:
        return None
    return round(1 - (idle - idle_before) / (after - before), 3)


def environment():
    """The machine and the versions of what is installed."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    cpu, instructions = platform.machine(), []
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                cpu = value.strip()
            elif name.strip() in ("flags", "Features"):
                instructions = [i for i in _INSTRUCTIONS if i in value.split()]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu,
        "instructions": instructions,
        "num_cores": len(os.sched_getaffinity(0)),
        "memory": pages,
        "system": platform.platform(),
        "versions": versions,
    }


def parser(description, repeats):
    """A parser with what every benchmark takes."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--json", type=Path, metavar="FILE")
    result.add_argument("--repeats", type=int, default=repeats)
    result.add_argument("--seed", type=int, default=0)
    result.add_argument(
        "--smoke", action="store_true", help="tiny sizes, to see that it runs"
    )
    return result


def add_torch(parser):
    """Adds the option that names the Python of PyTorch."""
    parser.add_argument(
        "--torch-python", metavar="PYTHON", help="a Python that has torch"
    )
