"""The user's own model as the function that is differentiated: its values in the precision asked for, then put back.

The loss is evaluated on the live module with its own parameters in place, so that whoever else holds them (a closure,
an optimizer, a backward that calls the module again) sees the same tensors. What an evaluation changes (modes,
precision, buffers, what modules keep as attributes) is undone when it ends, whatever was raised; modes and attributes
by `hvpspec.objective.modes`.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.errors import InputError
from hvpspec.kernels.comparison import Prepared, prepared, same
from hvpspec.kernels.deferred import Deferred
from hvpspec.kernels.placed import Placed, in_precision_of
from hvpspec.system.undoing import run_all, set_entry

_SHIFT = 0.1  # of `shaken`, relative to the root mean square of all parameters


# --- what is evaluated, and where ---


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile's wrapper, however nested.

    Raises InputError for what is no module.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module; {_instead(model)}.")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _instead(given: Any) -> str:
    """What was given instead of a model, and what to do about it."""
    if isinstance(given, type):
        return f"got the class {given.__name__}: give an object of it, {given.__name__}(…)"
    if isinstance(given, Mapping):
        return f"got {type(given).__name__}: build the network, and load it there (load_state_dict)"
    return f"got {type(given).__name__}"


def working_dtype(parameters: Sequence[Tensor]) -> torch.dtype:
    """float64 if any parameter is; else float32, as half precision is too coarse to differentiate twice."""
    double = any(p.dtype in (torch.float64, torch.complex128) for p in parameters)
    return torch.float64 if double else torch.float32


set_data: Callable[[Tensor, Tensor], None] = Tensor.data.__set__  # type: ignore[attr-defined]
"""`tensor.data = values` as a function."""


def usable_device(device: str | torch.device) -> torch.device:
    """The device. Raises InputError where it cannot be used."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # which depends on what is missing
        reason = str(error).splitlines()[0]
        raise InputError(f"device '{device}' cannot be used here ({reason}); choose another.") from error


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Those of `model.modules()`, parents first, each once; in a tenth of the time."""
    found: dict[int, nn.Module] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            waiting += [child for child in [*module._modules.values()][::-1] if child is not None]
    return list(found.values())


# --- values ---------------------------------------------------------------------------------------------------------


def named_tensors(model: nn.Module, *, every_name: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers, each once or under every name that it has."""
    yield from model.named_parameters(remove_duplicate=not every_name)
    yield from model.named_buffers(remove_duplicate=not every_name)


def versions(model: nn.Module) -> list[int]:
    """How often each parameter and buffer has been written to in place, as far as torch has noticed."""
    return [-1 if tensor.is_inference() else tensor._version for tensor in _tensors(model)]


class LiveValues:
    """Whether a model has the values that it had at another moment, which is asked for each product.

    Most of what that takes is done once, as long as the same tensors stay in the same places.
    """

    def __init__(self, model: nn.Module, placed: Placed, dtype: torch.dtype) -> None:
        self._model, self._placed, self._dtype = model, placed, dtype
        self._moment: Callable[[], object | None] = lambda: None
        self._slots: list[tuple[str, Tensor]] = []
        self._prepared: Prepared | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return LiveValues, (self._model, self._placed, self._dtype)

    def are(self, moment: object, values: Callable[[], Mapping[str, Tensor]], deferred: Deferred | None) -> bool:
        """Whether these are the values at that moment, to the bit.

        values: gives them by name, in the precision and on the device of what is placed. deferred: see
        `hvpspec.kernels.comparison.same`.
        """
        slots = list(_slots(self._model))
        tensors, known = [tensor for _, tensor in slots], self._prepared
        if known is not None and self._moment() is moment and _are_the(self._slots, slots) and known.is_of(tensors):
            return known.same(deferred)
        self._forget()
        named, then = dict(named_tensors(self._model)), values()
        now = [self._placed.trusted(tensor, self._dtype) for tensor in named.values()]
        if named.keys() != then.keys() or not same(now, [then[name] for name in named], deferred):
            return False
        if all(_is_same_memory(one, tensor) for one, tensor in zip(now, named.values(), strict=True)):
            expected = {id(tensor): then[name] for name, tensor in named.items()}
            self._prepared = prepared(tensors, [expected[id(tensor)] for tensor in tensors])
            self._slots, self._moment = slots, weakref.ref(moment, self._forget)
        return True

    def _forget(self, _: object = None) -> None:
        """Also once that moment's values are dropped elsewhere, so that their memory is free."""
        self._slots, self._prepared = [], None


def _is_same_memory(one: Tensor, other: Tensor) -> bool:
    return one.layout == other.layout == torch.strided and one.data_ptr() == other.data_ptr()


def _are_the(expected: Sequence[tuple[str, Tensor]], slots: Sequence[tuple[str, Tensor]]) -> bool:
    return len(slots) == len(expected) and all(
        name == other and tensor is same_tensor
        for (name, tensor), (other, same_tensor) in zip(slots, expected, strict=True)
    )


@contextlib.contextmanager
def in_precision(tensors: Sequence[Tensor], dtype: torch.dtype, placed: Placed) -> Iterator[None]:
    """Copies of a model's values, floating-point ones in `dtype` and all on a device; its own when it ends.

    The tensors stay the same objects, as after `module.double()`. What a forward pass writes to them (running
    statistics, an embedding's `max_norm`) reaches the copies alone.
    """
    own: list[Tensor] = []
    changed: list[Tensor] = []
    undo = map(set_data, changed, own)
    try:
        for tensor in {id(tensor): tensor for tensor in tensors}.values():
            values = placed.copy(tensor, dtype)
            own.append(tensor.data)
            changed.append(tensor)
            tensor.data = values
        yield
    finally:
        run_all(undo)


@contextlib.contextmanager
def in_place(
    model: nn.Module, names: Sequence[str], criterion: nn.Module | None, dtype: torch.dtype, placed: Placed
) -> Iterator[tuple[nn.Parameter, ...]]:
    """The chosen parameters, which alone require a gradient, while all values are in that precision and place."""
    named = dict(model.named_parameters(remove_duplicate=False))
    parameters = list({id(parameter): parameter for parameter in named.values()}.values())
    chosen = tuple(named[name] for name in names)
    others = [] if criterion is None else [*criterion.parameters(), *criterion.buffers()]
    tensors = [*parameters, *model.buffers(), *others]
    with in_precision(tensors, dtype, placed), differentiated_in(parameters, chosen):
        yield chosen


@contextlib.contextmanager
def ordinary_tensors(model: nn.Module, dtype: torch.dtype, placed: Placed) -> Iterator[None]:
    """Copies in the places of tensors that were made in inference mode, which autograd cannot use, and of buffers in
    compressed sparse layouts that are in another dtype or place, as what they hold cannot be exchanged."""

    def is_fixed(tensor: Tensor) -> bool:
        if tensor.layout in (torch.strided, torch.sparse_coo):
            return False
        return tensor.dtype != in_precision_of(tensor, dtype) or tensor.device != placed.device

    if not any(tensor.is_inference() or is_fixed(tensor) for tensor in _tensors(model)):
        yield
        return
    copies = {name: placed.copy(tensor, dtype) for name, tensor in model.named_buffers() if is_fixed(tensor)}
    copies |= {
        name: nn.Parameter(tensor.clone(), tensor.requires_grad) if isinstance(tensor, nn.Parameter) else tensor.clone()
        for name, tensor in named_tensors(model)
        if tensor.is_inference() and name not in copies
    }
    with with_values(model, copies):
        yield


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """The parameters and buffers, some perhaps several times; in a tenth of the time that their names take."""
    return (tensor for _, tensor in _slots(model))


def _slots(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The same with what their modules call them."""
    for module in modules_of(model):
        for slots in (module._parameters, module._buffers):
            for name, tensor in slots.items():
                if tensor is not None:
                    yield name, tensor


@contextlib.contextmanager
def differentiated_in(parameters: Sequence[Tensor], chosen: Sequence[Tensor]) -> Iterator[None]:
    """Only the chosen ones require a gradient: a model's others are constants, for which no graph is made."""
    mine = {id(tensor) for tensor in chosen}
    required = [parameter.requires_grad for parameter in parameters]
    undo = map(Tensor.requires_grad_, parameters, required)
    try:
        for parameter, requires in zip(parameters, required, strict=True):
            if requires != (id(parameter) in mine):
                parameter.requires_grad_(not requires)
        yield
    finally:
        run_all(undo)


@contextlib.contextmanager
def with_values(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Other tensors in the places of parameters and buffers, by name; for recording, which works on stand-ins.

    A tensor that the model has in several places, under one name or several, is replaced in all of them.
    """
    stand_ins: dict[int, Tensor] = {}
    for name, tensor in named_tensors(model, every_name=True):
        if name in values:
            stand_ins.setdefault(id(tensor), values[name])
    places: list[dict[str, Any]] = []
    names: list[str] = []
    own: list[Tensor] = []
    undo = map(set_entry, places, names, own)
    try:
        for module in model.modules():
            for slots in (vars(module)["_parameters"], vars(module)["_buffers"]):
                for name, tensor in slots.items():
                    if id(tensor) in stand_ins:
                        own.append(tensor)
                        names.append(name)
                        places.append(slots)
                        slots[name] = stand_ins[id(tensor)]
        yield
    finally:
        run_all(undo)


@contextlib.contextmanager
def shaken(parameters: Sequence[Tensor]) -> Iterator[None]:
    """The parameters moved at random by a tenth of their size, and back when it ends."""
    kept = [parameter.data for parameter in parameters]
    count = sum(p.numel() for p in parameters)
    size = math.sqrt(sum(float(p.detach().abs().double().square().sum()) for p in parameters) / max(count, 1)) or 1.0
    generator, undo = torch.Generator().manual_seed(0), map(set_data, parameters, kept)
    try:
        for parameter in parameters:
            kind = torch.complex64 if parameter.is_complex() else torch.float32
            noise = torch.randn(parameter.shape, generator=generator, dtype=kind)
            noise = noise.to(parameter.device, parameter.dtype)
            parameter.data = parameter.data + _SHIFT * size * noise
        yield
    finally:
        run_all(undo)
