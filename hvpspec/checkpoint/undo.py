"""What a module holds before it is loaded, so that all of it can be put back."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_CONTAINERS = (dict, OrderedDict, list, set)


@dataclass(frozen=True)
class _Held:
    """A tensor: the object, what it was, and its values; None for those that are not known yet (lazy modules)."""

    tensor: Tensor
    kind: type
    data: Tensor
    values: Tensor | None
    requires_grad: bool


class ModelState:
    """A module's parameters and buffers, bit for bit, its attributes, and what is in its lists and dicts.

    Takes memory for a copy of the values. Loading code of a module may write anywhere in the module, may replace
    tensors by others, and may fail halfway.
    """

    def __init__(self, model: nn.Module) -> None:
        self._containers: dict[int, tuple[Any, Any]] = {}
        self._tensors: dict[int, _Held] = {}
        self._extra = list(_extra_states(model))
        for module in model.modules():
            self._hold(vars(module))
        for tensor in (*model.parameters(), *model.buffers()):  # those of TorchScript are in no attribute
            self._hold(tensor)

    def restore(self) -> None:
        """Puts everything back."""
        for module, state in self._extra:
            with contextlib.suppress(Exception):  # what is not in attributes only the module itself can put back
                module.set_extra_state(copy.deepcopy(state))
        for container, entries in self._containers.values():
            _refill(container, entries)
        for held in self._tensors.values():
            _restore(held)

    def _hold(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensors.setdefault(id(value), _held(value))
        elif type(value) in _CONTAINERS and id(value) not in self._containers:
            self._containers[id(value)] = value, copy.copy(value)
            for entry in value.values() if isinstance(value, dict) else value:
                self._hold(entry)


def _extra_states(model: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """The modules with an extra state, and a copy of it."""
    for module in model.modules():
        if type(module).set_extra_state is not nn.Module.set_extra_state:
            with contextlib.suppress(Exception):
                yield module, copy.deepcopy(module.get_extra_state())


def _held(tensor: Tensor) -> _Held:
    values = None if is_lazy(tensor) or tensor.is_meta else tensor.detach().clone()
    return _Held(tensor, type(tensor), tensor.data, values, tensor.requires_grad)


def _restore(held: _Held) -> None:
    tensor = held.tensor
    if type(tensor) is not held.kind:  # a lazy parameter that was given its shape
        tensor.__class__ = held.kind
    if held.values is None or _elsewhere(tensor, held.data):
        tensor.data = held.data
    # Several elements in one place (expanded tensors): torch writes to none of them.
    if held.values is not None and torch._debug_has_internal_overlap(tensor) != 1:
        tensor.data.copy_(held.values)
    if tensor.is_leaf and tensor.requires_grad != held.requires_grad:
        tensor.requires_grad_(held.requires_grad)


def _elsewhere(tensor: Tensor, data: Tensor) -> bool:
    if tensor.layout != torch.strided or data.layout != torch.strided:
        return True
    return (tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr()) != (
        data.dtype,
        data.shape,
        data.stride(),
        data.data_ptr(),
    )


def _refill(container: Any, entries: Any) -> None:
    """The same entries in the same container, which others may hold as well; untouched where they are there."""
    if isinstance(container, dict):
        if list(container) != list(entries) or any(container[key] is not entries[key] for key in entries):
            container.clear()
            container.update(entries)
    elif isinstance(container, set):
        if container != entries:
            container.clear()
            container.update(entries)
    elif len(container) != len(entries) or any(a is not b for a, b in zip(container, entries, strict=True)):
        container[:] = entries
