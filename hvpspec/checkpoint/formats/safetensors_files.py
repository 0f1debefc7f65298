"""safetensors files, and checkpoints that an index spreads over several files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from hvpspec.checkpoint.formats.files import damaged, inside, one_line, read_json
from hvpspec.errors import CheckpointError

_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


def is_safetensors(first: bytes, path: Path) -> bool:
    """A safetensors file starts with the length of its JSON header (8 bytes, little endian) and then the header."""
    if first[8:9] != b"{":
        return False
    if int.from_bytes(first[:8], "little") <= _LONGEST_HEADER:
        return True
    if int.from_bytes(first[:8], "big") <= _LONGEST_HEADER:
        raise CheckpointError(
            f"{path} looks like a safetensors file whose header length is big endian; the format is little endian: "
            "write it again with safetensors."
        )
    return False


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise CheckpointError(
            f"{path} is a safetensors file; to read it, pip install 'hvpspec[cli]' (or safetensors)."
        ) from None
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({one_line(error)}).") from error


def read_shards(index: Path, read: Callable[[Path], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """All tensors that an index (`…index.json`, Hugging Face's format) places in the files beside it, each read once.

    read: from one file to its tensors. Raises CheckpointError when a file or a tensor is missing.
    """
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise damaged(index, "checkpoint's index", "it has no weight_map from tensors to files")
    found: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        shard = read(inside(index.parent, name, index))
        wanted = [tensor for tensor, place in places.items() if place == name]
        if absent := [tensor for tensor in wanted if tensor not in shard]:
            raise CheckpointError(f"{index} places {absent[0]} in {name}, which does not hold it.")
        found |= {tensor: shard[tensor] for tensor in wanted}
    return found
