"""stdout and stderr that cannot end a run: a reader that has gone, a terminal that is closed, a full disk behind them.

What cannot be written is dropped. A reader that has seen enough (`| head`) or a closed terminal is no failure; any
other reason is said at the end, since a file of what was printed is then incomplete.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

_GONE = (errno.EPIPE, errno.EIO)  # nobody reads: a closed pipe, a terminal that is not there any more


class _Unfailing(io.FileIO):
    """A file descriptor; at the first failure of a write, all that follows goes to the null device."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR):
                raise
            self.failure = error
            _to_null(self.fileno())  # for what libraries and workers print as well
            return len(data)


def make_unfailing() -> list[_Unfailing]:
    """Replaces sys.stdout and sys.stderr; a character that the encoding lacks is printed as "?"."""
    for descriptor in (0, 1, 2):  # one that is closed would be given to the next file that is opened
        try:
            os.fstat(descriptor)
        except OSError:
            _to_null(descriptor)
    made = []
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        raw = _Unfailing(descriptor, "wb", closefd=False)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        buffered = getattr(stream, "line_buffering", True) or name == "stderr"
        text = io.TextIOWrapper(io.BufferedWriter(raw), encoding, "replace", line_buffering=buffered)
        if stream is not None:
            stream.flush()
        setattr(sys, name, text)
        made.append(raw)
    return made


def flushed(streams: list[_Unfailing]) -> str | None:
    """Writes what is buffered; why stdout is incomplete, unless its reader has gone."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    failure = streams[0].failure
    if failure is None or failure.errno in _GONE:
        return None
    return failure.strerror or str(failure)


def _to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
