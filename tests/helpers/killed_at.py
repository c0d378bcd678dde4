"""Runs a Python script and ends its process at the n-th change of a directory.

    python killed_at.py NUMBER DIRECTORY SCRIPT [ARGUMENT ...]

Ends with 137, as `kill -9` does, before the change of that number is made: a file is
opened to be written, renamed or removed, a directory made or removed. Where there are
fewer changes, the script ends by itself.
"""

import os
import runpy
import sys

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")


def at_changes(directory, action):
    """Calls `action(number)` before each change below a directory that is made here."""
    count = 0
    busy = False
    root = os.path.abspath(directory)
    # What takes its place in the end is written beside it.
    beside = os.path.join(os.path.dirname(root), f".{os.path.basename(root)}-")

    def hook(event, arguments):
        nonlocal count, busy
        if busy:
            return
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in CHANGES:
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(path))
        if path != root and not path.startswith((root + os.sep, beside)):
            return
        count += 1
        busy = True
        action(count)
        busy = False

    sys.addaudithook(hook)


def kill_at(number, directory):
    """Ends this process before the n-th change below a directory."""

    def action(count):
        if count == number:
            os._exit(137)

    at_changes(directory, action)


if __name__ == "__main__":
    kill_at(int(sys.argv[1]), sys.argv[2])
    sys.argv = sys.argv[3:]
    runpy.run_path(sys.argv[0], run_name="__main__")
