"""One run at a time in a folder: a lock that the system releases when its process ends, however that ends."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from hvpspec.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows: there two runs are not kept apart
    fcntl = None  # type: ignore[assignment]

_LOCK_FILE = ".hvpspec-lock"
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class FolderLock:
    """Holds a folder until `release`. Raises InputError where another process, or another thread, holds it.

    The folder itself is locked, so that nothing is left behind. Network file systems that cannot lock a folder get a
    file in it, which is removed in the end; one that a killed process has left there holds nothing. Where not even
    that can be locked, the run goes on without.
    """

    def __init__(self, folder: Path, option: str = "--out") -> None:
        self._handle: int | None = None
        self._file: Path | None = None
        if fcntl is None:
            return
        busy = InputError(f"{option} {folder}: another run is writing there; wait for it, or choose another folder.")
        try:
            if self._taken(os.open(folder, os.O_RDONLY | os.O_CLOEXEC), busy):
                return
            self._file = folder / _LOCK_FILE
            if not self._taken(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), busy):
                self._file = None
        except OSError:
            self._file = None

    def _taken(self, handle: int, busy: InputError) -> bool:
        """Whether the lock was taken; False where the file system knows no such locks."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno in _HELD:
                raise busy from None
            return False
        self._handle = handle
        return True

    def release(self) -> None:
        """Lets others in; may be called again."""
        if self._handle is None:
            return
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
