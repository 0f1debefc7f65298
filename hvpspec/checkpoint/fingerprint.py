"""The SHA-256 of what was loaded, and of nothing else: a checkpoint may be replaced while it is read, and later."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hvpspec.checkpoint.formats.files import checkpoint_files, sha256
from hvpspec.checkpoint.read import recognise
from hvpspec.errors import CheckpointError


@dataclass(frozen=True)
class Fingerprint:
    """The SHA-256 of a checkpoint, as `sha256` defines it, and its size in bytes."""

    sha256: str
    bytes: int


@contextlib.contextmanager
def fingerprinted(path: Path) -> Iterator[Fingerprint]:
    """The fingerprint of a checkpoint that is read inside the block.

    Taken before and after, because a format's reader opens its files several times, and some map them into memory, so
    that no single pass sees the bytes that are loaded. Raises CheckpointError where the two differ.
    """
    recognise(path)  # what is no checkpoint is refused before all of it is read
    before = _taken(path)
    yield before
    try:
        unchanged = _taken(path) == before
    except CheckpointError:  # it, or a part of it, is no longer there
        unchanged = False
    if not unchanged:
        raise CheckpointError(
            f"{path} has changed while it was read, so that it is not known what was loaded; start again when it is "
            "written completely, or with a copy that does not change."
        )


def _taken(path: Path) -> Fingerprint:
    digest = sha256(path)
    try:
        return Fingerprint(digest, sum(file.stat().st_size for file in checkpoint_files(path)))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
