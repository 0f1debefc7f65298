"""Opens regular files only: a pipe without a writer would be waited for, and a device may have no end."""

from __future__ import annotations

import os
import stat
from io import BufferedReader


class NotRegular(ValueError):
    """It is a pipe, a device, a socket or a folder."""


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """The file, open for reading. Raises NotRegular, or what `os.open` raises.

    What was opened is examined, not its name, which could come to mean another file meanwhile.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular("it is no file")
    return os.fdopen(descriptor, "rb")
