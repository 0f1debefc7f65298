"""Recordings that a process has made, for the next operator on the same model: the next checkpoint of a series, say.

A recording depends on shapes, on the code of model and loss and on what it takes for constants, not on the model's
values. It is kept as long as the model lives, for the loss and the options of the last operator. What cannot be
recorded is remembered as well, so that it is not tried again.

Where what is computed depends on the data, each batch is recorded by itself, at the present values of the model.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
import weakref
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hvpspec.objective.objective import Objective
from hvpspec.objective.parameters import Snapshot
from hvpspec.oracle.recorded.tracing import NeedsValues, NotRecordable, Recording, record, shape_of
from hvpspec.system.undoing import scoped

SECONDS_A_NODE = 0.01
"""That recording takes, of the gradient's graph, as measured (6 to 12 ms); until one has been made here."""

_TRACER = "torch._functorch.aot_autograd"  # with all that recording imports
SECONDS_TO_IMPORT = 1.3  # that takes, as measured; as much as a small network's recording, or more

MOST_BATCHES = 64  # that are recorded one by one; of more, none is


@dataclass
class _Known:
    """Recordings, or why there is none, by the shape of batches; and those of single batches (`Recording.values`)."""

    loss: Callable[[], Any]
    options: Hashable
    frozen: Hashable
    by_shape: dict[Hashable, Recording | str] = field(default_factory=dict)
    single: list[Recording] = field(default_factory=list)  # all for the same values of the model
    one_by_one: bool = False  # whether that is known to be needed

    def is_of(self, objective: Objective) -> bool:
        return self.loss() == objective.loss.given and self.options == objective.options


_KNOWN: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()
_LIMIT: ContextVar[float | None] = ContextVar("limit", default=None)
_PACE = [SECONDS_A_NODE]


def seconds_to_record(nodes: int) -> float:
    """What a recording is expected to take, from the number of nodes of the gradient's graph."""
    return nodes * _PACE[0] + (0.0 if _TRACER in sys.modules else SECONDS_TO_IMPORT)


def are_known(objective: Objective) -> bool:
    """Whether there are recordings of this objective already."""
    known = _KNOWN.get(objective.model)
    return (
        known is not None and known.is_of(objective) and any(isinstance(r, Recording) for r in known.by_shape.values())
    )


def record_first(objective: Objective, nodes: int) -> None:
    """Records the first batch, which shows whether that is possible. nodes: of its gradient's graph.

    Raises NotRecordable.
    """
    if are_known(objective):
        return
    importlib.import_module(_TRACER)
    start, frozen = time.perf_counter(), objective.frozen_values()
    with objective.evaluating():
        for batch in islice(objective.data, 1):
            recorded(objective, objective.snapshot(), objective.moved(0, batch), frozen)
    if nodes:
        _PACE[0] = (time.perf_counter() - start) / nodes


def give_up(objective: Objective, reason: str) -> None:
    """Says that the recordings made are of no use, so that none is tried again."""
    known = _KNOWN.get(objective.model)
    if known is not None and known.is_of(objective):
        known.by_shape = dict.fromkeys([*known.by_shape, *(one.key for one in known.single)], reason)
        known.single = []


def recorded(objective: Objective, snapshot: Snapshot, batch: Any, frozen: Hashable) -> Recording:
    """The recording for batches like this one, made if there is none; see `tracing.record`.

    frozen: what it takes for constants. Raises NotRecordable.
    """
    known = _KNOWN.get(objective.model)
    if known is None or not known.is_of(objective) or known.frozen != frozen:
        known = _KNOWN[objective.model] = _Known(_weak(objective.loss.given), objective.options, frozen)
    key, tensors = shape_of(batch)
    found = known.by_shape.get(key)
    if isinstance(found, str):
        raise NotRecordable(found)
    if found is None:
        known.single = [one for one in known.single if one.is_for(snapshot)]
        found = next((one for one in known.single if one.is_for(snapshot, key, tensors)), None)
    return found or _new(known, key, objective, snapshot, batch)


def _new(known: _Known, key: Hashable, objective: Objective, snapshot: Snapshot, batch: Any) -> Recording:
    """A recording for all batches of the shape, or else for this batch alone."""
    try:
        with _TimeLimit():
            if not known.one_by_one:
                try:
                    found = known.by_shape[key] = record(objective, snapshot, batch)
                    return found
                except NeedsValues as error:
                    if _took_too_long(error) or objective.batch_count() > MOST_BATCHES:
                        raise
            found = _of_one_batch(objective, snapshot, batch)
    except NotRecordable as error:
        if not _took_too_long(error):
            known.by_shape[key] = str(error)
        raise
    known.one_by_one = True
    known.single.append(found)
    return found


def _of_one_batch(objective: Objective, snapshot: Snapshot, batch: Any) -> Recording:
    count, start = objective.batch_count(), time.perf_counter()
    found = record(objective, snapshot, batch, with_values=True)
    limit, needed = _LIMIT.get(), count * (time.perf_counter() - start)
    if limit is not None and needed > limit:
        raise NotRecordable("to record each batch by itself would take longer than it is worth") from TooLong()
    return found


def _weak(loss: Any) -> Callable[[], Any]:
    """A reference that does not keep a function alive, which may hold the model."""
    try:
        return weakref.WeakMethod(loss) if hasattr(loss, "__self__") else weakref.ref(loss)
    except TypeError:
        return lambda: loss  # a name


# --- the time that it may take --------------------------------------------------------------------------------------


class TooLong(Exception):
    """Recording takes longer than it may."""


def _took_too_long(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, TooLong):
        error = error.__cause__ or error.__context__
    return error is not None


def within(seconds: float | None) -> contextlib.AbstractContextManager[None]:
    """While it lasts, the forward pass of a recording may take so many seconds. There most failures show."""
    return scoped(_LIMIT, seconds)


class _TimeLimit(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        seconds = _LIMIT.get()
        self._end = None if seconds is None else time.perf_counter() + seconds

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.autograd.grad:
            self._end = None
        if self._end is not None and time.perf_counter() > self._end:
            raise TooLong("it would take longer than it is worth")
        return func(*args, **(kwargs or {}))
