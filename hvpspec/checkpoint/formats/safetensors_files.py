"""safetensors files, and checkpoints that an index spreads over several files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from hvpspec.checkpoint.formats.files import damaged, inside, one_line, read_json
from hvpspec.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


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
            raise CheckpointError(f"{index} places {absent[0]} in {name}, which does not hold it.")
        found |= {tensor: shard[tensor] for tensor in wanted}
    return found
