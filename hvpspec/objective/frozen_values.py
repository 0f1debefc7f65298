"""Numbers and tensors that a recording takes for constants: what it must be compared with before it is used again.

The model's parameters and buffers are inputs of a recorded product. All else that the loss reads is frozen in it:
attributes such as `model.temperature`, and the variables of the loss function's own scope.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from hvpspec.objective.losses.outputs import SplitLoss

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_MAX_ENTRIES = 1000  # of a container that is looked into
_MAX_ARRAY_BYTES = 1 << 16  # of an array whose contents are compared
_DEEPEST = 3  # levels of attributes and containers that are looked into


def frozen_values(model: nn.Module, loss: Any) -> tuple[Hashable, ...]:
    """Equal as long as no such value has changed; for comparison alone.

    Tensors count by identity and version, so that a change in place is seen; arrays by their contents. This runs before
    every product: long containers and large arrays, such as a whole data set, count by identity alone.
    """
    found: list[Hashable] = []
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if key[0] != "_" or isinstance(value, _PLAIN)}
        found.append((name, tuple(_values(own, 0))))
    found.append(tuple(_values(_scope(loss), 0)))
    return tuple(found)


def _scope(loss: Any) -> dict[str, Any]:
    """The variables that a function reads beyond its arguments: closure, globals that it names, defaults, `self`."""
    if isinstance(loss, SplitLoss):
        return {"outputs": _scope(loss.outputs), "loss": _scope(loss.loss)}
    found: dict[str, Any] = {}
    if isinstance(loss, types.MethodType):
        found["self"] = loss.__self__
    function: Any = getattr(loss, "__func__", loss)
    if isinstance(loss, nn.Module) or not isinstance(function, types.FunctionType):
        return {**found, "callable": loss}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if _is_filled(cell):
            found[name] = cell.cell_contents
    found |= {name: function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__}
    found["defaults"] = [function.__defaults__, function.__kwdefaults__]
    return found


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True


def _values(value: Any, depth: int) -> Iterator[Hashable]:
    if isinstance(value, _PLAIN):
        yield repr(value)
    elif isinstance(value, Tensor):
        yield id(value), value._version if not value.is_inference() else -1
    elif isinstance(value, np.ndarray):
        yield value.tobytes() if value.dtype != object and value.nbytes <= _MAX_ARRAY_BYTES else id(value)
    elif isinstance(value, dict | list | tuple) and len(value) > _MAX_ENTRIES:
        yield id(value), len(value)
    elif depth >= _DEEPEST or isinstance(value, types.ModuleType | type | Callable | nn.Module):
        if isinstance(value, nn.Module):  # one that the loss function holds: its attributes count as well
            yield from _values({k: v for k, v in vars(value).items() if not k.startswith("_")}, depth + 1)
            yield from ((id(t), t._version) for t in (*value.parameters(), *value.buffers()))
        return
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield str(key)
            yield from _values(entry, depth + 1)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _values(entry, depth + 1)
    elif hasattr(value, "__dict__"):
        yield from _values({k: v for k, v in vars(value).items() if not k.startswith("__")}, depth + 1)
