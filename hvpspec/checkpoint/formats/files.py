"""What all formats need: the first bytes of a file, digests, and errors for files that are damaged or foreign."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from hvpspec.errors import CheckpointError
from hvpspec.system.regular_files import NotRegular, open_regular

_MAX_JSON_BYTES = 100_000_000  # the index of a thousand shards has a hundredth of that


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A regular file, open for reading. Raises CheckpointError when it is missing, unreadable, or of another kind."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except NotRegular:
        raise CheckpointError(
            f"{path} is not a regular file (but a pipe, a device or a socket); give a file."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise CheckpointError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    with file:
        yield file


def head(path: Path, length: int = 16) -> bytes:
    """The first bytes of a file. Raises CheckpointError when it is missing, unreadable or empty."""
    with opened(path) as file:
        try:
            first = file.read(length)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    if not first:
        raise CheckpointError(f"{path} is empty.")
    return first


# (position, bytes there, what such a file is) of formats that are not read.
_FOREIGN = (
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the file itself: fetch that with git lfs pull"),
    (0, b"\x1f\x8b", "is compressed (gzip): unpack it first"),
    (0, b"BZh", "is compressed (bzip2): unpack it first"),
    (0, b"\xfd7zXZ", "is compressed (xz): unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed (zstd): unpack it first"),
    (0, b"7z\xbc\xaf", "is an archive (7z): unpack it first"),
    (257, b"ustar", "is an archive (tar): unpack it first"),
    (0, b"\x89HDF", "is an HDF5 file (as Keras writes them), which hvpspec does not read"),
    (0, b"GGUF", "is a GGUF file, which hvpspec does not read: its weights are quantised"),
    (0, b"\x93NUMPY", "is a single NumPy array, not a checkpoint"),
)


def foreign(path: Path) -> CheckpointError:
    """The error for a file whose format is not read; it names the format where that is known."""
    first = head(path, 512)
    for place, magic, what in _FOREIGN:
        if first.startswith(magic, place):
            return CheckpointError(f"{path} {what}.")
    if first.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return CheckpointError(f"{path} is a web page, not a checkpoint: the download failed.")
    return CheckpointError(f"{path} is not a checkpoint that torch.save or safetensors wrote.")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises CheckpointError where it is not valid."""
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is too large for the JSON file that its name suggests.")
        try:
            return json.loads(file.read())
        except (ValueError, OSError, RecursionError) as error:
            raise damaged(path, "JSON file", error) from error


def inside(folder: Path, name: Any, said_by: Path) -> Path:
    """A file that an index names, which must be in the folder of the index, also where it is a link.

    In the cache of Hugging Face, `models--NAME/snapshots/REVISION/…` holds links to `models--NAME/blobs`, which may be
    followed. Raises CheckpointError for other places and for a file that is missing.
    """
    try:
        if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError("a path that leads elsewhere")
        path, own = (folder / name).resolve(), folder.resolve()
        is_there = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a circle of links
        raise CheckpointError(f"{said_by} names {name!r:.200}, which lies outside its folder.") from error
    caches = [above.parent for above in own.parents if above.name == "snapshots"]
    roots = [own, *(cache / "blobs" for cache in caches if cache.name.startswith("models--"))]
    if not any(map(path.is_relative_to, roots)):
        raise CheckpointError(f"{said_by} names {name!r:.200}, which lies outside its folder.")
    if not is_there:
        raise CheckpointError(
            f"{said_by} names {one_line(name, 200)}, which does not exist; the checkpoint is incomplete."
        )
    return folder / name


def damaged(path: Path, what: str, error: Exception | str) -> CheckpointError:
    """The error for a file that is not what its first bytes say."""
    reason = error if isinstance(error, str) else f"{type(error).__name__}: {one_line(error)}"
    return CheckpointError(f"{path} is not a {what}, or it is damaged ({reason}).")


def one_line(error: object, limit: int = 160) -> str:
    """A message as one line of at most `limit` characters, all of them printable: it may quote a file."""
    text = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(str(error).split())
    )
    return text if len(text) <= limit else text[: limit - 1] + "…"


def checkpoint_files(path: Path) -> list[Path]:
    """The files of a checkpoint: itself, all files in its directory, or an index and the shards that it names."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if path.name.endswith(".json"):
        content = read_json(path)
        places = content.get("weight_map") if isinstance(content, dict) else None
        shards = set(map(str, places.values())) if isinstance(places, dict) else set()
        return [path, *sorted(inside(path.parent, name, path) for name in shards)]
    return [path]


def sha256(path: str | Path) -> str:
    """The SHA-256 of a checkpoint, in hexadecimal.

    Of a directory, or of an index and its shards, it is the SHA-256 of the lines that `sha256sum` prints for the files
    in the order of their paths: "digest  relative/path\\n". Raises CheckpointError when it cannot be read.
    """
    path = Path(path)
    files = checkpoint_files(path)
    if files == [path]:
        return _digest(path)
    folder = path if path.is_dir() else path.parent
    lines = sorted((file.relative_to(folder).as_posix(), _digest(file)) for file in files)
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in lines).encode()).hexdigest()


def _digest(path: Path) -> str:
    with opened(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
