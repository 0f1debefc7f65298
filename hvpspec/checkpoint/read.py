"""Reads checkpoints of every format as named tensors, without running code from the file.

The format is recognised by the content of a file, not by its name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hvpspec.checkpoint.formats.archive import Archive
from hvpspec.checkpoint.formats.distributed import read_distributed
from hvpspec.checkpoint.formats.files import foreign, head, inside, one_line
from hvpspec.checkpoint.formats.huggingface import huggingface_model
from hvpspec.checkpoint.formats.safetensors_files import is_safetensors, read_safetensors, read_shards
from hvpspec.checkpoint.formats.torch_export import export_model, export_tensors
from hvpspec.checkpoint.formats.torch_pickle import Trust, read_archive, read_torch
from hvpspec.checkpoint.formats.torchscript.script import script_model, script_tensors
from hvpspec.checkpoint.state_dict import SavedState, find_state_dict, levels, saved_state
from hvpspec.errors import CheckpointError

_WEIGHTS = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
)  # fmt: skip

# Names under which training scripts store the step.
_STEPS = ("global_step", "step", "steps", "iteration", "iter", "it")


def read_checkpoint(
    path: str | os.PathLike[str],
    key: str | None = None,
    *,
    allow_classes: Sequence[str] = (),
    trust_pickle: bool = False,
) -> dict[str, Tensor]:
    """The state dict in a checkpoint, on the CPU: {name: tensor}.

    path: a file of torch.save (zip or legacy, nested or not, Lightning's `.ckpt`); a safetensors file, or the index of
        several; a directory of torch.distributed.checkpoint or of Hugging Face; a torch.export or TorchScript archive.
    key: where the state dict is nested, with dots for deeper levels; None looks under the usual keys.
    allow_classes: names "package.module.Class" of objects that a pickle may hold besides tensors.
    trust_pickle: reads pickles without restriction, which runs any code in them; with a CheckpointWarning.
    Raises CheckpointError when the file is missing, unreadable or damaged, would run code, or holds no state dict.
    Takes the memory of the tensors once; nothing is allocated for data that a file declares and does not hold.
    """
    return read_state(path, key, Trust(tuple(allow_classes), trust_pickle)).tensors


def read_state(path: str | os.PathLike[str], key: str | None = None, trust: Trust | None = None) -> SavedState:
    """The tensors that `read_checkpoint` returns, and what was saved with them."""
    path = _resolve(Path(path))
    return saved_state(*find_state_dict(_content(path, trust), key, path))


def read_levels(path: str | os.PathLike[str], trust: Trust | None = None) -> list[Any]:
    """All that a checkpoint holds: the state dict under the usual names, then the levels around it, the whole last."""
    return levels(_content(_resolve(Path(path)), trust))


def read_content(path: str | os.PathLike[str], trust: Trust | None = None) -> Any:
    """All that a checkpoint holds as it was saved, what is no tensor included. Arguments as for `read_levels`."""
    path = _resolve(Path(path))
    return levels(read_distributed(path, others=True) if path.is_dir() else _content(path, trust))[-1]


def read_step(path: str | os.PathLike[str], trust: Trust | None = None) -> int | None:
    """The training step that a checkpoint stores with its weights ("step", "global_step", …), or None.

    Arguments as for `load_checkpoint`.
    """
    content = _content(_resolve(Path(path)), trust)
    for name in _STEPS if isinstance(content, Mapping) else ():
        value = content.get(name)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None


def read_model(path: str | os.PathLike[str], key: str | None = None, trust: Trust | None = None) -> nn.Module:
    """The model that a checkpoint includes, with its parameters.

    From a Hugging Face directory, a TorchScript archive, a pickled nn.Module whose classes are allowed or, where it is
    trusted, a torch.export archive or any pickled module. Arguments as for `load_checkpoint`.
    """
    path, trust = Path(path), trust or Trust()
    if path.is_dir() and _described(path):
        _no_key(key, path)
        return huggingface_model(path, read_state(path, None, trust).tensors)
    path = _resolve(path)
    if path.is_file() and head(path).startswith(b"PK"):
        with Archive(path) as archive:
            if archive.kind in ("torchscript", "export"):
                _no_key(key, path)
                load = script_model if archive.kind == "torchscript" else export_model
                return load(archive, trust=trust.everything)
    if (trust.everything or trust.classes) and path.is_file() and head(path).startswith((b"PK", b"\x80")):
        found, _ = find_state_dict(_content(path, trust), key, path)
        if isinstance(found, nn.Module):
            return found
    if path.is_file() and path.suffix != ".json" and not _is_known(head(path), path):
        raise foreign(path)
    folder = (
        f", or give the directory, {path.parent}, whose config.json describes it" if _described(path.parent) else ""
    )
    raise CheckpointError(
        f"{path} holds weights but not the network that they belong to; name a function that builds it with --model "
        f"FILE:FUNCTION{folder}."
    )


def _described(folder: Path) -> bool:
    """Whether a directory is in the format of Hugging Face."""
    return (folder / "config.json").is_file() and not (folder / ".metadata").is_file()


def _content(path: Path, trust: Trust | None) -> Any:
    """The content of a file, with its levels as they were saved."""
    if path.is_dir():
        return read_distributed(path)
    first = head(path)
    if _is_index(first, path):
        return read_shards(path, lambda shard: read_state(shard, None, trust).tensors)
    if is_safetensors(first, path):
        return read_safetensors(path)
    if first.startswith(b"PK\x03\x04"):
        with Archive(path) as archive:
            if archive.kind == "torchscript":
                return script_tensors(archive)
            if archive.kind == "export":
                return export_tensors(archive)
            return read_archive(archive, trust)
    elif not _is_known(first, path):
        raise foreign(path)
    return read_torch(path, trust)


def recognise(path: str | os.PathLike[str]) -> None:
    """Raises CheckpointError where a path holds no checkpoint of a known format, as its first bytes tell."""
    path = _resolve(Path(path))
    if path.is_file() and not _is_index(head(path), path) and not _is_known(head(path), path):
        raise foreign(path)


def _is_index(first: bytes, path: Path) -> bool:
    return path.name.endswith(".json") and first.lstrip().startswith(b"{")


def _is_known(first: bytes, path: Path) -> bool:
    """Whether a file begins as one of a known format; torch's legacy format is a sequence of pickles."""
    return first.startswith((b"PK\x03\x04", b"\x80")) or is_safetensors(first, path)


def _resolve(path: Path) -> Path:
    """The file to read: of a directory, the weights in it, or itself where it is a distributed checkpoint."""
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, a NUL, a circle of links
        raise CheckpointError(f"{path!s:.200}: cannot be read ({one_line(error)}).") from error
    if not exists:
        raise CheckpointError(f"{path}: no such file.")
    if not is_folder or (path / ".metadata").is_file():
        return path
    for name in _WEIGHTS:
        if (path / name).is_file():
            return inside(path, name, path)
    for pattern in ("*.safetensors.index.json", "*.safetensors"):
        if len(found := sorted(path.glob(pattern))) == 1:
            return inside(path, found[0].name, path)
    names = sorted(file.name for file in path.iterdir())
    has = f"it has {', '.join(names[:8])}{' …' if len(names) > 8 else ''}" if names else "it is empty"
    raise CheckpointError(
        f"{path} is a directory without a known weights file ({', '.join(_WEIGHTS)}, .metadata; {has}); give the "
        "checkpoint file inside it."
    )


def _no_key(key: str | None, path: Path) -> None:
    if key is not None:
        raise CheckpointError(
            f"{path} includes its model, and has only one state dict; --key can be used only with --model."
        )
