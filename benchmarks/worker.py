"""The side of a competitor: a process that does one piece of work when it is told to.

    python SCRIPT WORK OPTIONS_AS_JSON

It sets up and says so, with facts about itself; does the work once for every line
`run` or `run KEY` and answers with the seconds; and on `end` gives its peak memory.
Every answer is one line of JSON. Needs the standard library alone, so that any Python
can be a competitor.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Work(NamedTuple):
    """What a competitor can do.

    Args:
        run: function of the key of a run, or without arguments: the work, until it
            is done.
        facts: dict, for the first answer.
        finish: function that returns a dict, for the last answer.
    """

    run: object
    facts: Mapping = MappingProxyType({})
    finish: object = dict


def serve(works):
    """Answers until told to end.

    Args:
        works: dict by name of functions of options that set up and return a `Work`.
    """
    # Libraries print what they like; answers have a channel of their own.
    with os.fdopen(os.dup(1), "w", buffering=1) as channel:
        os.dup2(2, 1)

        def say(**answer):
            channel.write(json.dumps(answer) + "\n")

        work = works[sys.argv[1]](**json.loads(sys.argv[2]))
        say(ready=True, memory=peak_memory(), **work.facts)
        for line in sys.stdin:
            command, *key = line.split()
            if command != "run":
                break
            started = time.perf_counter()
            work.run(*key)
            say(seconds=time.perf_counter() - started)
        say(peak_memory=peak_memory(), **work.finish())


def peak_memory():
    """Bytes of memory that this process has held at most."""
    if os.path.exists("/proc/self/status"):
        return high_water_mark("self")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def high_water_mark(process):
    """Bytes of memory that a process has held at most, on Linux."""
    # `ru_maxrss` begins with what the process held that started this one.
    with open(f"/proc/{process}/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
