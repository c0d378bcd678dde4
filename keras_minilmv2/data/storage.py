"""Directories, local or at a URL, whose files appear whole or not at all."""

import contextlib
import errno
import os
import posixpath
import tempfile
from pathlib import Path

from keras_minilmv2.data.sources import is_url
from keras_minilmv2.utils.files import check_directory, replacing_file
from keras_minilmv2.utils.locks import DirectoryLock


class Storage:
    """A flat directory of files.

    Args:
        path: str or path. A local directory, or a URL that fsspec opens,
            `gs://bucket/name` for instance. Made when the first file is written.

    Raises:
        NotADirectoryError, OSError: as `check_directory`.
    """

    def __init__(self, path):
        self.path = os.fspath(path).rstrip("/") or "/"
        self._filesystem = None
        if is_url(self.path):
            import fsspec

            self._filesystem, _ = fsspec.core.url_to_fs(self.path)
        else:
            check_directory("output_dir", self.path)

    @contextlib.contextmanager
    def held(self):
        """Holds a local directory, which is made, for this process."""
        if self._filesystem is not None:
            yield
            return
        Path(self.path).mkdir(parents=True, exist_ok=True)
        lock = DirectoryLock(self.path)
        try:
            lock.acquire()
        except OSError as error:
            # A complete directory may lie on a disk that is read only.
            if error.errno not in (errno.EACCES, errno.EROFS):
                raise
        try:
            yield
        finally:
            lock.release()

    def sizes(self):
        """Dict of bytes by file name; directories are skipped."""
        if self._filesystem is None:
            try:
                entries = list(os.scandir(self.path))
            except FileNotFoundError:
                return {}
            return {entry.name: entry.stat().st_size for entry in entries}
        self._filesystem.invalidate_cache()
        try:
            entries = self._filesystem.ls(self.path, detail=True)
        except FileNotFoundError:
            return {}
        return {
            posixpath.basename(entry["name"]): entry["size"]
            for entry in entries
            if entry["type"] == "file"
        }

    def read_text(self, name):
        """The text of a file."""
        if self._filesystem is None:
            return Path(self.path, name).read_text(encoding="utf-8")
        return self._filesystem.cat_file(self._url(name)).decode()

    @contextlib.contextmanager
    def local_file(self, name):
        """Yields a local path with the content of a file."""
        if self._filesystem is None:
            yield Path(self.path, name)
            return
        with tempfile.TemporaryDirectory(prefix="keras-minilmv2-") as directory:
            self._filesystem.get_file(self._url(name), f"{directory}/{name}")
            yield Path(directory, name)

    @contextlib.contextmanager
    def writing(self, name):
        """Yields a local path that becomes the file when all went well."""
        if self._filesystem is None:
            with replacing_file(Path(self.path, name)) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory(prefix="keras-minilmv2-") as directory:
            temporary = Path(directory, name)
            yield temporary
            # Object stores show a file when all of it is there.
            self._filesystem.makedirs(self.path, exist_ok=True)
            self._filesystem.put_file(str(temporary), self._url(name))

    def write_text(self, name, text):
        """Writes a file of text."""
        with self.writing(name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def remove(self, name):
        """Removes a file."""
        if self._filesystem is None:
            Path(self.path, name).unlink(missing_ok=True)
        else:
            self._filesystem.rm_file(self._url(name))

    def _url(self, name):
        return f"{self.path}/{name}"
