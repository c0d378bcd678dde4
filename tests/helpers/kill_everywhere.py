"""Ends a command at every change that it makes to a directory, and gives it again.

    python kill_everywhere.py DIRECTORY FIRST-COMMAND COMMAND [eagerly]

Both commands are JSON lists of arguments of `keras-minilmv2`, in which `{out}` is the
directory that is written to. FIRST-COMMAND is `null`, or runs before COMMAND, so that
this one finds something there. Prints a line of JSON: the number of changes, and what
went wrong after which of them.

A process that is killed leaves the files as they are. So COMMAND runs once, and before
each change all that it has written so far is copied; then every copy is put in the
directory's place and COMMAND is given again. Copies that are alike are tried once.
TensorFlow is imported once; every run is a fork of that process, which has computed
nothing. With `eagerly` it traces no functions, which takes most of the time of a run as
small as these.
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
import tensorflow as tf
from killed_at import at_changes

from keras_minilmv2 import cli


def run(arguments, out, log, before_change=None):
    """Runs a command in a fork; returns its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if before_change is not None:
                at_changes(out, before_change)
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


def outputs(out):
    """The directories that must be equal: an export's versions, or the output."""
    return [path for path in out.iterdir() if path.name.isdigit()] or [out]


def fingerprint(tree):
    """Names and bytes of everything below a directory."""
    digest = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        digest.update(f"\0{path.relative_to(tree)}\0".encode())
        digest.update(path.read_bytes() if path.is_file() else b"directory")
    return digest.digest()


def main(directory, first, command):
    directory = Path(directory)
    log = directory / "log.txt"
    # The output and its temporary files beside it lie alone in a directory.
    place = directory / "place"
    place.mkdir()
    out = place / "out"
    copies = directory / "copies"
    copies.mkdir()

    def copy(number):
        shutil.copytree(place, copies / f"{number:04d}", symlinks=True)

    if first is not None and run(first, out, log):
        raise SystemExit(log.read_text())
    if run(command, out, log, copy):
        raise SystemExit(log.read_text())
    wanted, problems, seen = content(outputs(out)[0]), {}, set()
    numbers = sorted(int(path.name) for path in copies.iterdir())
    for number in numbers:
        killed = copies / f"{number:04d}"
        mark = fingerprint(killed)
        if mark in seen:
            continue
        seen.add(mark)
        shutil.rmtree(place)
        killed.rename(place)
        log.write_text("")
        if code := run(command, out, log):
            problems[number] = f"given again, {code}: {log.read_text()[-500:]}"
        else:
            for got in map(content, outputs(out)):
                names = {*got, *wanted}
                differing = sorted(n for n in names if got.get(n) != wanted.get(n))
                if differing:
                    problems[number] = f"other files: {differing}"
            left = {path.name for path in place.iterdir()} - {"out"}
            left |= {path.name for path in out.glob(".export-*")}
            if left:
                problems[number] = f"left beside: {sorted(left)}"
        if number in problems:
            print(number, problems[number], file=sys.stderr, flush=True)
    found = {"changes": len(numbers), "tried": len(seen), "problems": problems}
    print(json.dumps(found))


if __name__ == "__main__":
    tf.config.run_functions_eagerly("eagerly" in sys.argv[4:])
    main(sys.argv[1], *map(json.loads, sys.argv[2:4]))
