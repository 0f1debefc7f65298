"""Plain double backward that keeps the graphs of the batches' gradients between products, as far as memory allows.

    g(p) with its graph, once for each batch;        H v = d(gᵀv)/dp, one backward pass through that graph

It needs nothing but autograd, so that it works wherever a product by plain double backward does, and gives the same
product to the last bit: the same operations run on the same values. What the graphs are of must be what it was:

- the model's parameters and buffers, its attributes and what the loss function reads (`Objective.frozen_values`) are
  compared before each product, each batch when the data give it;
- where time has passed between two products, or a run begins, so is the loss, in a forward pass: whatever else has
  changed shows there;
- what was written to in place autograd notices itself, and functions in Python, which could read anything, are
  compared once with a product without kept graphs.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.errors import InputError
from hvpspec.kernels.comparison import differ, same
from hvpspec.kernels.deferred import Deferred, receive
from hvpspec.kernels.layouts import parts
from hvpspec.memory import free_memory, readable
from hvpspec.objective.live_model import named_tensors
from hvpspec.objective.losses.loss import BatchLoss
from hvpspec.objective.objective import REPEATED, Objective
from hvpspec.objective.parameters import Snapshot
from hvpspec.oracle import autograd
from hvpspec.oracle.autograd import BatchGraph, OnBatch, StaleGraph, graph_of
from hvpspec.oracle.checks.agreement import ROUNDING
from hvpspec.oracle.graph_memory import graph_nodes, held_by
from hvpspec.oracle.recorded.saved_activations import SAVED_SHARE
from hvpspec.oracle.recorded.tracing import NotRecordable, shape_of
from hvpspec.system.device_clock import time_when_done
from hvpspec.validation import relative_difference

_COPIES_OF_VALUES = 2  # held besides the graphs: a snapshot of the model, and the values that the graphs refer to
_MAX_CHANGES = 3  # of model or data in a row, each before a graph has been used again: then none is kept any more
_PAUSE, _PAUSE_IN_PRODUCTS = 1.0, 3  # between two products, after which the loss is compared: the longer of the two

_Buffers = list[tuple[Tensor, Tensor]]  # each buffer with its values


@dataclass(frozen=True)
class _KeptBatch:
    """A batch with its graph. `written`: the buffers that the forward pass has written to, with what it wrote."""

    graph: BatchGraph
    form: Hashable
    tensors: list[Tensor]  # copies
    written: _Buffers
    size: int  # bytes
    seconds: float  # to compute the graph

    def is_of(self, form: Hashable, tensors: list[Tensor], deferred: Deferred | None) -> bool:
        """Whether this is the same batch, by value."""
        return form == self.form and same(tensors, self.tensors, deferred)


@dataclass(frozen=True)
class _Model:
    """The model at the moment that the graphs are of."""

    tensors: list[tuple[str, Tensor]]
    versions: list[int]
    snapshot: Snapshot
    frozen: tuple[Hashable, ...]

    def is_now(self, objective: Objective, deferred: Deferred | None) -> bool:
        now = list(named_tensors(objective.model))
        return (
            [(name, id(tensor)) for name, tensor in now] == [(name, id(tensor)) for name, tensor in self.tensors]
            and _versions(objective) == self.versions
            and objective.frozen_values() == self.frozen
            and objective.unchanged(self.snapshot, deferred)
        )


class RetainedGraphs:
    """H @ V by double backward, for one objective. `keep` says whether graphs are to be kept.

    memory_limit: bytes that they may take; None allows a share of what is free.
    """

    def __init__(self, objective: Objective, memory_limit: int | None = None) -> None:
        self.objective = objective
        self.keep = False
        self.nodes = 0  # of a batch's graph
        self.graphs = self.backward = float("inf")  # seconds of the graphs of all batches, and of one vector's passes
        self.shapes: set[Hashable] = set()  # of batches, as far as they have been looked at
        self._making = 0.0  # seconds of the graphs of this product
        self._limit = memory_limit
        self._relieved = False
        self._off = False  # no graph is kept any more
        self._changes = 0
        self._runs_python = self._compared = False
        self._last = (float("inf"), 0.0)  # when the last product ended, and the seconds that it took
        self._check_loss = False
        self._reused = False  # whether the last pass made use of a kept graph
        self.drop()

    def __getstate__(self) -> dict[str, Any]:
        """Without graphs, which cannot be copied."""
        return self.__dict__ | {"_kept": {}, "_model": None, "_size": 0, "_complete": False}

    def drop(self) -> None:
        """Frees all graphs; the next product may keep them again."""
        self._kept: dict[int, _KeptBatch] = {}
        self._model: _Model | None = None
        self._size = self._largest_other = 0  # bytes: of kept graphs together; of a batch's whose graph is not kept
        self._complete = False  # whether a pass has ended in which graphs could be kept

    def stop(self) -> None:
        """Frees all graphs, and keeps none from now on."""
        self.drop()
        self._off = True

    def begin(self) -> None:
        """Says that a run begins: what has happened since the last product is not known."""
        self._check_loss = True

    def __call__(self, columns: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        """H @ columns, as `autograd.hvp`, which see."""
        start = time_when_done(self.objective.device)
        self._check_loss |= start - self._last[0] > max(_PAUSE, _PAUSE_IN_PRODUCTS * self._last[1])
        self._making = 0.0
        try:
            if self._kept and self._runs_python and not self._compared:
                return self._both(columns, on_batch)
            product = autograd.hvp(self.objective, columns, on_batch, self._graphs)
            self._check_loss, self._changes = False, 0 if self._reused else self._changes
            taken = time_when_done(self.objective.device) - start
            self.backward = min(self.backward, (taken - self._making) / columns.shape[1])
            return product
        except StaleGraph:
            self._changed()
        finally:
            self._last = (time.perf_counter(), time.perf_counter() - start)
        return autograd.hvp(self.objective, columns, on_batch)

    @property
    def seconds(self) -> float:
        """Expected of a product with one vector from now on; infinite before the first."""
        fresh = 1 - self.share if self._off or self._complete else 0.0  # graphs that cannot be kept
        return self.backward + fresh * self.graphs if fresh else self.backward

    def _both(self, columns: Tensor, on_batch: OnBatch | None) -> Tensor:
        """The product without kept graphs; with them it has to be the same, or else none is kept any more."""
        self._compared = True
        expected = autograd.hvp(self.objective, columns, on_batch)
        found = autograd.hvp(self.objective, columns, None, self._graphs)
        same = torch.equal(found, expected)
        if self.objective.device.type != "cpu":  # sums may be in another order each time
            same = relative_difference(found, expected) <= ROUNDING[self.objective.dtype]
        if not same:
            self.stop()
        return expected

    def relieve(self) -> bool:
        """Takes less memory from now on: half as much for kept graphs, then none. False where that is so already."""
        if not self._kept:
            return False
        self._limit = 0 if self._relieved else self._size // 2
        self._relieved = True
        self.drop()
        return True

    @property
    def share(self) -> float:
        """The share of the batches whose graphs are kept."""
        return len(self._kept) / max(self.objective.batch_count(), 1) if self._kept else 0.0

    @property
    def size(self) -> int:
        """Bytes of the kept graphs."""
        return self._size

    @property
    def can_keep_more(self) -> bool:
        """Whether the next product may keep graphs that are not kept yet."""
        return not (self._off or self._complete)

    def describe(self) -> str:
        """For the plan: how many graphs are kept; nothing where none is."""
        if not self._kept:
            return ""
        count = self.objective.batch_count()
        return f", gradient graphs of {len(self._kept)} of {count} batches kept ({readable(self._size)})"

    # --- one pass over the data -----------------------------------------------------------------------------------

    def _graphs(
        self, objective: Objective, parameters: tuple[Tensor, ...], deferred: Deferred | None
    ) -> Iterator[BatchGraph]:
        """A graph for each batch of weight > 0: the one that is kept, or a new one."""
        if self._model is not None and not self._model.is_now(objective, deferred):
            self._changed()
        limit = self._room() if (self.keep or self._kept) and not self._off else 0
        if self.keep and limit == 0:
            self.stop()
        if self._model is None and limit > 0:
            frozen = objective.frozen_values()
            tensors = list(named_tensors(objective.model))
            self._model = _Model(tensors, _versions(objective), objective.snapshot(), frozen)
        buffers = [(buffer, buffer.data) for buffer in objective.model.buffers()]
        check, first, reused = self._check_loss, True, False
        for index, one in objective.batch_losses(deferred):
            kept = self._same(index, one, deferred)
            if kept is not None and check and not _loss_is(kept, one, objective, deferred):
                self._changed()
                kept = None
            if kept is not None:
                one.weight, graph, reused = kept.graph.weight, kept.graph, True
                for buffer, data in (*buffers, *kept.written):
                    buffer.data = data
            else:
                graph = self._new(index, one, parameters, buffers, limit, first, deferred)
                first = False
            del kept
            if graph.weight > 0:
                yield graph
            del graph
        self._reused = reused
        self.graphs = self.graphs if reused else self._making
        self._end_of_pass()

    def _same(self, index: int, one: BatchLoss, deferred: Deferred | None) -> _KeptBatch | None:
        """What is kept of a batch, if the data have given the same one again."""
        kept = self._kept.get(index)
        if kept is None:
            return None
        batch = self.objective.moved(index, one.batch)
        try:
            if kept.is_of(*shape_of(batch), deferred):
                return kept
        except NotRecordable:
            pass
        self._changed()
        return None

    def _new(
        self,
        index: int,
        one: BatchLoss,
        parameters: tuple[Tensor, ...],
        buffers: _Buffers,
        limit: int,
        first: bool,
        deferred: Deferred | None,
    ) -> BatchGraph:
        """The graph of a batch, which is kept where that is possible."""
        # Each batch's graph is timed while that decides something; else nothing waits for the device.
        clock = time.perf_counter if self._complete else partial(time_when_done, self.objective.device)
        start = clock()
        copies = None if self._complete or self._model is None else self._copied(index, one.batch)
        own = [] if copies is None else [(tensor, tensor.clone()) for tensor in _attributes(self.objective)]
        graph = graph_of(self.objective, index, one, parameters, first)
        if graph.weight == 0:
            return graph
        seconds = clock() - start
        if not self.nodes:
            self.nodes = len(graph_nodes(graph.chain.tensors()))
        if copies is not None:
            written = self._written(buffers, deferred)
            self._keep(graph, *copies, written, seconds, limit)
        if own:
            receive(deferred, differ(*zip(*own, strict=True)), self._writes_to_its_own)
        self._making += clock() - start
        return graph

    def _written(self, buffers: _Buffers, deferred: Deferred | None) -> _Buffers:
        """Those that a forward pass has written to, with what it wrote; perhaps filled later."""
        found: _Buffers = []

        def note(buffer: Tensor, data: Tensor, has_changed: float) -> None:
            if has_changed:
                found.append((buffer, data))

        for buffer, before in buffers:
            receive(deferred, differ([buffer.data], [before]), partial(note, buffer, buffer.data))
        return found

    def _writes_to_its_own(self, it_does: float) -> None:
        """The forward pass writes to tensors that the graph may hold."""
        if it_does:
            self.stop()

    def _copied(self, index: int, batch: Any) -> tuple[Hashable, list[Tensor]] | None:
        """The form of a batch and copies of its tensors, to compare with later; None where that is not possible."""
        try:
            form, tensors = shape_of(self.objective.moved(index, batch))
        except NotRecordable:
            self.stop()
            return None
        self.shapes.add(form)
        return form, [tensor.clone() for tensor in tensors]

    def _keep(
        self, graph: BatchGraph, form: Hashable, tensors: list[Tensor], written: _Buffers, seconds: float, limit: int
    ) -> None:
        """Keeps a graph, without the gradient itself; gives up those that are cheapest to compute where memory is
        short."""
        assert self._model is not None
        held = held_by(graph.chain.tensors())
        self._runs_python |= held.runs_python
        if held.runs_python and self.objective.noise_seed is not None:  # which a backward may draw again
            return self.stop()
        own = {part.untyped_storage().data_ptr() for _, tensor in self._model.tensors for part in parts(tensor.data)}
        size = sum(size for address, size in held.storages.items() if address not in own)
        size += sum(tensor.nbytes for tensor in tensors)
        graph = replace(graph, chain=graph.chain.places(), kept=True)
        self._kept[graph.index] = _KeptBatch(graph, form, tensors, written, size, seconds)
        self._size += size
        # Where not all batches fit, the others need room while they are in use.
        fits = self._size + size * (self.objective.batch_count() - len(self._kept)) <= limit
        room = max(self._largest_other, 0 if fits else size)
        while self._kept and self._size + room > limit:
            cheapest = min(self._kept, key=lambda i: self._kept[i].seconds / max(self._kept[i].size, 1))
            given_up = self._kept.pop(cheapest)
            self._size -= given_up.size
            self._largest_other = room = max(room, given_up.size)

    def _room(self) -> int:
        """Bytes that graphs may take."""
        limit = self._limit
        if limit is None:
            if self._complete:
                return self._size
            limit = int(SAVED_SHARE * (free_memory(self.objective.device) + self._size))
        values = sum(part.nbytes for _, tensor in named_tensors(self.objective.model) for part in parts(tensor))
        return max(0, limit - _COPIES_OF_VALUES * values)

    # --- changes --------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """The model, the loss or the data are not those of the graphs."""
        self.drop()
        self._changes += 1
        if self._changes >= _MAX_CHANGES:
            self.stop()

    def _end_of_pass(self) -> None:
        if self._off or self._model is None:
            return
        self._complete = True
        if not self._kept or _versions(self.objective) != self._model.versions:
            self.stop()  # no room for any, or the loss writes to the parameters


def _versions(objective: Objective) -> list[int]:
    """How often each parameter has been written to in place."""
    return [parameter._version for parameter in objective.model.parameters()]


def _attributes(objective: Objective) -> Iterator[Tensor]:
    """Tensors that modules keep as attributes of their own, besides parameters and buffers."""
    for module in (*objective.model.modules(), *(objective.loss.criterion or nn.Module()).modules()):
        for value in vars(module).values():
            inside = value.values() if type(value) is dict else value if type(value) in (list, tuple) else [value]
            yield from (tensor for tensor in inside if isinstance(tensor, Tensor))


def _loss_is(kept: _KeptBatch, one: BatchLoss, objective: Objective, deferred: Deferred | None) -> bool:
    """Whether the loss of a batch is what it was when its graph was made."""
    try:
        with torch.no_grad():
            loss, weight = one()
    except InputError:
        loss, weight = one()  # a loss that differentiates needs gradients; what else is wrong raises again
    before = kept.graph.loss
    off = (loss.detach() - before).abs() > REPEATED[objective.dtype] * before.abs()
    if weight != kept.graph.weight:
        return False
    if deferred is None:
        return not bool(off)
    deferred.forbid(off)
    return True
