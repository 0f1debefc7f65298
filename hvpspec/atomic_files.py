"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from hvpspec.errors import InputError
from hvpspec.escaping import in_json

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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk is found by fsync, which knows no names
        temporary.unlink(missing_ok=True)
        raise


def prepare_folder(folder: Path, option: str = "--out", files: Sequence[str] = ()) -> None:
    """Makes an output folder, and checks that these files can be written there. option: what named it, for messages."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_BYTES_TO_TRY))
    except OSError as error:
        raise InputError(f"{option} {folder}: cannot write there ({error.strerror}); choose another folder.") from error
    for name in files:
        if (folder / name).is_dir():
            raise InputError(
                f"{option} {folder}: {name} is a folder there, in the place of a file to be written; choose another "
                "folder, or move it away."
            )
