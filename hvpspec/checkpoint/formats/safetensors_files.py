"""safetensors files, and checkpoints that an index spreads over several files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from hvpspec.atomic_files import replacing
from hvpspec.checkpoint.formats.files import damaged, inside, one_line, read_json
from hvpspec.errors import CheckpointError
from hvpspec.system.regular_files import open_regular

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_ALIGNMENT = 8  # bytes: of the first tensor
_DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.float64): "F64"}


@dataclass(frozen=True)
class ToWrite:
    """A tensor that is to be written: `parts` are its entries in row-major order, made one after the other."""

    dtype: np.dtype[np.floating]
    shape: tuple[int, ...]
    parts: Iterable[np.ndarray]

    @property
    def bytes(self) -> int:
        """That it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, tensors: Mapping[str, ToWrite], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all: the length of a header, the header in JSON, and the entries."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.bytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for part in tensor.parts:
                file.write(np.ascontiguousarray(part, dtype=tensor.dtype.newbyteorder("<")).tobytes())


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file. Raises CheckpointError where there is none to be read."""
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= _MAX_HEADER_BYTES else None
        found = header["__metadata__"] if isinstance(header, dict) else None
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: no metadata can be read there ({one_line(error)}).") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise CheckpointError(f"{path}: no metadata can be read there.")
    return found


def is_safetensors(first: bytes, path: Path) -> bool:
    """Whether a file begins with the length of a JSON header (8 bytes, little endian) and the header."""
    if first[8:9] != b"{":
        return False
    if int.from_bytes(first[:8], "little") <= _MAX_HEADER_BYTES:
        return True
    if int.from_bytes(first[:8], "big") <= _MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} looks like a safetensors file with a big-endian header length, which the format does not allow; "
            "write it again with safetensors."
        )
    return False


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise CheckpointError(
            f"{path} is a safetensors file; to read it, install safetensors (pip install 'hvpspec[cli]')."
        ) from None
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a safetensors file, or it is damaged ({one_line(error)}).") from error


def read_shards(index: Path, read: Callable[[Path], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """All tensors of the files that an index (`…index.json`, Hugging Face's format) names, each file read once.

    read: reads the tensors of one file. Raises CheckpointError when a file or a tensor is missing.
    """
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise damaged(index, "checkpoint index", "it has no weight_map from tensors to files")
    found: dict[str, Tensor] = {}
    held: dict[str, list[str]] = {}
    for tensor, place in places.items():
        held.setdefault(place, []).append(tensor)
    for name, wanted in sorted(held.items()):
        shard = read(inside(index.parent, name, index))
        if absent := [tensor for tensor in wanted if tensor not in shard]:
            raise CheckpointError(
                f"{index} places {absent[0]} in {name}, which does not hold it; copy or download the checkpoint again."
            )
        found |= {tensor: shard[tensor] for tensor in wanted}
    return found
