"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hvpspec.errors import InputError
from hvpspec.escaping import in_json


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes a document as JSON, whole or not at all."""
    write_whole(path, as_text(document).encode())


def as_text(document: dict[str, Any]) -> str:
    """A document as text, as it is written to files. Raises ValueError for infinite and undefined numbers."""
    return in_json(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def write_whole(path: Path, content: bytes) -> None:
    """Writes under another name first and then renames: a reader finds either the old file or the new one, whole."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Writes a text, whole or not at all."""
    write_whole(path, text.encode())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file to write to; it replaces `path` at the end, unless an exception is raised."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def prepare_folder(folder: Path, option: str = "--out") -> None:
    """Makes an output folder, and checks that it can be written to. option: what named it, for the message."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{option} {folder}: cannot write there ({error.strerror}); choose another folder.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
