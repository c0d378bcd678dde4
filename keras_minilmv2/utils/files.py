"""Files and directories that appear whole or not at all."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import stat
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
_NEW = ".new"
# `.a-x1y2.partial.npz` is to become `a.npz`; a `.new` is to become a `.partial`.
_TEMPORARY = re.compile(r"\.(.+)-[a-z0-9_]+(?:\.partial(\..*)?|(\.new))")


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
    handle = _make_held(fresh)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if handle is not None:
            os.close(handle)


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
    if path.parent.is_dir():
        for entry, match in _temporary_entries(path.parent):
            ours = match[1] == path.stem
            if ours and (match[3] or (match[2] or "") == path.suffix):
                _remove_unheld(entry, match)


def remove_partial_in(directory):
    """Removes what killed processes left of writing any entry of a directory."""
    for entry, match in _temporary_entries(Path(directory)):
        _remove_unheld(entry, match)


def remove(path):
    """Removes a file or directory if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_directory(argument, path, replaced=False):
    """Raises unless a path is a directory, or one can be made there.

    Args:
        argument: str, the name of `path`.
        path: str or path.
        replaced: bool. Whether it is to be replaced by `replacing_directory`.

    Raises:
        NotADirectoryError: if it is a file or a link to nothing, or lies below one.
        OSError: if the system refuses the path, as it does a loop of links or a name
            that is too long, or nothing can be written where it is to be made; or it
            cannot be replaced.
    """
    path = Path(path)
    rule = f"`{argument}` must be a directory. Received: {argument}={path}"
    for place in (path, *path.parents):
        where = "" if place == path else f"below {place}, "
        try:
            mode = place.stat().st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            if place.is_symlink():
                raise NotADirectoryError(
                    f"{rule}, {where}a link to nothing."
                ) from error
        except OSError as error:
            raise OSError(f"{rule} ({error.strerror}).") from error
        else:
            if not stat.S_ISDIR(mode):
                raise NotADirectoryError(f"{rule}, {where}a file.")
            break
    for name in path.relative_to(place).parts:
        try:
            os.lstat(place / name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise OSError(f"{rule} ({error.strerror}).") from error
    if place == path and replaced:
        if path.name in ("", os.pardir) or os.path.ismount(path):
            raise OSError(
                f"`{argument}` must be a directory that can be replaced, which neither "
                f"`.` nor a mounted disk can be. Received: {argument}={path}. Name a "
                "directory in it."
            )
        place = path.resolve().parent
    if place != path:
        with writing(path, argument=argument):
            tempfile.TemporaryFile(dir=place).close()


@contextlib.contextmanager
def writing(output_dir, way_out="", argument="output_dir"):
    """Turns an error of the file system into one about the output directory.

    Args:
        output_dir: str or path.
        way_out: str, or function without arguments that returns one: a sentence that
            is added.
        argument: str, the name of `output_dir`.
    """
    try:
        yield
    except OSError as error:
        if str(error).startswith("`"):  # It is one of our sentences.
            raise
        more = way_out() if callable(way_out) else way_out
        raise OSError(
            f"`{argument}` must be writable and have room. Received: "
            f"{argument}={output_dir} ({error.strerror or error}).{more}"
        ) from error


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


def _temporary_entries(directory):
    """Temporary entries of a directory, each with its match."""
    for entry in directory.iterdir():
        if match := _TEMPORARY.fullmatch(entry.name):
            yield entry, match


def _remove_unheld(entry, match):
    """Removes a temporary entry unless a living process writes it."""
    if match[3]:
        # Nobody holds it yet; a living process that misses it makes another.
        with contextlib.suppress(OSError):
            entry.rmdir()
    elif not _is_held(entry):
        remove(entry)


def _make_held(path):
    """Makes a temporary directory that is held; returns its handle."""
    if not fcntl:
        path.mkdir()
        return None
    # Held before it has the name by which others would remove its content.
    new = path.with_name(path.name.partition(_PARTIAL)[0] + _NEW)
    while True:
        new.mkdir()
        handle = None
        try:
            handle = os.open(new, os.O_RDONLY)
            _hold(handle)
            os.rename(new, path)
            return handle
        except OSError as error:
            if handle is not None:
                os.close(handle)
            # Another process took it for what a killed one left.
            if not isinstance(error, FileNotFoundError):
                raise


@contextlib.contextmanager
def _held(handle):
    """Marks an open temporary file as that of a living process."""
    if not fcntl:
        # Windows renames no file that is open.
        os.close(handle)
        yield
        return
    try:
        _hold(handle)
        yield
    finally:
        os.close(handle)


def _hold(handle):
    """Locks what is open, where the file system has locks."""
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
