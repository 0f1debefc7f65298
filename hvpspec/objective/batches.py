"""Batches as users give them, however nested: checked, counted, and moved to a device and dtype."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import hashlib
import itertools
import pathlib
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from hvpspec.errors import InputError
from hvpspec.kernels.placed import Placed
from hvpspec.objective.data_errors import LATER_PASS, of_data
from hvpspec.raised import raised
from hvpspec.system.out_of_memory import as_torch_error

Leaf = Callable[[Any], Any]
Visit = Callable[[Hashable], None]

_CONSTANTS = (type(None), bool, int, float, str)

# Objects that are not looked into: they are no part of a batch, even where one refers to them.
_OTHER_THINGS = (
    *(type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.GeneratorType),
    *(nn.Module, torch.optim.Optimizer, torch.utils.data.Dataset, torch.utils.data.DataLoader, torch.Generator),
    *(str, bytes, int, float, complex, torch.device, torch.dtype, np.generic),
)
# Values that do not change, and that are equal where nothing tells them apart.
_VALUES = (
    *(*_CONSTANTS, bytes, complex, range, type(...), enum.Enum, decimal.Decimal, fractions.Fraction),
    *(datetime.date, datetime.time, datetime.timedelta, pathlib.PurePath, np.dtype),
    *(torch.device, torch.dtype, torch.layout, torch.memory_format),
)
_DEFINITIONS = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)


class Batches:
    """The user's data, whose own errors become InputErrors that name the batch.

    numbering: the numbers of the batches, where these are some of all; None for 0, 1, …
    """

    numbering: Sequence[int] | None = None

    def __init__(self, data: Iterable[Any]) -> None:
        self._data = data
        self._had_batches = self._was_read = False

    @property
    def all_data(self) -> Iterable[Any]:
        """As the user gave them."""
        return self._data

    def __len__(self) -> int:
        return len(self._data)  # type: ignore[arg-type]

    def _read(self) -> Iterator[Any]:
        return iter(self._data)

    def __iter__(self) -> Iterator[Any]:
        batches: Iterator[Any] | None = None
        for index in itertools.count():
            try:
                with as_torch_error():
                    batches = self._read() if batches is None else batches
                    batch = next(batches)
            except StopIteration:
                if index == 0 and self._had_batches:
                    raise InputError(LATER_PASS) from None
                self._was_read = True
                return
            except (InputError, torch.OutOfMemoryError):
                raise
            except (Exception, SystemExit) as error:  # a user's data set may raise anything
                raise of_data(index, error, later=self._was_read) from error
            self._had_batches = True
            yield batch


class OneBatch(Batches):
    """One of the batches, with its number among them all, on which the noise of a random loss depends."""

    def __init__(self, number: int, batch: Any) -> None:
        super().__init__([batch])
        self.numbering = (number,)


def number_of(data: Iterable[Any]) -> int:
    """How many batches there are: counted in a pass over the data where these have no length."""
    try:
        return len(data)  # type: ignore[arg-type]
    except Exception:  # it has no length, whatever it raises to say so
        return sum(1 for _ in data)


def numbered(data: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """The batches of one pass over the data, each with its number."""
    numbering = data.numbering if isinstance(data, Batches) else None
    return enumerate(data) if numbering is None else zip(numbering, data, strict=False)


def check_data(data: Iterable[Any]) -> Iterable[Any]:
    """The data, if it can be iterated over repeatedly; else InputError, which says what to give instead."""
    if isinstance(data, (str, bytes, Tensor, np.ndarray, Mapping, nn.Module)) or not hasattr(data, "__iter__"):
        if isinstance(data, torch.utils.data.Dataset):
            raise InputError("data is a Dataset of single samples; wrap it in a DataLoader to get batches.")
        raise InputError(
            f"data must be a re-iterable of batches, such as a list or a DataLoader; got {type(data).__name__}."
            + (" For one batch, give [batch]." if isinstance(data, (Tensor, np.ndarray, Mapping)) else "")
        )
    if isinstance(data, Iterator):
        raise InputError(
            f"data is a one-shot {type(data).__name__}, but every HVP passes over the data again; "
            "give a list of batches (list(data)) or a DataLoader."
        )
    return data if type(data) in (list, tuple) or isinstance(data, Batches) else Batches(data)


def frozen(data: Iterable[Any]) -> list[Any]:
    """Copies of the batches of one pass over the data, for later passes to repeat."""
    return [copy.deepcopy(batch) for batch in check_data(data)]


def named_leaves(batch: Any, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """All tensors in a batch, or in what a module takes or returns, however nested, named as one would write them."""
    if isinstance(batch, Tensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from named_leaves(value, f"{name}[{key!r}]")
    elif isinstance(batch, (tuple, list)):
        for number, value in enumerate(batch):
            yield from named_leaves(value, f"{name}[{number}]")
    elif dataclasses.is_dataclass(batch):
        for field in dataclasses.fields(batch):
            yield from named_leaves(getattr(batch, field.name), f"{name}.{field.name}")


def tensors(batch: Any) -> Iterator[Tensor]:
    """The same without the names."""
    return (tensor for _, tensor in named_leaves(batch))


def move(batch: Any, device: torch.device, dtype: torch.dtype, placed: Placed | None = None, index: int = 0) -> Any:
    """A copy of the batch with every tensor in it on `device` and its floating-point ones in `dtype`, however nested.

    placed: copies that are there from earlier passes, by `index` and the tensor's place in the batch.

    Arrays become tensors, except in the attributes of objects that are no dataclasses. Complex tensors get the same
    precision. Objects that hold no tensor are asked to move by their method `to`.
    """

    places = itertools.count()

    def moved(value: Any) -> Any:
        if isinstance(value, torch.device):  # what an object knows of where it is
            return device
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiubc":
            value = _tensor(value)
        if not isinstance(value, Tensor):
            can_move = callable(getattr(value, "to", None)) and not isinstance(value, (type, nn.Module))
            return value.to(device) if can_move else value
        precision = dtype if value.is_floating_point() else dtype.to_complex() if value.is_complex() else None
        if placed is None:
            return value.to(device, precision)
        return placed.compared((index, next(places)), value, precision or value.dtype)

    return mapped(batch, moved)


def move_numbered(index: int, batch: Any, device: torch.device, dtype: torch.dtype, placed: Placed) -> Any:
    """The same, with errors that name the batch by its number."""
    try:
        return move(batch, device, dtype, placed, index)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # an object in it may have a method `to` of its own
        raise InputError(
            f"batch {index}: moving it to {device} raised {raised(error)}; what has a method to() is moved by it, "
            "so that this must return the same on that device."
        ) from error


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    kind = array.dtype.kind
    if kind in "fc" and array.dtype.itemsize > np.dtype(f"{kind}{8 if kind == 'f' else 16}").itemsize:  # extended
        array = array.astype(np.float64 if kind == "f" else np.complex128)
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


# --- batches of any kind --------------------------------------------------------------------------------------------
#
# Plain containers and their subclasses, dataclasses, graphs, objects of any class are copied with other tensors inside.
# Types are kept, as a loss may use attributes and methods; nothing of the original changes.


def mapped(batch: Any, change: Leaf, visit: Visit = lambda form: None) -> Any:
    """A copy of the batch with `change` applied to each tensor and array in it, and to what is no container.

    visit: is told the form of each container: its type, and its keys, length or attributes. A tensor that is in several
    places is changed once, and an object that holds no tensor is not copied.
    """
    return _mapped(batch, change, visit, {})


def with_entries(value: Mapping[Any, Any], entries: Mapping[Any, Any]) -> Any:
    """A copy of a mapping with other values for its keys, wherever it keeps them."""
    known = {id(value[key]): (value[key], new) for key, new in entries.items()}
    return _mapped(value, lambda leaf: leaf, lambda form: None, known)


def _mapped(value: Any, change: Leaf, visit: Visit, known: dict[int, tuple[Any, Any]]) -> Any:
    if id(value) in known:
        visit(("again", list(known).index(id(value))))
        return known[id(value)][1]
    if isinstance(value, (Tensor, np.ndarray)) or value is None or isinstance(value, _OTHER_THINGS):
        found = change(value)
        if isinstance(value, (Tensor, np.ndarray)):
            known[id(value)] = value, found  # the value too, so that no other object gets its number
        return found

    def part(inside: Any) -> Any:
        return _mapped(inside, change, visit, known)

    def put(found: Any) -> Any:
        known[id(value)] = value, found
        return found

    if isinstance(value, weakref.ref):  # of a child to its parent, as graphs have them
        parent = known.get(id(value()))
        return value if parent is None else weakref.ref(parent[1])
    if isinstance(value, tuple):
        visit((type(value), len(value)))
        return put(_tuple(value, part))
    if isinstance(value, (list, deque, dict)):
        visit((type(value), tuple(value) if isinstance(value, dict) else len(value)))
        found = put(copy.copy(value))
        if isinstance(value, dict):
            for key in value:
                found[key] = part(value[key])
        else:
            for place, inside in enumerate(value):
                found[place] = part(inside)
    elif isinstance(value, (set, frozenset)):
        visit((type(value), len(value)))
        return put(type(value)(map(part, value)))
    elif not holds_tensors(value):
        return change(value)
    else:
        attributes = _attributes(value)
        visit((type(value), tuple(attributes)))
        if isinstance(value, Mapping) and not attributes:  # a view of a mapping, which cannot be filled
            return put({key: part(inside) for key, inside in value.items()})
        try:
            found = put(copy.copy(value))
        except Exception:  # a class may refuse
            found = put(object.__new__(type(value)))
    _fill(found, value, part)
    return found


def _tuple(value: tuple[Any, ...], part: Leaf) -> Any:
    if isinstance(value, PackedSequence):  # whose sizes must stay on the CPU
        sizes = part(value.batch_sizes)
        data, order, back = part(value.data), part(value.sorted_indices), part(value.unsorted_indices)
        return PackedSequence(data, sizes.cpu(), order, back)
    inside = map(part, value)
    if type(value) in (tuple, torch.Size) or hasattr(value, "n_sequence_fields"):  # such as torch.return_types.max
        return type(value)(inside)
    found = tuple.__new__(type(value), inside)
    _fill(found, value, part)
    return found


def _fill(found: Any, value: Any, part: Leaf) -> None:
    """Attributes of the copy: copies of the value's. Whatever the class does on setting one is left out."""
    if isinstance(value, dict) and getattr(value, "__dict__", None) is value:  # entries are attributes: one dict
        object.__setattr__(found, "__dict__", found)
        return
    is_record = hasattr(type(value), "__dataclass_fields__")
    for name, inside in _attributes(value).items():
        if name.startswith("_") and not isinstance(inside, (*_CONSTANTS, weakref.ref)) and not holds_tensors(inside):
            continue  # what a class keeps for itself, such as the words behind a tokenizer's ids
        new = part(inside)
        if isinstance(inside, np.ndarray) and isinstance(new, Tensor) and not is_record:
            new = new.numpy(force=True)  # methods of the class may count on an array
        if name in getattr(value, "__dict__", {}):
            vars(found)[name] = new
        else:
            object.__setattr__(found, name, new)


def _attributes(value: Any) -> dict[str, Any]:
    """Those of an instance, in its __dict__ or in slots."""
    found = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            name = f"_{cls.__name__.lstrip('_')}{slot}" if slot[:2] == "__" and slot[-2:] != "__" else slot
            if slot not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def holds_tensors(value: Any, seen: set[int] | None = None) -> bool:
    """Whether a tensor or an array is in it, or in an attribute."""
    seen = set() if seen is None else seen
    if isinstance(value, (Tensor, np.ndarray)):
        return True
    if id(value) in seen or value is None or isinstance(value, _OTHER_THINGS):
        return False
    seen.add(id(value))
    return any(holds_tensors(inside, seen) for inside in _inside(value))


def _inside(value: Any) -> Iterator[Any]:
    yield from _attributes(value).values()
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (tuple, list, deque, set, frozenset)):
        yield from value


# --- what holds no tensor -------------------------------------------------------------------------------------------


class Unknown(Exception):
    """The type of an object whose contents cannot be told."""


def contents(value: Any) -> Hashable:
    """A key that is equal for things with the same contents; of things that hold no tensor. Raises Unknown."""
    return _contents(value, [])


def _contents(value: Any, above: list[int]) -> Hashable:
    if isinstance(value, _VALUES):
        return type(value), value
    if isinstance(value, slice):
        return slice, *(_contents(part, above) for part in (value.start, value.stop, value.step))
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        return type(value), value.dtype.str, value.shape, hashlib.blake2b(value.tobytes()).digest()
    if isinstance(value, _DEFINITIONS) and _is_defined(value):  # unlike a function that is made with each batch
        return value
    if id(value) in above:
        return "again", above.index(id(value))
    above = [*above, id(value)]
    inside: list[Any] = sorted(_attributes(value).items())
    if isinstance(value, Mapping):
        inside += value.items()
    elif isinstance(value, (tuple, list, deque)):
        inside += value
    elif isinstance(value, (set, frozenset)):
        return type(value), frozenset(_contents(part, above) for part in value)
    elif isinstance(value, _OTHER_THINGS) or not _is_written_in_python(value):
        raise Unknown(type(value).__name__)
    return type(value), *(_contents(part, above) for part in inside)


def _is_defined(value: Any) -> bool:
    """Whether it is found under its name in its module, so that it stays there."""
    if isinstance(value, types.ModuleType):
        return sys.modules.get(value.__name__) is value
    found: Any = sys.modules.get(value.__module__ or "")
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


def _is_written_in_python(value: Any) -> bool:
    """Whether all it holds are attributes. (The default way to pickle refuses an object that holds something else.)"""
    if isinstance(value, types.SimpleNamespace):
        return True
    default = all(getattr(type(value), name) is getattr(object, name) for name in ("__reduce__", "__reduce_ex__"))
    if type(value) is object or not default:  # which stands for itself, or knows more of itself
        return False
    try:
        value.__reduce_ex__(2)
    except Exception:
        return False
    return True
