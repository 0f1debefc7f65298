"""Checkpoint files to named tensors, without running any code from the file."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvpspec.errors import CheckpointError

USUAL_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
"""Where training scripts keep the model's state dict, in the order in which they are tried."""

_MAX_DEPTH = 4  # of nested keys


def read_checkpoint(path: str | os.PathLike[str], key: str | None = None) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, on the CPU: {name: tensor}.

    path: a `.pt`/`.pth` file written by torch.save, or a safetensors file; told apart by content, not by name.
    key: where the state dict is nested, with dots for deeper levels; None looks under the usual keys.
    Raises CheckpointError when the file is missing, unreadable, would run code, or holds no state dict.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file.")
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; give the checkpoint file in it.")
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    if not head:
        raise CheckpointError(f"{path} is empty.")
    if _is_safetensors(head):
        content: Any = _read_safetensors(path)
    elif head.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a pickle of the legacy format
        content = _read_torch(path)
    else:
        raise CheckpointError(f"{path} is not a checkpoint that torch.save or safetensors wrote.")
    return _find_state_dict(content, key, path)


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_safetensors(head: bytes) -> bool:
    """A safetensors file starts with the length of its JSON header (8 bytes, little endian) and then the header."""
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000  # the format's own limit


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise CheckpointError(
            f"{path} is a safetensors file; to read it, pip install 'hvpspec[cli]' (or safetensors)."
        ) from None
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({_one_line(error)}).") from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickle protocols: they are read, or refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise CheckpointError(_not_a_checkpoint(path, error)) from error
        wanted = re.search(r"unsupported global:?\s+(?:GLOBAL )?([\w.]+)", str(error), re.IGNORECASE)
        asks = f" (it asks for {wanted.group(1)})" if wanted else ""
        raise CheckpointError(
            f"{path} was not read, because it holds more than tensors, and that could run code{asks}; where you trust "
            "it, load it there and save only the tensors: torch.save(model.state_dict(), 'weights.pt')."
        ) from error
    except Exception as error:  # truncated and foreign files fail in many ways
        raise CheckpointError(_not_a_checkpoint(path, error)) from error


def _not_a_checkpoint(path: Path, error: Exception) -> str:
    return (
        f"{path} is not a checkpoint that torch.save or safetensors wrote, or it is damaged "
        f"({type(error).__name__}: {_one_line(error)})."
    )


def _one_line(error: Exception, limit: int = 160) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _find_state_dict(content: Any, key: str | None, path: Path) -> dict[str, Tensor]:
    if key is not None:
        for part in key.split(".") if not (isinstance(content, Mapping) and key in content) else [key]:
            if not isinstance(content, Mapping) or part not in content:
                raise CheckpointError(f"{path} has no key '{key}'; it has {_keys(content)}.")
            content = content[part]
        if not _is_state_dict(content):
            raise CheckpointError(f"{path}: what is under '{key}' is no state dict; it has {_keys(content)}.")
    else:
        for _ in range(_MAX_DEPTH):
            nested = [name for name in USUAL_KEYS if isinstance(content, Mapping) and _leads_on(content.get(name))]
            if not nested:
                break
            content = content[nested[0]]
        if not _is_state_dict(content):
            raise CheckpointError(
                f"{path}: no state dict found; it has {_keys(content)}. If one of these holds it, name it with key=."
            )
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _leads_on(value: Any) -> bool:
    """A state dict, or a level above one."""
    return _is_state_dict(value) or (
        isinstance(value, Mapping) and any(_is_state_dict(value.get(name)) for name in USUAL_KEYS)
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(name, str) for name in value)
        and any(isinstance(entry, Tensor) for entry in value.values())
    )


def _keys(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"a {type(value).__name__} there"
    names = [str(name) for name in value]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"the keys {', '.join(names[:10])}{more}" if names else "no keys"
