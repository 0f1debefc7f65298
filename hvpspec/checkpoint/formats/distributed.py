"""Checkpoints of torch.distributed.checkpoint: a directory with `.metadata` and the pieces that each rank wrote.

torch's own reader unpickles `.metadata`, and every entry that is not a tensor. Here the metadata are read as inert data
and the tensors with weights_only; the other entries are not read. No process group is needed.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvpspec.checkpoint.formats.archive import Archive
from hvpspec.checkpoint.formats.files import damaged, inside, opened
from hvpspec.checkpoint.formats.pickles.inert_pickle import Record, read_inert
from hvpspec.checkpoint.formats.pickles.storages import shape
from hvpspec.checkpoint.formats.torch_pickle import read_archive
from hvpspec.errors import CheckpointError

_FORMAT = "checkpoint of torch.distributed.checkpoint"
_MAX_METADATA_BYTES = 1 << 30
_MAX_DEPTH = 100  # of nested dicts


@dataclass(frozen=True)
class Directory:
    """What the metadata of a directory say: entries by name, where each was in the saved dict, and where pieces are."""

    folder: Path
    entries: dict[str, Record]
    paths: dict[str, Any]
    places: dict[Any, Record]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors."""
        return {name: shape(entry.get("size")) for name, entry in self.entries.items() if _is_tensor(entry)}

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor."""
        return _dtype(self.entries[name])

    def tensor(self, name: str, offsets: tuple[int, ...] | None = None, sizes: tuple[int, ...] | None = None) -> Tensor:
        """A tensor, or the box of it that begins at `offsets`, joined from its pieces; no others are read."""
        return _assemble(self.folder, name, self.entries[name], self.places, offsets, sizes)


def open_distributed(folder: Path) -> Directory:
    """Reads the metadata."""
    with opened(inside(folder, ".metadata", folder)) as file:
        if os.fstat(file.fileno()).st_size > _MAX_METADATA_BYTES:
            raise damaged(folder, _FORMAT, "its .metadata is too large")
        metadata = file.read()
    try:
        top = read_inert(metadata, folder)
        entries = top.get("state_dict_metadata")
        paths = top.get("planner_data")
        places = {
            (index.get("fqn"), _offset(index.get("offset"))): place
            for index, place in top.get("storage_data").items()
            if isinstance(index, Record) and isinstance(place, Record)
        }
        held = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        declared = sum(_bytes(entry) for entry in entries.values() if _is_tensor(entry))
    except CheckpointError:
        raise
    except Exception as error:
        raise damaged(folder, _FORMAT, error) from error
    if declared > held:
        raise damaged(folder, _FORMAT, f"it declares {declared:,} bytes of tensors, but its files hold {held:,}")
    return Directory(folder, entries, paths or {}, places)


def read_distributed(folder: Path, *, others: bool = False) -> dict[str, Any]:
    """The nested state dict that was saved, with its tensors joined from their pieces, and None for other entries.

    others: reads these as well, as far as they hold plain data.
    """
    known = open_distributed(folder)
    content: dict[str, Any] = {}
    for name, entry in known.entries.items():
        value = None
        if _is_tensor(entry):
            value = known.tensor(name)
        elif others:
            value = _other(folder, known.places.get((name, (0,)), known.places.get((name, None))))
        try:
            _place(content, known.paths.get(name) or (name,), value)
        except (TypeError, AttributeError) as error:
            raise damaged(folder, _FORMAT, error) from error
    return content


def _is_tensor(entry: Record) -> bool:
    return entry.is_a("TensorStorageMetadata")


def _assemble(
    folder: Path, name: str, entry: Record, places: dict[Any, Record],
    first: tuple[int, ...] | None, lengths: tuple[int, ...] | None,
) -> Tensor:  # fmt: skip
    """One tensor, or a box of it, joined from its pieces, which must cover it."""
    try:
        of = shape(entry.get("size"))
        start, size = ((0,) * len(of) if first is None else first), (of if lengths is None else lengths)
        whole = torch.empty(size, dtype=_dtype(entry))
        covered, seen = 0, torch.zeros(size, dtype=torch.bool)
        chunks = entry.get("chunks")
        for chunk in chunks:
            offset, sizes = shape(chunk.get("offsets")), shape(chunk.get("sizes"))
            if len(offset) != len(of) or any(a + b > c for a, b, c in zip(offset, sizes, of, strict=True)):
                raise damaged(folder, _FORMAT, f"a piece of {name} has another shape or type than declared")
            ends = [min(a + b, c + d) for a, b, c, d in zip(offset, sizes, start, size, strict=True)]
            begins = [max(a, c) for a, c in zip(offset, start, strict=True)]
            if any(end <= begin for begin, end in zip(begins, ends, strict=True)):
                continue
            place = places.get((name, offset), places.get((name, None)) if len(chunks) == 1 else None)
            if place is None:
                raise damaged(folder, _FORMAT, f"it names no file for a piece of {name}")
            if place.get("transform_descriptors"):
                raise CheckpointError(f"{folder}: {name} was saved through a transform, which hvpspec cannot undo.")
            piece = _piece(inside(folder, place.get("relative_path"), folder / ".metadata"), place)
            if tuple(piece.shape) != sizes or piece.dtype != whole.dtype:
                raise damaged(folder, _FORMAT, f"a piece of {name} has another shape or type than declared")
            window, source = (
                tuple(slice(a - c, b - c) for a, b, c in zip(begins, ends, origin, strict=True))
                for origin in (start, offset)
            )
            whole[window] = piece[source]
            seen[window] = True
            covered += math.prod(b - a for a, b in zip(begins, ends, strict=True))
    except CheckpointError:
        raise
    except Exception as error:
        raise damaged(folder, _FORMAT, error) from error
    if covered != whole.numel() or not seen.all():  # the values between them would be those of memory used before
        raise damaged(folder, _FORMAT, f"the pieces of {name} overlap, or do not cover it")
    return whole


def _other(folder: Path, place: Record | None) -> Any:
    """An entry that is no tensor; None where it is no plain data, or cannot be read."""
    with contextlib.suppress(CheckpointError):
        if place is not None:
            path = inside(folder, place.get("relative_path"), folder / ".metadata")
            with Archive(path, io.BytesIO(_bytes_at(path, place))) as archive:
                return read_archive(archive)
    return None


def _bytes_at(path: Path, place: Record) -> bytes:
    """The bytes at a place in one of the files."""
    offset, length = place.get("offset"), place.get("length")
    if type(offset) is not int or type(length) is not int or offset < 0 or length <= 0:
        raise damaged(path.parent, _FORMAT, f"it names no valid place in {path.name}")
    with opened(path) as file:
        if offset + length > os.fstat(file.fileno()).st_size:
            raise damaged(path.parent, _FORMAT, f"{path.name} is shorter than declared")
        file.seek(offset)
        return file.read(length)


def _piece(path: Path, place: Record) -> Tensor:
    """The tensor at a place in one of the files, whose checksum is compared."""
    content = _bytes_at(path, place)
    if content[8:9] == b"{":
        from safetensors.torch import load

        (piece,) = load(content).values()
    else:
        with Archive(path, io.BytesIO(content)) as archive:
            piece = read_archive(archive)
    if not isinstance(piece, Tensor):
        raise damaged(path, _FORMAT, f"it holds a {type(piece).__name__} in place of a tensor")
    return piece


def _dtype(entry: Record) -> torch.dtype:
    state = entry.get("properties").state
    dtype = state["dtype"] if isinstance(state, dict) else state[0]
    if not isinstance(dtype, torch.dtype):
        raise TypeError("no dtype")
    return dtype


def _bytes(entry: Record) -> int:
    return math.prod(shape(entry.get("size"))) * _dtype(entry).itemsize


def _offset(offset: Any) -> tuple[int, ...] | None:
    return None if offset is None else shape(offset)


def _place(content: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    """Puts a value where it was in the saved dict: ("model", "0.weight") → content["model"]["0.weight"]."""
    if len(path) > _MAX_DEPTH:
        raise TypeError(f"an entry lies under {len(path):,} keys")
    *above, last = [str(part) for part in path]
    for part in above:
        content = content.setdefault(part, {})
    content[last] = value
