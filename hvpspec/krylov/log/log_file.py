"""A file of records that are appended one after another, and read again in the order in which they were written.

A record is a header (JSON) and a payload (bytes):

    "hvpspec1" | length of the header (8 bytes) | header | digest of header and record before (16 bytes) | payload

The header has the payload's length and CRC-32. As each digest includes the one before, a record counts only with all
those before it: what is torn, changed, missing, or from another file ends the log there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MAGIC = b"hvpspec1"
_LENGTH_BYTES, _DIGEST_BYTES = 8, 16
_MOST_HEADER_BYTES = 1 << 24

Buffer = memoryview | bytes
Header = dict[str, Any]


class LogFile:
    """An open log, at its first record.

    records, end: how many have been read or written, and the bytes that they take, after which it goes on.
    """

    def __init__(self, path: Path, *, only_read: bool = False) -> None:
        how = os.O_RDONLY if only_read else os.O_RDWR | os.O_CREAT
        self._file = os.open(path, how | getattr(os, "O_CLOEXEC", 0), 0o666)
        self.records = self.end = 0
        self._digest = b""
        self._syncing: threading.Thread | None = None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file).st_size

    @property
    def position(self) -> tuple[int, int, bytes]:
        """Where it goes on; it may be set to an earlier one."""
        return self.records, self.end, self._digest

    @position.setter
    def position(self, to: tuple[int, int, bytes]) -> None:
        self.records, self.end, self._digest = to

    # --- reading ------------------------------------------------------------------------------------------------

    def header(self) -> Header | None:
        """Of the next record; None at the end, and where what follows is torn or no continuation of what is before."""
        found = self._header_at(self.end, self._digest)
        return None if found is None else found[0]

    def payload(self, buffers: Sequence[memoryview]) -> bool:
        """Reads the next record's payload into buffers of its size, and goes on to the record after it.

        Whether it is as it was written; where it is not, the log remains before that record.
        """
        found = self._header_at(self.end, self._digest)
        assert found is not None
        header, digest, at = found
        checksum = 0
        for buffer in buffers:
            if not _read_into(self._file, buffer, at):
                return False
            checksum, at = zlib.crc32(buffer, checksum), at + len(buffer)
        if (checksum, sum(map(len, buffers))) != (header["crc"], header["bytes"]):
            return False
        self.position = self.records + 1, at, digest
        return True

    def skip(self) -> None:
        """Goes on to the record after the next one, whatever its payload."""
        found = self._header_at(self.end, self._digest)
        assert found is not None
        header, digest, at = found
        self.position = self.records + 1, at + header["bytes"], digest

    def headers(self) -> Iterator[Header]:
        """Of all further records; this goes on to none of them, and reads no payload."""
        at, digest = self.end, self._digest
        while (found := self._header_at(at, digest)) is not None:
            header, digest, at = found
            at += header["bytes"]
            yield header

    def _header_at(self, at: int, before: bytes) -> tuple[Header, bytes, int] | None:
        """The header of a record, its digest, and where its payload starts."""
        start = _read(self._file, len(MAGIC) + _LENGTH_BYTES, at)
        if start is None or start[: len(MAGIC)] != MAGIC:
            return None
        length = int.from_bytes(start[len(MAGIC) :], "little")
        at += len(start)
        if length > min(_MOST_HEADER_BYTES, self.size - at):
            return None
        text, digest = _read(self._file, length, at), _read(self._file, _DIGEST_BYTES, at + length)
        if text is None or digest is None or digest != _digest(before, text):
            return None
        try:
            header = json.loads(text)
            usable = header["bytes"] >= 0 and isinstance(header["crc"], int)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        at += length + _DIGEST_BYTES
        return (header, digest, at) if usable and header["bytes"] <= self.size - at else None

    # --- writing ------------------------------------------------------------------------------------------------

    def append(self, header: Header, buffers: Sequence[Buffer] = (), of_first: int | None = None) -> None:
        """Writes a record after the last one read or written; whatever follows that is lost.

        of_first: the CRC-32 of the first buffer, where it is known. The bytes are with the system when this returns, so
        that they outlive the process. Raises OSError.
        """
        checksum = of_first or 0
        for buffer in buffers if of_first is None else buffers[1:]:
            checksum = zlib.crc32(buffer, checksum)
        text = json.dumps({**header, "bytes": sum(map(len, buffers)), "crc": checksum}).encode()
        digest = _digest(self._digest, text)
        self.cut()
        try:
            os.lseek(self._file, self.end, os.SEEK_SET)
            write(self._file, MAGIC + len(text).to_bytes(_LENGTH_BYTES, "little") + text + digest)
            for buffer in buffers:
                write(self._file, buffer)
        except BaseException:  # Ctrl-C too: half a record would be cut when it is read, but need not stay
            with contextlib.suppress(OSError):
                self.cut()
            raise
        self.position = self.records + 1, os.lseek(self._file, 0, os.SEEK_CUR), digest

    def cut(self, further: int = 0) -> None:
        """Removes what follows the last record read or written, and `further` ones after it."""
        before = self.position
        for _ in range(further):
            self.skip()
        if self.size > self.end:
            os.ftruncate(self._file, self.end)
        self.position = before

    def sync(self) -> None:
        """Has the system put on disk what was written so far, meanwhile."""
        if self._syncing is None or not self._syncing.is_alive():
            self._syncing = threading.Thread(target=_sync, args=(self._file,), daemon=True)
            self._syncing.start()

    def close(self) -> None:
        if self._syncing is not None:
            self._syncing.join()
        os.close(self._file)


def write(file: int, buffer: Buffer) -> None:
    """Writes all of it: the system may take less at once."""
    rest = memoryview(buffer)
    while len(rest):
        rest = rest[os.write(file, rest) :]


def sync_folder(folder: Path) -> None:
    """Puts on disk that the folder has a new file, where the system has a way to."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sync(file: int) -> None:
    with contextlib.suppress(OSError):  # a full disk shows at the next write
        os.fsync(file)


def _digest(before: bytes, text: bytes) -> bytes:
    return hashlib.blake2b(before + text, digest_size=_DIGEST_BYTES).digest()


def _read(file: int, length: int, at: int) -> bytes | None:
    """So many bytes; None where there are fewer."""
    content = bytearray(length)
    return bytes(content) if _read_into(file, memoryview(content), at) else None


def _read_into(file: int, buffer: memoryview, at: int) -> bool:
    done = 0
    while done < len(buffer):
        os.lseek(file, at + done, os.SEEK_SET)
        count = os.readv(file, [buffer[done:]])
        if count == 0:
            return False
        done += count
    return True
