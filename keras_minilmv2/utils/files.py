"""Files and directories that appear whole or not at all."""

import contextlib
import ctypes
import json
import os
import shutil
import sys
import tempfile
import uuid
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# In the name of what is being written.
_PARTIAL = ".partial"


@contextlib.contextmanager
def replacing_file(path):
    """Yields a temporary path that takes the place of `path` when all went well.

    The content is on the disk before the name is. Of a link, the file that it points
    to is replaced.
    """
    path = _target(path)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.stem}-", suffix=_PARTIAL + path.suffix
    )
    temporary = Path(name)
    with _held(handle):
        try:
            yield temporary
            # mkstemp makes files that only their owner reads.
            os.chmod(temporary, 0o666 & ~_umask())
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_directory(path):
    """Yields an empty temporary directory that takes the place of `path` at the end.

    What stood at `path` goes only when the new directory is complete. Of a link, the
    directory that it points to is replaced.
    """
    path = _target(path)
    with temporary_directory(path) as fresh:
        yield fresh
        sync_directory(fresh)
        if not path.exists():
            os.replace(fresh, path)
        elif not _exchange(fresh, path):
            # For a moment there is no directory at `path`.
            old = _temporary_name(path)
            os.replace(path, old)
            os.replace(fresh, path)
            shutil.rmtree(old)
        _sync(path.parent)


@contextlib.contextmanager
def temporary_directory(path):
    """Yields an empty directory beside `path`, which is removed at the end.

    Those that killed processes left are removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partial(path)
    # Not tempfile.mkdtemp: a server that runs as another user could not read it.
    fresh = _temporary_name(path)
    # Held before it has the name by which others would remove it.
    unnamed = fresh.with_suffix(".new")
    unnamed.mkdir()
    with _held(os.open(unnamed, os.O_RDONLY)) if fcntl else contextlib.nullcontext():
        os.rename(unnamed, fresh)
        try:
            yield fresh
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def sync_directory(path):
    """Waits until all files of a directory are on the disk."""
    for entry in path.rglob("*"):
        _sync(entry)
    _sync(path)


def remove_partial(path):
    """Removes what a killed process left of writing `path`.

    What a living process writes is left alone.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    if not path.parent.is_dir():
        return
    prefix, middle = f".{path.stem}-", _PARTIAL + path.suffix
    for entry in path.parent.iterdir():
        name = entry.name
        random = name.removeprefix(prefix).removesuffix(middle)
        if (
            name.startswith(prefix)
            and name.endswith(middle)
            and "." not in random
            and "-" not in random
            and not _is_held(entry)
        ):
            remove(entry)


def remove(path):
    """Removes a file or directory if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_json(path):
    """Reads a JSON object.

    Raises:
        ValueError: if the file does not hold one; the sentence names it.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON, as it was written.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a JSON object, as it was written.")
    return values


def write_json(path, values):
    """Writes a JSON file that appears whole and that people can read."""
    text = json.dumps(values, indent=2, ensure_ascii=False)
    with replacing_file(path) as temporary:
        try:
            content = text.encode("utf-8")
        except UnicodeEncodeError:
            # The name of a file that is no UTF-8: JSON has escapes for it.
            content = json.dumps(values, indent=2).encode("ascii")
        temporary.write_bytes(content + b"\n")


def _target(path):
    """The path that is replaced; its parent directory is made."""
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _temporary_name(path):
    """A path beside another one, under a name that `remove_partial` knows."""
    return path.with_name(f".{path.stem}-{uuid.uuid4().hex}{_PARTIAL}{path.suffix}")


@contextlib.contextmanager
def _held(handle):
    """Marks an open temporary file or directory as that of a living process."""
    if not fcntl:
        # Windows renames no file that is open.
        os.close(handle)
        yield
        return
    try:
        # Network file systems may have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _is_held(path):
    """Whether a living process writes a temporary file or directory."""
    if not fcntl:
        return True
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _sync(path):
    """Waits until a file or the names of a directory are on the disk."""
    if path.is_dir() and not fcntl:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(one, other):
    """Swaps two paths in one step, where the system can; returns whether it did."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of Linux
    names = os.fsencode(one), os.fsencode(other)
    return renameat2(here, names[0], here, names[1], exchange) == 0


def _umask():
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
