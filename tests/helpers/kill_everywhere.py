"""Ends a command at every change that it makes to a directory, and gives it again.

    python kill_everywhere.py DIRECTORY FIRST-COMMAND COMMAND

Both commands are JSON lists of arguments of `keras-minilmv2`, in which `{out}` is the
directory that is written to. FIRST-COMMAND is `null`, or runs before each COMMAND, so
that this one finds something there. Prints a line of JSON: the number of changes, and
what went wrong at which of them. TensorFlow is imported once; every run is a fork of
that process, which has computed nothing.
"""

import hashlib
import json
import os
import shutil
import sys
import traceback
from pathlib import Path

import h5py
import keras_hub  # noqa: F401 (imported once for all forks)
import tensorflow as tf  # noqa: F401
from killed_at import kill_at

from keras_minilmv2 import cli


def run(arguments, out, log, number=None):
    """Runs a command in a fork; returns its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if number is not None:
                kill_at(number, out)
            code = cli.main([part.replace("{out}", str(out)) for part in arguments])
        except BaseException:
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def content(path):
    """What must be equal: names of all files, and numbers and texts in them."""
    found = {}
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        if file.is_dir() or name.startswith("tensorboard"):
            continue
        found[name] = ""
        if file.suffix == ".h5":
            digest = hashlib.sha256()
            with h5py.File(file) as weights:

                def add(key, item, digest=digest):
                    if isinstance(item, h5py.Dataset):
                        digest.update(key.encode() + item[()].tobytes())

                weights.visititems(add)
            found[name] = digest.hexdigest()
        elif file.suffix in (".npy", ".safetensors", ".tsv"):
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def main(directory, first, command):
    directory = Path(directory)
    log = directory / "log.txt"

    def fresh(name):
        out = directory / name
        if first is not None:
            shutil.copytree(directory / "first", out)
        return out

    if first is not None and run(first, directory / "first", log):
        raise SystemExit(log.read_text())
    whole = fresh("whole")
    if run(command, whole, log):
        raise SystemExit(log.read_text())
    wanted, problems, number = content(whole), {}, 0
    while True:
        number += 1
        out = fresh(str(number))
        log.write_text("")
        code = run(command, out, log, number)
        if code == 0:
            break
        if code != 137:
            problems[number] = f"ended with {code}: {log.read_text()[-500:]}"
        elif code := run(command, out, log):
            problems[number] = f"given again, {code}: {log.read_text()[-500:]}"
        elif (got := content(out)) != wanted:
            names = {*got, *wanted}
            differing = sorted(n for n in names if got.get(n) != wanted.get(n))
            problems[number] = f"other files: {differing}"
        elif left := [path.name for path in directory.glob(f".{number}-*")]:
            problems[number] = f"left beside: {left}"
        shutil.rmtree(out, ignore_errors=True)
    print(json.dumps({"changes": number - 1, "problems": problems}))


if __name__ == "__main__":
    main(sys.argv[1], *map(json.loads, sys.argv[2:]))
