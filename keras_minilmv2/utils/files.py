"""Files that appear whole or not at all."""

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
from pathlib import Path


@contextlib.contextmanager
def replacing_file(path):
    """Yields a temporary path that takes the place of `path` when all went well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
    )
    os.close(handle)
    try:
        yield Path(name)
        # mkstemp makes files that only their owner reads.
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_directory(path):
    """Yields an empty temporary directory that takes the place of `path` at the end.

    What stood at `path` goes only when the new directory is complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield fresh
        fresh.chmod(0o777 & ~_umask())
        if not path.exists():
            os.replace(fresh, path)
        elif not _exchange(fresh, path):
            # For a moment there is no directory at `path`.
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
            os.replace(path, old)
            os.replace(fresh, path)
            shutil.rmtree(old)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _exchange(one, other):
    """Swaps two paths in one step, where the system can; says whether it did."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of Linux
    names = os.fsencode(one), os.fsencode(other)
    return renameat2(here, names[0], here, names[1], exchange) == 0


def remove(path):
    """Removes a file or directory if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_outside(argument, preset, output_dir):
    """Raises if a run would replace what it reads.

    Args:
        argument: str, the name of what is read.
        preset: str or path of a directory; anything else, such as the name of a
            preset, is let through.
        output_dir: path of the directory whose files the run replaces.

    Raises:
        ValueError: if the one lies in the other.
    """
    if not isinstance(preset, str | os.PathLike):
        return
    path = Path(preset).expanduser()
    if path.exists() and path.resolve().is_relative_to(output_dir.resolve()):
        raise ValueError(
            f"`{argument}` must not lie in `output_dir`, whose files a run replaces. "
            f"Received: {argument}={preset}, output_dir={output_dir}."
        )


def _umask():
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
