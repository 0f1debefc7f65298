"""The fast engine: each batch traced once, what v does not reach computed once and kept, see `hvpspec.oracle.tracing`.

Kept residuals are those of the model's values and the data at the time. The values are compared before each product,
and all is prepared anew when they have changed. Residuals that do not fit the memory budget are computed each time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.memory import free_memory, readable
from hvpspec.objective.batches import move
from hvpspec.objective.objective import NO_WEIGHT, Objective, Snapshot, check_loss
from hvpspec.objective.torch_kernels import exact_arithmetic
from hvpspec.oracle import autograd
from hvpspec.oracle.autograd import OnBatch
from hvpspec.oracle.tracing import NotTraceable, Trace, shape_of, trace

SHARE = 0.4  # of the free memory, for residuals, where no budget was given
_CHEAPER = 0.95  # a vector, than in the block half as large: then it is worth having
_AGREEMENT = {torch.float64: 1e-12, torch.float32: 1e-5}  # rounding, where nothing amplifies it
_REPEATS = 3


@dataclass
class Artefact:
    """What runs for one batch shape: the two halves, eager or compiled."""

    trace: Trace
    prepare: Callable[..., Any]
    apply: Callable[..., Tensor]
    together: Callable[..., Tensor]  # for a block of vectors: residuals, rows of shape (b, n)


@dataclass
class _Kept:
    """A batch whose residuals are kept."""

    artefact: Artefact
    weight: float
    tensors: list[Tensor]
    versions: list[int]
    residuals: list[Tensor]


@dataclass
class _State:
    """What was prepared for one snapshot of the model."""

    snapshot: Snapshot
    kept: dict[int, _Kept] = field(default_factory=dict)
    size: int = 0
    batches: int | None = None
    total_weight: float = 0.0


class Linearized:
    """H @ V for one objective. `compiled`: by Inductor; on CUDA, `captured`: replayed as CUDA graphs.

    `memory_limit`: bytes for residuals; None takes a share of what is free. Raises NotTraceable at the first product.
    """

    def __init__(self, objective: Objective, *, memory_limit: int | None = None) -> None:
        self.objective = objective
        self._limit = memory_limit
        self._artefacts: dict[Hashable, Artefact] = {}
        self._state: _State | None = None
        self._block = 1  # vectors that are pushed through a batch together
        self.form = "eager"

    # --- the product --------------------------------------------------------------------------------------------

    def __call__(self, block: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        """H @ block, shape (n, b). Raises NotTraceable, InputError and whatever an operation raises.

        `on_batch` is told of all batches once more when the data turn out to have changed.
        """
        try:
            return self._product(block, on_batch)
        except _DataChanged:
            self._limit, self._state = 0, None  # from now on all is computed from the data of the moment
            return self._product(block, on_batch)

    def _product(self, block: Tensor, on_batch: OnBatch | None) -> Tensor:
        rows = (block.clone() if block.is_inference() else block).T.contiguous()
        total: Tensor | None = None
        with exact_arithmetic(self.objective.device), torch.no_grad():
            state = self._current()
            for index, weight, artefact, residuals in self._batches(state):
                product = self._apply(artefact, residuals, rows)
                del residuals  # unless they are kept, they go before the next batch's are made
                if on_batch is not None:
                    on_batch(index, weight, product.T)
                total = product * weight if total is None else total.add_(product, alpha=weight)
        assert total is not None  # data without weight are refused
        return total.div_(state.total_weight).T

    def _apply(self, artefact: Artefact, residuals: list[Tensor], rows: Tensor) -> Tensor:
        if self._block > 1 and len(rows) > 1:
            return torch.cat([artefact.together(residuals, part) for part in rows.split(self._block)])
        if len(rows) == 1:
            return artefact.apply(*residuals, rows[0])[None]
        return torch.stack([artefact.apply(*residuals, row) for row in rows])

    def _current(self) -> _State:
        """The state, made anew when the model's values or kept batches have changed."""
        state = self._state
        if state is None or not self.objective.unchanged(state.snapshot) or not self._same_tensors(state):
            self._state = state = _State(self.objective.snapshot(to_keep=True))
        return state

    def _same_tensors(self, state: _State) -> bool:
        """Whether kept batches, where they are the user's own tensors, have not been written to."""
        return all(
            tensor._version == version
            for kept in state.kept.values()
            for tensor, version in zip(kept.tensors, kept.versions, strict=True)
        )

    def _batches(self, state: _State) -> Iterator[tuple[int, float, Artefact, list[Tensor]]]:
        """For each batch of weight > 0: number, weight, artefact and residuals. Kept ones need no data."""
        if state.batches is not None and len(state.kept) == state.batches:
            for index, kept in sorted(state.kept.items()):
                if kept.weight > 0:
                    yield index, kept.weight, kept.artefact, kept.residuals
            return
        limit = self._limit
        if limit is None:
            limit = int(SHARE * (free_memory(self.objective.device) + state.size))
        weight, count, known = 0.0, 0, state.total_weight
        for index, batch in enumerate(self.objective.data):
            batch = move(batch, self.objective.device, self.objective.dtype)
            found = state.kept.get(index)
            if found is None or not self._holds(found, batch):
                if found is not None:
                    raise _DataChanged
                found = self._prepare(index, batch, state.snapshot)
                size = _size(found.residuals, [*state.snapshot.parameters, *state.snapshot.constants.values()])
                # Where not all will fit, the others need room too while they are in use.
                room = 0 if size * self.objective.batch_count() <= limit else size
                if state.batches is None and len(state.kept) == index and state.size + size + room <= limit:
                    state.kept[index] = found
                    state.size += size
            weight, count = weight + found.weight, count + 1
            if found.weight > 0:
                yield index, found.weight, found.artefact, found.residuals
            del found
        if weight == 0:
            raise InputError(NO_WEIGHT)
        if known and not math.isclose(weight, known, rel_tol=1e-6):
            raise _DataChanged
        state.batches, state.total_weight = count, weight

    def _holds(self, kept: _Kept, batch: Any) -> bool:
        _, tensors, _ = shape_of(batch)
        return len(tensors) == len(kept.tensors) and all(
            a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in zip(tensors, kept.tensors, strict=True)
        )

    def _prepare(self, index: int, batch: Any, snapshot: Snapshot) -> _Kept:
        artefact, tensors = self._artefact(batch, snapshot)
        values = [p.detach() for p in snapshot.parameters]
        residuals, loss, weight = artefact.prepare(*values, *snapshot.constants.values(), *tensors)
        _, number = check_loss(index, artefact.trace.result(loss, weight), batch)
        return _Kept(artefact, number, tensors, [tensor._version for tensor in tensors], list(residuals))

    def _artefact(self, batch: Any, snapshot: Snapshot) -> tuple[Artefact, list[Tensor]]:
        key, tensors, form = shape_of(batch)
        if key not in self._artefacts:
            with self.objective.evaluating():
                traced = trace(self.objective, snapshot, form)
            self._artefacts[key] = _eager(traced)
        return self._artefacts[key], tensors

    # --- making it faster ---------------------------------------------------------------------------------------

    @property
    def operations(self) -> int:
        return sum(artefact.trace.operations for artefact in self._artefacts.values())

    def compile(self) -> None:
        """Has Inductor compile what was traced: `apply`, and `prepare` unless all residuals are kept.

        Raises whatever it raises; `undo` then goes back.
        """
        kept = self._state is not None and len(self._state.kept) == self._state.batches
        made = {}
        for key, artefact in self._artefacts.items():
            traced = artefact.trace
            prepare, apply = traced.for_compiler
            fast = prepare if kept else torch.compile(prepare, dynamic=False)
            made[key] = Artefact(traced, fast, torch.compile(apply, dynamic=False), _vmapped(apply))
        self._artefacts, self._state, self._block, self.form = made, None, 1, "compiled"
        self(self._vector())

    def capture(self) -> None:
        """Replays `apply` as CUDA graphs, one for each batch that is kept. For CUDA devices only."""
        from hvpspec.oracle.cuda_graph import capture

        if self._state is None or len(self._state.kept) != self._state.batches:
            raise RuntimeError("only residuals that stay where they are can be captured")
        vector = self._vector()[:, 0]
        with exact_arithmetic(self.objective.device), torch.no_grad():
            for kept in self._state.kept.values():
                artefact = kept.artefact
                replay = capture(artefact.apply, kept.residuals, vector)
                kept.artefact = Artefact(artefact.trace, artefact.prepare, replay, artefact.together)
        self._block, self.form = 1, "CUDA graph"

    def undo(self) -> None:
        """Back to the eager form."""
        eager = {key: _eager(artefact.trace) for key, artefact in self._artefacts.items()}
        self._artefacts, self._state, self._block, self.form = eager, None, 1, "eager"

    def _vector(self) -> Tensor:
        return torch.ones(self.objective.space.n, 1, dtype=self.objective.dtype, device=self.objective.device)

    def group(self, columns: int) -> int:
        """Finds out how many vectors, of blocks of so many, are best pushed through a batch together, and keeps to it.

        Doubles the number while a vector gets cheaper and their intermediate values fit the memory budget.
        """
        self._block = 1
        if self._state is None or not self._state.kept:
            return 1
        kept, space, device = self._state.kept[0], self.objective.space, self.objective.device
        values = [*self._state.snapshot.parameters, *self._state.snapshot.constants.values()]
        each, limit = _size(kept.residuals, values), self._limit or SHARE * free_memory(device)
        with exact_arithmetic(device), torch.no_grad():
            row = torch.randn(1, space.n, dtype=self.objective.dtype, device=device)
            best = _fastest(lambda: self._apply(kept.artefact, kept.residuals, row), device)
            expected = self._apply(kept.artefact, kept.residuals, row)
            size = 2
            while size <= columns and size * each <= limit:
                rows = torch.cat([torch.randn_like(row).expand(size - 1, space.n), row])
                try:
                    same = _relative(kept.artefact.together(kept.residuals, rows)[-1:], expected)
                    cost = _fastest(lambda rows=rows: kept.artefact.together(kept.residuals, rows), device) / size  # type: ignore[misc]
                except (RuntimeError, NotImplementedError):  # no rule for some operation, or no memory for so many
                    break
                if cost > _CHEAPER * best or same > 1e-3:
                    break
                self._block, best, size = size, cost, 2 * size
        return self._block

    def describe(self) -> str:
        """The plan in one line."""
        state = self._state
        if state is None:
            return f"linearized, {self.form}"
        held = f"residuals of {len(state.kept)} of {state.batches} batches kept ({readable(state.size)})"
        together = f", {self._block} vectors together" if self._block > 1 else ""
        return f"linearized, {self.form}, {held}{together}"


class _DataChanged(Exception):
    """A further pass gave other data than the one before; nothing may be kept then."""


def agrees(engine: Linearized, objective: Objective) -> str | None:
    """Whether a product with a random vector is that of the reference: None, or by how much it is not.

    Where the two differ by more than rounding usually does, a reference in float64 judges: the engine may be as far
    off as three times the reference in its own precision. (Kinks such as ReLU's amplify rounding in the primal.)
    """
    n, dtype, device = objective.space.n, objective.dtype, objective.device
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(n, 1, generator=generator, dtype=torch.float64).to(device, dtype)
    reference, found = autograd.hvp(objective, v), engine(v)
    off = _relative(found, reference)
    if off <= _AGREEMENT[dtype]:
        return None
    yardstick = 0.0
    if dtype == torch.float32:
        finer = objective.in_float64()
        exact = autograd.hvp(finer, v.double())
        yardstick = _relative(reference.double(), exact)
        off = _relative(found.double(), exact)
    else:  # as far as the reference is from itself when the last digit of the vector changes
        nudged = autograd.hvp(objective, v * (1 + 2**-50))
        yardstick = _relative(nudged, reference)
    if off <= 3 * yardstick + _AGREEMENT[dtype]:
        return None
    return f"its products are off by {off:.1e}, and rounding explains {yardstick:.1e}"


def _relative(found: Tensor, expected: Tensor) -> float:
    scale = float(expected.norm())
    return float((found - expected).norm()) / scale if scale else float(found.norm())


def _eager(traced: Trace) -> Artefact:
    return Artefact(traced, traced.prepare, traced.apply, _vmapped(traced.apply))


def _vmapped(graph: Callable[..., Tensor]) -> Callable[[list[Tensor], Tensor], Tensor]:
    return lambda residuals, rows: torch.func.vmap(lambda v: graph(*residuals, v))(rows)


def _size(residuals: list[Tensor], elsewhere: list[Tensor]) -> int:
    """Bytes that the residuals hold, each storage once, those of the model's values left out."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in residuals}
    for tensor in elsewhere:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def _fastest(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of a few runs."""
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


__all__ = ["Linearized", "NotTraceable", "agrees"]
