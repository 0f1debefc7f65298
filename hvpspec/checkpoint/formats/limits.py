"""What reading a checkpoint may cost, from the size of its file: bytes of memory, and seconds.

A file of some kilobytes can ask for gigabytes (an array of a stated length, a tensor of one number that is repeated, a
list of lists of lists) or for years. Whatever multiplies asks here first.
"""

from __future__ import annotations

import time
from pathlib import Path

from hvpspec.errors import CheckpointError

# torch stores tensors without compression, so that a checkpoint takes about as much memory as its file; the objects
# around small tensors, and the source text of TorchScript, which is compressed, take somewhat more.
_MAX_GROWTH = 4  # times the size of the file
_MAX_SLACK_BYTES = 64 << 20  # beyond that

_SECONDS_PER_BYTE = 2e-5  # several times what pickles of the smallest objects take, which are the slowest files
_MIN_SECONDS = 120.0  # for a busy machine


def allowance(size: int) -> int:
    """Bytes that the content of a file of `size` bytes may take."""
    return _MAX_GROWTH * size + _MAX_SLACK_BYTES


class Budget:
    """What is left of the memory and the time for one file. Its methods raise CheckpointError when it is spent."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._bytes = allowance(size)
        self._seconds = _MIN_SECONDS + _SECONDS_PER_BYTE * size
        self._end = time.monotonic() + self._seconds

    def take(self, count: int) -> None:
        """Asks for `count` bytes, before they are allocated."""
        self._bytes -= count
        if self._bytes < 0:
            raise CheckpointError(
                f"{self._path} was not read: it unpacks to far more than its size, which no checkpoint does."
            )

    def check_time(self) -> None:
        """Asks whether there is time left."""
        if time.monotonic() > self._end:
            raise CheckpointError(
                f"{self._path} was not read: it takes more than {self._seconds:.0f} s, which is far longer than a "
                "checkpoint of its size needs."
            )
