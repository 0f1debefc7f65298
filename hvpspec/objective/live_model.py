"""The user's own model as the function that is differentiated: in eval mode, in the precision asked for, then put back.

The loss is evaluated on the live module with its own parameters in place, so that whoever else holds them (a closure,
an optimizer, a backward that calls the module again) sees the same tensors. What an evaluation changes (modes,
precision, buffers, what modules keep as attributes) is undone when it ends, whatever was raised.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.errors import InputError

_SHIFT = 0.1  # of `shaken`, relative to the root mean square of all parameters
_DICTS = (dict, OrderedDict, defaultdict)  # hooks are in OrderedDicts
_SEQUENCES = (list, deque)
_RESTORED_OTHERWISE = ("_parameters", "_buffers", "_modules", "training")


# --- what is evaluated, and where ---


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile's wrapper, however nested."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def working_dtype(parameters: Sequence[Tensor]) -> torch.dtype:
    """float64 if any parameter is; else float32, as half precision is too coarse to differentiate twice."""
    return torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32


def usable_device(device: str | torch.device) -> torch.device:
    """The device. Raises InputError where it cannot be used."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # which depends on what is missing
        reason = str(error).splitlines()[0]
        raise InputError(f"device '{device}' cannot be used here ({reason}).") from error


# --- modes and attributes -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool = False) -> Iterator[Callable[[], None]]:
    """Eval or training mode, by the modules' own `train`; modes and attributes are as before when it ends.

    What the context gives is to be called before each evaluation: it forgets what the last one left in attributes.
    `train()` comes first: some modules cache in eval mode what depends on their parameters, and drop it in training.
    """
    held = [_hold(module) for module in model.modules()]
    modes = [(module, module.training) for module in model.modules()]

    def afresh() -> None:
        for one in held:
            _restore(one)
        model.train()
        if not training:
            model.eval()

    try:
        afresh()
        yield afresh
    finally:
        for module, training in modes:  # parents first: what they set in their children is set right after
            if module.training != training:
                module.train(training)
        for one in held:
            _restore(one)


def changed_by_modes(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that `train()` or `eval()` change, as layers that merge weights do.

    The values are those of before when it returns. Needs memory for a copy of the model's values.
    """
    before = [(name, tensor, tensor.detach().clone()) for name, tensor in named_tensors(model)]
    with in_mode(model):
        changed = [name for name, tensor, copy in before if not _equal(tensor, copy)]
    for _, tensor, copy in before:
        if not _equal(tensor, copy):
            tensor.data.copy_(copy)
    return changed


@dataclass(frozen=True)
class _Held:
    """A module's own attributes as they were: the objects, and what was in those that can change."""

    module: nn.Module
    attributes: dict[str, Any]
    contents: dict[str, Any]


def _hold(module: nn.Module) -> _Held:
    own = {name: value for name, value in vars(module).items() if name not in _RESTORED_OTHERWISE}
    return _Held(module, own, {name: _contents(value) for name, value in own.items() if _can_change(value)})


def _restore(held: _Held) -> None:
    now = vars(held.module)
    for name in [name for name in now if name not in _RESTORED_OTHERWISE and name not in held.attributes]:
        del now[name]
    for name, value in held.attributes.items():
        if name not in now or now[name] is not value:
            now[name] = value
        if name in held.contents:
            _refill(value, held.contents[name])


def _can_change(value: Any) -> bool:
    """Plain containers, and tensors that are no parameters: cached masks, the states of recurrent layers."""
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter)
    return type(value) in (*_DICTS, *_SEQUENCES, set)


def _contents(value: Any) -> Any:
    """What is in it, however nested: pairs of an object and its own contents; of a tensor its version and a copy."""
    if isinstance(value, Tensor):
        return value._version, value.detach().clone()
    if type(value) is set:
        return set(value)
    entries = value.items() if type(value) in _DICTS else enumerate(value)
    return [(key, entry, _contents(entry) if _can_change(entry) else None) for key, entry in entries]


def _refill(value: Any, contents: Any) -> None:
    """Puts back what `_contents` has seen."""
    if isinstance(value, Tensor):
        version, copy = contents
        if value._version != version:
            value.data.copy_(copy)
        return
    if type(value) is set:
        if value != contents:
            value.clear()
            value.update(contents)
        return
    if type(value) in _DICTS:
        if list(value) != [key for key, _, _ in contents] or any(value[key] is not entry for key, entry, _ in contents):
            value.clear()
            value.update({key: entry for key, entry, _ in contents})
    elif len(value) != len(contents) or any(value[key] is not entry for key, entry, _ in contents):
        value.clear()
        value.extend(entry for _, entry, _ in contents)
    for _, entry, inside in contents:
        if inside is not None:
            _refill(entry, inside)


# --- values ---------------------------------------------------------------------------------------------------------


def named_tensors(model: nn.Module, *, every_name: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers, each once or under every name that it has."""
    yield from model.named_parameters(remove_duplicate=not every_name)
    yield from model.named_buffers(remove_duplicate=not every_name)


@contextlib.contextmanager
def in_precision(model: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Copies of the model's values, floating-point ones in `dtype` and all on `device`; its own when it ends.

    The tensors stay the same objects, as after `module.double()`. What a forward pass writes to them (running
    statistics, an embedding's `max_norm`) reaches the copies alone.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for _, tensor in named_tensors(model):
            kept.append((tensor, tensor.data))
            tensor.data = tensor.data.to(device, dtype if tensor.is_floating_point() else None, copy=True)
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


@contextlib.contextmanager
def ordinary_tensors(model: nn.Module) -> Iterator[None]:
    """Copies in the places of tensors that were made in inference mode, which autograd cannot use."""
    copies = {
        name: nn.Parameter(tensor.clone(), tensor.requires_grad) if isinstance(tensor, nn.Parameter) else tensor.clone()
        for name, tensor in named_tensors(model)
        if tensor.is_inference()
    }
    with with_values(model, copies) if copies else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def differentiated_in(model: nn.Module, chosen: Sequence[Tensor]) -> Iterator[None]:
    """Only the chosen parameters require a gradient: the model's others are constants, for which no graph is made."""
    mine = {id(tensor) for tensor in chosen}
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in required:
            parameter.requires_grad_(id(parameter) in mine)
        yield
    finally:
        for parameter, requires in required:
            parameter.requires_grad_(requires)


@contextlib.contextmanager
def with_values(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Other tensors in the places of parameters and buffers, by name; for recording, which works on stand-ins.

    A tensor that the model has in several places, under one name or several, is replaced in all of them.
    """
    stand_ins: dict[int, Tensor] = {}
    for name, tensor in named_tensors(model, every_name=True):
        if name in values:
            stand_ins.setdefault(id(tensor), values[name])
    replaced: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for module in model.modules():
            for slots in (vars(module)["_parameters"], vars(module)["_buffers"]):
                for name, tensor in slots.items():
                    if id(tensor) in stand_ins:
                        replaced.append((slots, name, tensor))
                        slots[name] = stand_ins[id(tensor)]
        yield
    finally:
        for slots, name, tensor in replaced:
            slots[name] = tensor


@contextlib.contextmanager
def shaken(parameters: Sequence[Tensor]) -> Iterator[None]:
    """The parameters moved at random by a tenth of their size, and back when it ends."""
    kept = [parameter.data for parameter in parameters]
    count = sum(p.numel() for p in parameters)
    size = math.sqrt(sum(float(p.detach().double().square().sum()) for p in parameters) / max(count, 1)) or 1.0
    generator = torch.Generator().manual_seed(0)
    try:
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
            parameter.data = parameter.data + _SHIFT * size * noise
        yield
    finally:
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data


def _equal(tensor: Tensor, other: Tensor) -> bool:
    """With NaN equal to NaN."""
    tensor = tensor.detach()
    return bool(((tensor == other) | ((tensor != tensor) & (other != other))).all())
