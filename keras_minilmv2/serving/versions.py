"""Numbered versions of a model in one directory, as TensorFlow Serving wants them."""

import contextlib
import errno
import os
from pathlib import Path

from keras_minilmv2.utils.files import sync_directory, temporary_directory


@contextlib.contextmanager
def unpublished(directory):
    """Yields an empty directory in `directory` that a server ignores.

    It is removed at the end, unless it was published. A process that is killed leaves
    it, for the next export to remove; its name starts with `.export-`.
    """
    with temporary_directory(Path(directory) / "export") as fresh:
        yield fresh


def publish(fresh, directory):
    """Renames a directory with content to the next version number, in one step.

    Args:
        fresh: path of the directory, in the same file system.
        directory: path of the directory of the versions.

    Returns:
        Path of the version. Its number is above all others, 1 for the first.
    """
    sync_directory(fresh)
    while True:
        target = Path(directory) / str(max(versions(directory), default=0) + 1)
        try:
            os.rename(fresh, target)
            return target
        except OSError as error:
            # Taken in the meantime: a rename does not replace a directory that has
            # content.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise


def versions(directory):
    """The version numbers in a directory, in order.

    Args:
        directory: path.

    Returns:
        list of int.
    """
    names = [path.name for path in Path(directory).iterdir()]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def latest_version(directory):
    """Path of a directory's latest version, or the directory if it is one itself.

    Raises:
        FileNotFoundError: if there is no version.
    """
    directory = Path(directory)
    if (directory / "saved_model.pb").is_file():
        return directory
    numbers = versions(directory) if directory.is_dir() else []
    if not numbers:
        raise FileNotFoundError(
            "`directory` must be an export, or hold one in a directory named by its "
            f"version number. Received: directory={directory}."
        )
    return directory / str(numbers[-1])
