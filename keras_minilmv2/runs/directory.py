"""The directory of a run: new, resumed or finished, and held by one process.

What a directory holds is told by its record, `.run.json`: the kind of the run, whether
it is running or finished, and the names of the entries that are the run's own. Nothing
else in the directory is ever removed or replaced.
"""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from keras_minilmv2.utils.files import (
    check_directory,
    read_json,
    remove,
    remove_partial,
    remove_partial_in,
    write_json,
    writing,
)
from keras_minilmv2.utils.locks import DirectoryLock

_RECORD = ".run.json"
_STAGING = ".staging"

NEW, RESUMED, FINISHED = "new", "resumed", "finished"


@dataclass(frozen=True, kw_only=True)
class RunKind:
    """What runs of one verb write.

    Args:
        name: str. The verb.
        settings_class: subclass of `Settings`.
        settings_file: str. The file of the settings.
        outputs: tuple of str. Names of all entries of the directory that a run may
            write, the file of the settings included.
        temporary: tuple of str. Those that go when the run is finished.
        last: str. The entry that is written last: where there is no record, as in
            directories of earlier versions, it tells that the run is finished.
        evidence: tuple of str. One of these is there once such a run has started.
    """

    name: str
    settings_class: type
    settings_file: str
    outputs: tuple
    temporary: tuple = ()
    last: str = "report.md"
    evidence: tuple = ()


class RunDirectory:
    """A directory that one run owns, from `open` until `close`.

    Use it as a context manager:

        with RunDirectory.open(path, settings, kind, overwrite) as directory:
            if directory.state == "finished":
                return load(directory.path)
            ...                  # checks; what takes long goes to `directory.staging`
            directory.start()    # from here on, an earlier run is replaced
            ...
            directory.finish()

    Until `start`, nothing that the directory held is touched: an error leaves it as it
    was. A process that is killed at any moment leaves a directory that the same
    command resumes or starts again.

    Attributes:
        path: path.
        state: `"new"`, `"resumed"` (an unfinished run of the same settings) or
            `"finished"`.
        settings: the settings of the run.
        staging: path of a directory for what is written before `start`; its entries
            become those of `path` then. It outlives a process that was killed, and
            what was prepared there is found again.
    """

    def __init__(self, path, settings, kind, found, lock, made):
        self.path = path
        self.settings = settings
        self.kind = kind
        self.state, self._outputs, self._replaced = found
        self.staging = path / _STAGING
        self._staged = set()
        self._lock = lock
        self._made = made

    @classmethod
    def open(
        cls,
        path,
        settings,
        kind,
        overwrite=False,
        *,
        reads=None,
        accepts=(),
        chief=True,
    ):
        """Opens a directory for a run, and holds it.

        Args:
            path: str or path. Made if missing.
            settings: `Settings` of the run.
            kind: `RunKind`.
            overwrite: bool. Whether another run in it may be replaced.
            reads: dict of what the run reads by argument: str or path, or a sequence
                of them. None of it may lie in the directory.
            accepts: names of entries that may be there before the run and are no
                outputs of it.
            chief: bool. False for a worker that writes nothing: it holds nothing.

        Returns:
            `RunDirectory`.

        Raises:
            NotADirectoryError: if the path is a file, or lies below one.
            FileExistsError: if the directory holds a run of another kind or of other
                settings and `overwrite` is not set, or files that no run made.
            InUseError: if another process is writing to it.
            ValueError: if something that the run reads lies in it.
            OSError: if it cannot be written to.
        """
        path = Path(path)
        if chief:
            check_directory("output_dir", path)
        for argument, read in (reads or {}).items():
            for each in (read,) if isinstance(read, str | os.PathLike) else read or ():
                check_outside(argument, each, path)
        made = _missing_parents(path)
        lock = None
        try:
            if chief:
                # A path that cannot be written to shows here.
                with writing(path):
                    path.mkdir(parents=True, exist_ok=True)
                    lock = DirectoryLock(path)
                    lock.acquire()
            found = _found(path, settings, kind, overwrite, accepts)
            if chief:
                _clean(path, kind, *found[:2])
        except BaseException:
            if lock is not None:
                lock.release()
                _remove_empty(made)
            raise
        return cls(path, settings, kind, found, lock, made)

    def working(self, name):
        """Path of an entry now: in `staging` until `start` moves it."""
        if self.state == NEW and name in self._outputs:
            self._staged.add(name)
            return self.staging / name
        return self.path / name

    def start(self):
        """Removes what is replaced, and makes the directory that of this run.

        Nothing to do in a resumed or finished run.
        """
        if self.state != NEW:
            return
        with writing(self.path):
            self._write_record("replacing", {*self._replaced, *self._outputs})
            for name in self._replaced:
                _empty_or_remove(self.path / name)
            if self.staging.is_dir():
                for entry in self.staging.iterdir():
                    # The rest is of a run that was killed, with other settings.
                    if entry.name in self._staged:
                        _move(entry, self.path / entry.name)
                remove(self.staging)
            self.settings.save(self.path / self.kind.settings_file)
            self._write_record("running", self._outputs)
        self.state = RESUMED

    def reopen(self):
        """Makes a finished run one that is still running: it gets more to do."""
        with writing(self.path):
            self._write_record("running", self._outputs)
            remove(self.path / self.kind.last)
        self.state = RESUMED

    def finish(self):
        """Notes that the run is finished; what was temporary is removed."""
        with writing(self.path):
            self._write_record("finished", self._outputs)
            for name in self.kind.temporary:
                _empty_or_remove(self.path / name)
        self.state = FINISHED

    def close(self):
        """Gives the directory back to other processes."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self):
        return self

    def __exit__(self, error_type, error, traceback):
        # Of a run that was refused, nothing is left for another attempt to find.
        if (
            self._lock is not None
            and self.state == NEW
            and error_type is not None
            and issubclass(error_type, ValueError | TypeError)
        ):
            remove(self.staging)
        self.close()
        if self.state == NEW and self._lock is not None:
            _remove_empty(self._made)

    def _write_record(self, state, outputs):
        record = {"kind": self.kind.name, "state": state, "outputs": sorted(outputs)}
        write_json(self.path / _RECORD, record)


def check_outside(argument, read, output_dir):
    """Raises if a run would replace what it reads.

    Args:
        argument: str, the name of what is read.
        read: str or path of a file or directory; anything else, such as the name of a
            preset, is accepted.
        output_dir: path of the directory whose files the run replaces.

    Raises:
        ValueError: if the one lies in the other.
    """
    if not isinstance(read, str | os.PathLike):
        return
    path = Path(read).expanduser()
    if path.exists() and path.resolve().is_relative_to(Path(output_dir).resolve()):
        raise ValueError(
            f"`{argument}` must not lie in `output_dir`, whose files a run replaces. "
            f"Received: {argument}={read}, output_dir={output_dir}."
        )


def check_new(path):
    """Raises unless a directory is free for what replaces it, without a run.

    Args:
        path: str or path.

    Raises:
        NotADirectoryError, OSError: as `check_directory`.
        FileExistsError: if it holds anything.
    """
    path = Path(path)
    check_directory("output_dir", path, replaced=True)
    if names := visible_names(path):
        raise _not_empty(path, names)


def visible_names(path):
    """Names of the entries of a directory that are not hidden, sorted."""
    if not path.is_dir():
        return []
    return sorted(e.name for e in path.iterdir() if not e.name.startswith("."))


def _found(path, settings, kind, overwrite, accepts):
    """What a directory holds.

    Returns:
        tuple of the state, the names that the run may write, and the names that it
        replaces if it is new.
    """
    record = _read_record(path, kind)
    names = visible_names(path)
    # What was there before the first run is not the run's.
    given = set(accepts) & set(names)
    outputs = [name for name in kind.outputs if name not in given]
    if record is None:
        foreign = [name for name in names if name not in given]
        if foreign:
            raise _not_empty(path, foreign)
        return NEW, outputs, ()
    ours = record["outputs"]
    outputs = [name for name in kind.outputs if name in ours or name not in accepts]
    if record["state"] == "replacing":
        # That run was given up, and its removal interrupted.
        return NEW, outputs, ours
    if overwrite:
        taken = [name for name in names if name in outputs and name not in ours]
        if taken:
            raise _not_empty(path, taken)
        return NEW, outputs, ours
    if record["kind"] != kind.name:
        raise FileExistsError(
            f"`output_dir` must not hold a run of `{record['kind']}`. "
            f"Received: output_dir={path}. Pass --overwrite to replace it, or name "
            "another directory."
        )
    found = kind.settings_class.load(path / kind.settings_file)
    different = settings.differences(found)
    if different:
        values = ", ".join(f"{name}={getattr(found, name)!r}" for name in different)
        raise FileExistsError(
            "`output_dir` must not hold a run of other settings. "
            f"Received: output_dir={path}, whose {kind.settings_file} has {values}. "
            "Use those settings to resume it, pass --overwrite to replace it, or name "
            "another directory."
        )
    return (FINISHED if record["state"] == "finished" else RESUMED), ours, ()


def _read_record(path, kind):
    """The record of a directory, or None where no run has been.

    Directories of earlier versions have none: their settings tell.
    """
    if (path / _RECORD).is_file():
        record = read_json(path / _RECORD)
        with contextlib.suppress(KeyError, TypeError):
            names = record["outputs"]
            known = record["state"] in ("replacing", "running", "finished")
            if known and record["kind"] and all(map(_is_name, names)):
                return record
        raise ValueError(f"{path / _RECORD} must be as a run wrote it.")
    file = path / kind.settings_file
    names = visible_names(path)
    if not (
        file.is_file()
        and set(names) <= set(kind.outputs)
        and set(names) & {*kind.evidence, kind.last}
    ):
        return None
    try:
        kind.settings_class.load(file)
    except (ValueError, TypeError):
        return None
    return {
        "kind": kind.name,
        "state": "finished" if kind.last in names else "running",
        "outputs": list(kind.outputs),
    }


def _is_name(name):
    """Whether it names an entry of a directory, and not a path out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name


def _clean(path, kind, state, outputs):
    """Removes what killed processes left behind: temporary files and outputs."""
    for name in (*outputs, _RECORD):
        remove_partial(path / name)
        if (path / name).is_dir() and not (path / name).is_symlink():
            remove_partial_in(path / name)
    if state == FINISHED:
        for name in kind.temporary:
            _empty_or_remove(path / name)


def _empty_or_remove(path):
    """Removes an entry; of a link to a directory, what the directory holds."""
    if path.is_symlink() and path.is_dir():
        for entry in path.iterdir():
            remove(entry)
    else:
        remove(path)


def _move(entry, path):
    """Moves a directory to a place that is free, or a link to an empty directory."""
    if path.is_symlink() and path.is_dir():
        # Copied: a process that is killed leaves the whole where it was.
        shutil.copytree(entry, path, dirs_exist_ok=True)
        remove(entry)
    else:
        os.replace(entry, path)


def _missing_parents(path):
    """The directories that do not exist yet, the deepest first."""
    return [each for each in (path, *path.parents) if not each.exists()]


def _remove_empty(directories):
    """Removes directories that were made here, as far as they are empty."""
    for each in directories:
        with contextlib.suppress(OSError):
            each.rmdir()


def _not_empty(path, names):
    return FileExistsError(
        "`output_dir` must be empty or new. "
        f"Received: output_dir={path}, which holds {', '.join(names[:3])}."
    )
