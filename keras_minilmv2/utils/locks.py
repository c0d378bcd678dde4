"""One process at a time in a directory."""

import contextlib
import json
import os
import socket
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class InUseError(OSError):
    """A directory is held by another process."""


class DirectoryLock:
    """Holds a directory for one process, until it is released or the process ends.

    The lock is that of the operating system on a file `.lock`: it goes with its
    process, however that ends, so that no lock of a dead process is in the way. The
    file tells which process on which host holds it. Where the system has no such
    locks (Windows, some network file systems), nothing is held.

    Args:
        directory: path of a directory that exists.
    """

    def __init__(self, directory):
        self.path = Path(directory) / ".lock"
        self._handle = None

    def acquire(self):
        """Takes the lock.

        Raises:
            InUseError: if another process holds it.
        """
        while fcntl:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.read(handle, 1_000)
                os.close(handle)
                raise InUseError(self._message(holder)) from error
            except OSError:
                # A file system without locks.
                os.close(handle)
                return
            # The holder before may have removed the file after it was opened here.
            if self._is_of(handle):
                break
            os.close(handle)
        else:
            return
        os.ftruncate(handle, 0)
        holder = {"process": os.getpid(), "host": socket.gethostname()}
        os.write(handle, json.dumps(holder).encode())
        self._handle = handle

    def release(self):
        """Gives the lock back and removes its file."""
        if self._handle is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None

    def _is_of(self, handle):
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _message(self, holder):
        name = "another process"
        with contextlib.suppress(ValueError, KeyError, TypeError):
            content = json.loads(holder)
            name = f"process {content['process']} on {content['host']}"
        return (
            "`output_dir` must not be in use. "
            f"Received: output_dir={self.path.parent}, which {name} is writing to."
        )
