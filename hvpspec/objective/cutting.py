"""Batches cut into parts and joined, along whichever axis their samples are on; and what can be counted in them.

A batch does not say where its samples are: on the first dimension of its tensors, on the second (sequences with the
time first), in lists with an entry for each sample, or the batch itself is such a list.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.objective.batches import named_leaves, tensors, with_entries

Count = float | Tensor
"""How many there are: a number, or a tensor of one entry that has not been read yet."""

GIVEN = "the weight returned"
SAMPLES = "samples"
_IGNORED = (-100, 255, 0, -1, 1)  # values of targets that losses leave out
_MOST_PARTS = 3  # of a batch of tensors: inputs, targets, weights


class CannotCut(Exception):
    """Why a batch cannot be cut or two cannot be joined."""


@dataclass(frozen=True)
class Axis:
    """Where the samples are: on dimension `dim` of the tensors; with `lists`, also in the lists inside the batch; with
    `itself`, in the batch as a list."""

    dim: int = 0
    lists: bool = False
    itself: bool = False


FIRST = Axis()
AXES = (FIRST, Axis(dim=1), Axis(lists=True), Axis(itself=True))
"""In the order in which they are tried."""


def length(batch: Any, axis: Axis) -> int:
    """The number of samples. Raises CannotCut where the parts of the batch have none, or different ones."""
    if axis.itself:
        if not isinstance(batch, (list, tuple)):
            raise CannotCut(f"the batch is a {type(batch).__name__}")
        if len(batch) <= _MOST_PARTS and any(isinstance(entry, (Tensor, np.ndarray)) for entry in batch):
            raise CannotCut("the batch is not a list of samples")  # but inputs, and perhaps targets
        return len(batch)
    found = set(_lengths(batch, axis, outermost=True))
    if len(found) == 1 and (only := found.pop()) is not None:
        return only
    if not found:
        raise CannotCut("it holds no tensor")
    raise CannotCut(f"its tensors have lengths {sorted(size for size in found if size is not None)}")


def cut(batch: Any, axis: Axis, start: int, stop: int) -> Any:
    """The samples start to stop of a batch. Raises CannotCut."""
    if axis.itself:
        return batch[start:stop]
    length(batch, axis)  # raises where the parts do not fit together

    def part(value: Any) -> Any:
        return value.narrow(axis.dim, start, stop - start) if isinstance(value, Tensor) else value[start:stop]

    return _mapped(batch, axis, lambda values: part(values[0]), [batch], outermost=True)


def joined(first: Any, second: Any, axis: Axis) -> Any:
    """One batch from two. Raises CannotCut where their samples have different shapes."""
    if axis.itself:
        return first + second

    def both(values: list[Any]) -> Any:
        if not isinstance(values[0], Tensor):
            return values[0] + values[1]
        rest = [(*v.shape[: axis.dim], *v.shape[axis.dim + 1 :]) for v in values]
        if rest[0] != rest[1]:
            raise CannotCut(f"samples have the shapes {rest[0]} and {rest[1]}")
        return torch.cat(values, axis.dim)

    return _mapped(first, axis, both, [first, second], outermost=True)


def same_samples(first: Any, second: Any) -> bool:
    """Whether some tensor of two batches has samples of one shape, so that a sample means the same in both."""
    pairs = zip(tensors(first), tensors(second), strict=False)
    return any(a.ndim > 0 and a.shape[1:] == b.shape[1:] for a, b in pairs)


def _lengths(value: Any, axis: Axis, *, outermost: bool = False) -> Iterator[int | None]:
    """The lengths of all that is cut; None for what would have to be cut and cannot be."""
    if isinstance(value, (Tensor, np.ndarray)):
        if value.ndim > 0:
            yield value.shape[axis.dim] if value.ndim > axis.dim else None
    elif (size := said_size(value)) is not None:
        yield size
    elif _is_axis(value, axis, outermost):
        yield len(value)
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _lengths(entry, axis)
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _lengths(entry, axis)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _lengths(getattr(value, field.name), axis)


def said_size(value: Any) -> int | None:
    """The number of samples that a batch object says it has, as batches of graphs do."""
    size = getattr(value, "num_graphs", None)
    return size if isinstance(size, int) else None


def _is_axis(value: Any, axis: Axis, outermost: bool) -> bool:
    """Whether a list has an entry for each sample: texts always, other things where the axis says so."""
    if not isinstance(value, (list, tuple)) or hasattr(value, "_fields") or not value:
        return False
    return all(isinstance(entry, str) for entry in value) or (axis.lists and not outermost)


def _mapped(
    value: Any,
    axis: Axis,
    change: Callable[[list[Any]], Any],
    values: list[Any],
    *,
    outermost: bool = False,
) -> Any:
    """A batch like `value` in which `change` made each part that is cut, from the same parts of all `values`."""
    if isinstance(value, np.ndarray):
        values = [torch.from_numpy(v) for v in values]
        value = values[0]
    if isinstance(value, Tensor):
        return change(values) if value.ndim > 0 else _constant(values)
    if said_size(value) is not None:
        return _graphs(value, change, values)
    if _is_axis(value, axis, outermost):
        return change(values)

    def inside(get: Callable[[Any], Any]) -> Any:
        return _mapped(get(value), axis, change, [get(v) for v in values])

    if isinstance(value, Mapping):
        return with_entries(value, {key: inside(lambda v, key=key: v[key]) for key in value})  # type: ignore[misc]
    if isinstance(value, (tuple, list)):
        entries = [inside(lambda v, i=i: v[i]) for i in range(len(value))]  # type: ignore[misc]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{n: inside(lambda v, n=n: getattr(v, n)) for n in names})  # type: ignore[misc]
    return _constant(values)


def _graphs(value: Any, change: Callable[[list[Any]], Any], values: list[Any]) -> Any:
    """The same for a batch of graphs, through the list of its graphs."""
    if not hasattr(value, "to_data_list") or not hasattr(type(value), "from_data_list"):
        raise CannotCut(f"a {type(value).__name__} cannot be cut")
    return type(value).from_data_list(change([v.to_data_list() for v in values]))


def _constant(values: list[Any]) -> Any:
    """What batches share, such as a number or an image size."""
    first = values[0]
    for other in values[1:]:
        equal = torch.equal(first, other) if isinstance(first, Tensor) else first is other or first == other
        if not isinstance(equal, bool) or not equal:
            raise CannotCut(f"they hold different {type(first).__name__} values")
    return first


# --- counting -------------------------------------------------------------------------------------------------------


def counts(batch: Any, axis: Axis, given: Count | None) -> dict[str, Callable[[], Count]]:
    """What a mean can have been taken over, by name: the likeliest first. given: the weight that the loss returned."""
    found: dict[str, Callable[[], Count]] = {}
    if given is not None:
        found[GIVEN] = lambda: given
    with contextlib.suppress(CannotCut):
        size = length(batch, axis)
        found[SAMPLES] = lambda: float(size)
    same: dict[str, list[Tensor]] = {}  # of all samples, where these are in lists
    for name, tensor in named_leaves(batch):
        same.setdefault(_of_any_sample(name, axis), []).append(tensor)
    for name, parts in same.items():
        found |= _counts_of(name, parts)
    return found


def _of_any_sample(name: str, axis: Axis) -> str:
    """ "batch['labels'][3]['boxes']" → "batch['labels'][:]['boxes']", where each entry of that list is a sample."""
    if axis.itself:
        return re.sub(r"^batch\[\d+\]", "batch[:]", name)
    return re.sub(r"(?<!^batch)\[\d+\]", "[:]", name) if axis.lists else name


def _counts_of(name: str, parts: list[Tensor]) -> Iterator[tuple[str, Callable[[], Count]]]:
    views = {name: parts}
    if all(part.ndim > 1 for part in parts):
        views |= {f"{name}[..., 1:]": [p[..., 1:] for p in parts], f"{name}[..., :-1]": [p[..., :-1] for p in parts]}
    for view, each in views.items():
        first = each[0]
        if first.dtype == torch.bool or (first.is_floating_point() and first.ndim <= 2):
            yield f"sum of {view}", lambda each=each: sum(map(_sum, each))  # type: ignore[misc]
        elif not first.is_floating_point() and not first.is_complex():
            for value in _IGNORED:
                yield (
                    f"{view} != {value}",
                    lambda each=each, value=value: sum((part != value).sum() for part in each),  # type: ignore[misc]
                )
        yield f"elements of {view}", lambda each=each: float(sum(part.numel() for part in each))  # type: ignore[misc]


def _sum(weights: Tensor) -> Tensor:
    """NaN where some are negative, which are no weights."""
    total = weights.detach().sum().double()
    return torch.where((weights >= 0).all(), total, math.nan)
