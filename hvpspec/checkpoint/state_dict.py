"""Finds the state dict in the content of a checkpoint."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hvpspec.checkpoint.formats.files import one_line
from hvpspec.checkpoint.formats.pickles.stand_ins import Array
from hvpspec.errors import CheckpointError
from hvpspec.wording import listed

USUAL_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
"""Names under which training scripts store the model's state dict, in the order in which they are tried."""

EXTRA_STATE = "_extra_state"  # ends the name that torch gives to what a module's get_extra_state returns

_MAX_DEPTH = 4  # of nested keys
_MAX_DEPTH_OF_VALUES = 50  # of lists and dicts inside each other


@dataclass(frozen=True)
class SavedState:
    """A state dict as it was saved.

    tensors: by name. others: by name, what is no tensor, such as the extra state of modules. versions: what torch wrote
    on each module, by the module's name: its `_version`, by which it decides how to load; None where the file has none.
    key: where the state dict lies in the file.
    """

    tensors: dict[str, Tensor]
    others: Mapping[str, Any]
    versions: Mapping[str, Mapping[str, Any]] | None
    key: str


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


def saved_state(found: Mapping[str, Any] | nn.Module, key: str) -> SavedState:
    """What `find_state_dict` has found, with NumPy arrays as tensors."""
    try:
        entries = found.state_dict() if isinstance(found, nn.Module) else found
    except Exception as error:  # a module from a pickle
        raise CheckpointError(
            f"the module in the file is incomplete ({type(error).__name__}: {error}); save its state_dict() instead."
        ) from error
    made = {name: _tensor(value) for name, value in entries.items()}
    held = {name: tensor for name, tensor in made.items() if tensor is not None}
    others = {name: _plain(value) for name, value in entries.items() if made[name] is None or _is_extra(name, value)}
    return SavedState({name: held[name] for name in held if name not in others}, others, _versions(entries), key)


def levels(content: Any) -> list[Any]:
    """The levels from the state dict under the usual names up to the whole content, with NumPy's arrays in them."""
    return [_plain(level) for _, level in reversed(_levels(content))]


def _is_extra(name: str, value: Any) -> bool:
    """Whether an entry is the extra state of a module, which is the module's own affair, arrays included."""
    return name.endswith(EXTRA_STATE) and not isinstance(value, Tensor)


def _plain(value: Any, made: dict[int, Any] | None = None, depth: int = 0) -> Any:
    """With NumPy's arrays in the places of those that stand in for them, down to a depth that no checkpoint has.

    made: what was made of values so far, by their id: a file can have the same list in many places, or inside itself.
    """
    made = {} if made is None else made
    if id(value) in made or depth > _MAX_DEPTH_OF_VALUES:
        return made.get(id(value), value)
    if isinstance(value, Array):
        return value.values
    if type(value) in (dict, OrderedDict):
        new = made[id(value)] = type(value)()
        new.update((name, _plain(entry, made, depth + 1)) for name, entry in value.items())
        if type(value) is OrderedDict:
            vars(new).update(vars(value))  # torch's versions
        return new
    if type(value) is list:
        items = made[id(value)] = []
        items.extend(_plain(entry, made, depth + 1) for entry in value)
        return items
    return value


def _versions(entries: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]] | None:
    found = getattr(entries, "_metadata", None)
    if not isinstance(found, Mapping):
        return None
    return {str(name): entry for name, entry in found.items() if isinstance(entry, Mapping)}


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
    picked = OrderedDict((n.removeprefix(prefix), value) for n, value in content.items() if str(n).startswith(prefix))
    if (versions := _versions(content)) is not None:
        below = {f"{name}.".removeprefix(prefix).removesuffix("."): entry for name, entry in versions.items()
                 if f"{name}.".startswith(prefix)}  # fmt: skip
        picked._metadata = below  # type: ignore[attr-defined]
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
    return f"it has the keys {listed(one_line(key, 80) for key in value)}" if value else "it has no keys"
