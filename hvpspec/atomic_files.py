"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from hvpspec.errors import InputError
from hvpspec.escaping import in_json

try:
    import fcntl
except ImportError:  # not on Windows: there what a killed process has left stays
    fcntl = None  # type: ignore[assignment]

_TEMPORARY_NAME = re.compile(r"\..+\.hvpspec-[0-9a-f]{8}\.tmp")
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_BYTES_TO_TRY = 1 << 16  # that an output folder must have room for before a run begins


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes a document as JSON, whole or not at all."""
    write_text(path, as_text(document))


def as_text(document: dict[str, Any]) -> str:
    """A document as text, as it is written to files. Raises ValueError for infinite and undefined numbers."""
    return in_json(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def write_whole(path: Path, content: bytes) -> None:
    """Writes under another name first and then renames: a reader finds either the old file or the new one, whole."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Writes a text, whole or not at all."""
    write_whole(path, encoded(text))


def encoded(text: str) -> bytes:
    r"""In UTF-8; a byte of a path that is no UTF-8, such as 0xff, as \udcff, which JSON reads back as that byte."""
    return text.encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file to write to; it replaces `path` at the end, unless an exception is raised."""
    file, temporary = _temporary_for(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:
                os.replace(temporary, path)  # while it is locked: once closed, it would be taken for an abandoned one
        if fcntl is None:
            os.replace(temporary, path)  # Windows renames no open file
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk is found by fsync, which knows no names
        temporary.unlink(missing_ok=True)
        raise


def _temporary_for(path: Path) -> tuple[BinaryIO, Path]:
    """A new file next to `path`, locked for as long as it is open, and its path."""
    while True:
        temporary = path.with_name(f".{path.name}.hvpspec-{secrets.token_hex(4)}.tmp")
        file = os.fdopen(os.open(temporary, _NEW_FILE, 0o666), "wb")
        locked = _locks(file)
        if locked is None or (locked and temporary.exists()):
            return file, temporary
        file.close()  # taken for an abandoned one before it was locked: whoever took it removes it


def remove_abandoned(folder: Path) -> None:
    """Removes the temporary files that killed processes have left in a folder.

    One that is being written is locked by its process, and stays; so does one on a file system that has no locks.
    """
    for temporary in folder.glob(".*.tmp"):
        if _TEMPORARY_NAME.fullmatch(temporary.name) and temporary.is_file() and not temporary.is_symlink():
            with contextlib.suppress(OSError), open(temporary, "r+b") as file:
                if _locks(file):
                    temporary.unlink()


def _locks(file: BinaryIO) -> bool | None:
    """Locks a file for as long as it is open: whether it was free; None where the system has no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def prepare_folder(folder: Path, option: str = "--out", files: Sequence[str] = ()) -> None:
    """Makes an output folder, checks that these files can be written there, and removes what killed processes left.

    option: what named it, for messages.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_BYTES_TO_TRY))
    except OSError as error:
        raise InputError(f"{option} {folder}: cannot write there ({error.strerror}); choose another folder.") from error
    remove_abandoned(folder)
    for name in files:
        if (folder / name).is_dir():
            raise InputError(
                f"{option} {folder}: {name} is a folder there, in the place of a file to be written; choose another "
                "folder, or move it away."
            )
