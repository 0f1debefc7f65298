"""Finds the state dict in the content of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hvpspec.checkpoint.formats.stand_ins import Array
from hvpspec.errors import CheckpointError
from hvpspec.wording import listed

USUAL_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
"""Names under which training scripts store the model's state dict, in the order in which they are tried."""

_MAX_DEPTH = 4  # of nested keys


def find_state_dict(content: Any, key: str | None, path: Path) -> tuple[Mapping[str, Any] | nn.Module, str]:
    """The state dict (or the whole module) in what was read from `path`, and the key that leads there ("" at the top).

    key: names of levels, joined by dots. The last ones may be a prefix of the state dict's own names, which is then
        removed: "state_dict.ema_model" picks the entries "ema_model.…". The usual first levels may be left out. None
        looks under the usual keys.
    """
    levels = _levels(content)
    if key is not None:
        found = [
            (under, _joined(at, key)) for at, level in levels if (under := _descend(level, key.split("."))) is not None
        ]
        if not found:
            raise CheckpointError(f"{path} has no key '{key}'; {_content(content)}.")
        for value, at in found:
            if _is_state_dict(value):
                return value, at
        raise CheckpointError(f"{path}: '{key}' is not a state dict; {_content(found[0][0])}.")
    at, innermost = levels[-1]
    if not _is_state_dict(innermost):
        advice = " If one of these holds it, name it with --key." if isinstance(content, Mapping) and content else ""
        raise CheckpointError(f"{path}: no state dict found; {_content(content)}.{advice}")
    return innermost, at


def _levels(content: Any) -> list[tuple[str, Any]]:
    """The levels from the top down to a state dict under the usual names, outermost first, each with its key."""
    levels = [("", content)]
    for _ in range(_MAX_DEPTH):
        at, level = levels[-1]
        if not isinstance(level, Mapping):
            break
        nested = [name for name in USUAL_KEYS if _leads_on(level.get(name))]
        if not nested and not _is_state_dict(level):  # a single key holds everything
            held = {name: value for name, value in level.items() if value is not None}
            nested = [str(name) for name, value in held.items() if len(held) == 1 and isinstance(value, Mapping)]
        if not nested or nested[0] not in level:
            break
        levels.append((_joined(at, nested[0]), level[nested[0]]))
    return levels


def _joined(key: str, more: str) -> str:
    return f"{key}.{more}" if key else more


def tensors(found: Mapping[str, Any] | nn.Module) -> dict[str, Tensor]:
    """The tensors by name, including NumPy arrays."""
    try:
        entries = found.state_dict() if isinstance(found, nn.Module) else found
    except Exception as error:  # a module from a pickle
        raise CheckpointError(f"the module in the file is incomplete ({type(error).__name__}: {error}).") from error
    made = {name: _tensor(value) for name, value in entries.items()}
    return {name: tensor for name, tensor in made.items() if tensor is not None}


def _tensor(value: Any) -> Tensor | None:
    values = _numbers(value)
    if values is None:
        return value if isinstance(value, Tensor) else None
    try:
        return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))
    except TypeError:  # more than 64 bits
        return None


def _numbers(value: Any) -> np.ndarray[Any, Any] | None:
    """The value as a NumPy array of numbers, or None."""
    values = value.values if isinstance(value, Array) else value
    return values if isinstance(values, np.ndarray) and values.dtype.kind in "biufc" else None


def _descend(content: Any, parts: list[str]) -> Any:
    """What is under `parts`, whose names may contain dots themselves; None where there is nothing."""
    if not parts:
        return content
    if not isinstance(content, Mapping):
        return None
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in content:
            return _descend(content[name], parts[length:])
    prefix = ".".join(parts) + "."
    picked = {name.removeprefix(prefix): value for name, value in content.items() if str(name).startswith(prefix)}
    return picked or None


def _leads_on(value: Any) -> bool:
    """Whether a value is a state dict or the level above one."""
    return _is_state_dict(value) or (
        isinstance(value, Mapping) and any(_is_state_dict(value.get(name)) for name in USUAL_KEYS)
    )


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, nn.Module) or (
        isinstance(value, Mapping)
        and all(isinstance(name, str) for name in value)
        and (
            any(isinstance(entry, Tensor) for entry in value.values())
            # An array next to nested levels is not a weight, but a loss, or the state of a random generator.
            or (
                any(_numbers(entry) is not None for entry in value.values())
                and not any(isinstance(entry, Mapping) for entry in value.values())
            )
        )
    )


def _content(value: Any) -> str:
    """What a value is or has, for a message."""
    if not isinstance(value, Mapping):
        return f"it is of type {type(value).__name__}"
    return f"it has the keys {listed(map(str, value))}" if value else "it has no keys"
