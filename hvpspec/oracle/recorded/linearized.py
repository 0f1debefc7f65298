"""The fast engine: each batch is recorded once, and what does not depend on the vector is computed once and saved.

See `tracing` for the recording and `saved_activations` for what is saved. The model's values are compared with the
saved ones before each product; where they have changed, all activations are recomputed. Batches that were recorded one
by one (`Recording.values`) are then recorded again, and the product is compared with the reference again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sized
from typing import Any

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.kernels.deferred import Deferred, Doubtful
from hvpspec.kernels.torch_kernels import EXCLUSIVE, exact_arithmetic
from hvpspec.memory import free_memory, readable
from hvpspec.objective.objective import Objective
from hvpspec.objective.parameters import Snapshot
from hvpspec.oracle.autograd import OnBatch
from hvpspec.oracle.checks.agreement import disagreement
from hvpspec.oracle.recorded.cuda_graph import Captured, Pool, reserved_memory
from hvpspec.oracle.recorded.recordings import recorded
from hvpspec.oracle.recorded.saved_activations import SAVED_SHARE, DataChanged, SavedActivations, SavedBatch
from hvpspec.oracle.recorded.splitting import Choice
from hvpspec.oracle.recorded.tracing import NotRecordable, Program, Recording, eager, shape_of, vectorised
from hvpspec.validation import relative_difference

_CUDA_GRAPH = "CUDA graph"  # the form
_MAX_COST_RATIO = 0.95  # of a vector among twice as many together: worth it below
_MAX_DIFFERENCE_TOGETHER = 1e-3  # relative, between a product computed with others and by itself
_TIMINGS = 3
_PRODUCTS_TO_RECORD_AGAIN = 20  # that must have been made before single batches are recorded for other values


class Linearized:
    """H @ V for one objective: eager, compiled by Inductor, or replayed as CUDA graphs (`form` says which).

    memory_limit: bytes for saved activations; None allows a share of what is free. Raises NotRecordable at the first
    product.
    """

    def __init__(self, objective: Objective, *, memory_limit: int | None = None) -> None:
        self.objective = objective
        self.form = "eager"
        self._limit = memory_limit
        self._recordings: list[Recording] = []
        self._programs: dict[tuple[int, int], Program] = {}  # of a recording, by its identity, at a level
        self._saved: SavedActivations | None = None
        self._frozen: tuple[Hashable, ...] | None = None
        self.together = 1  # vectors that are computed together
        self.level: int | None = None  # of what is saved, when compiled; None: of each batch, what memory allows
        self.compiled_whole = False  # whether all activations were saved when it was compiled
        self._graphs: dict[int, Captured] = {}  # of the batches
        self._graph_bytes = 0
        self._reliefs = 0  # steps by which less is saved than the limit allowed at first
        self._made = 0  # products since the last recording of single batches
        self._unchecked = False  # whether these have been made again and not been compared with the reference

    def on(self, objective: Objective) -> Linearized:
        """The same engine for one of the batches, with all that was recorded and compiled; without CUDA graphs."""
        other = Linearized(objective, memory_limit=self._limit)
        other._recordings, other._programs, other._frozen = self._recordings, self._programs, self._frozen
        other.level, other.compiled_whole, other._made = self.level, self.compiled_whole, self._made
        other.form = "eager" if self.form == _CUDA_GRAPH else self.form
        return other

    # --- the product --------------------------------------------------------------------------------------------

    def __call__(self, columns: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        """H @ columns, shape (n, b). Raises NotRecordable, InputError and whatever an operation raises.

        `on_batch` is told of all batches again when the data turn out to have changed.
        """
        found = self._despite_changes(columns, on_batch)
        self._made += columns.shape[1]
        if self._unchecked:
            self._unchecked = False
            if (difference := disagreement(self, self.objective)) is not None:
                raise NotRecordable(f"recorded again for other values, it disagrees with autograd: {difference}")
        return found

    def _despite_changes(self, columns: Tensor, on_batch: OnBatch | None) -> Tensor:
        try:
            return self._product(columns, on_batch, Deferred())
        except (Doubtful, DataChanged):
            pass
        try:
            return self._product(columns, on_batch, None)
        except DataChanged:
            if self._by_batch:
                raise NotRecordable("each batch was recorded by itself, and now there are others") from None
            self._limit, self._saved = 0, None  # from now on everything is computed from the batches of each pass
            if self.form == _CUDA_GRAPH:
                self.undo()
        return self._product(columns, on_batch, None)

    def _product(self, columns: Tensor, on_batch: OnBatch | None, deferred: Deferred | None) -> Tensor:
        """The product. Raises Doubtful where something is wrong of what was deferred."""
        rows = (columns.clone() if columns.is_inference() else columns).T.contiguous()
        total: Tensor | None = None
        with exact_arithmetic(self.objective.device), torch.no_grad():
            with EXCLUSIVE:  # while another thread evaluates the model, its values may be moved or in another precision
                saved = self._current(deferred)
            try:
                for index, batch in saved.one_pass(self, deferred):
                    product, weight = self._apply(batch, rows), batch.weight
                    del batch  # unless its activations are saved, they are freed before the next batch's are computed
                    if on_batch is not None:
                        on_batch(index, weight, product.T)
                    total = product * weight if total is None else total.add_(product, alpha=weight)
            except InputError:
                if deferred is not None:
                    deferred.read()  # what was wrong before that
                raise
            if deferred is not None:
                deferred.read()
            if self.form == _CUDA_GRAPH and not self._graphs and saved.complete:
                self.capture()  # again, for another recording
        assert total is not None  # data without weight are refused
        return total.div_(saved.total_weight).T

    def _apply(self, batch: SavedBatch, rows: Tensor) -> Tensor:
        program, activations = batch.program, batch.activations
        if self.together > 1 and len(rows) > 1:
            return torch.cat([program.apply_columns(activations, part) for part in torch.split(rows, self.together)])
        if len(rows) == 1:
            return program.apply(*activations, rows[0])[None]
        return torch.stack([program.apply(*activations, row) for row in rows])

    def _current(self, deferred: Deferred | None) -> SavedActivations:
        """What is saved for the model's present values; empty where these or saved batches have changed."""
        frozen = self.objective.frozen_values()
        if frozen != self._frozen:
            if self._frozen is not None:  # numbers that the recordings hold have changed
                self._forget_single()
                self._recordings, self._programs, self._saved, self._graphs = [], {}, None, {}
                self.form, self.level = self.form if self.form == _CUDA_GRAPH else "eager", None
            self._frozen = frozen
        if self._saved is None:
            self._saved = SavedActivations(self.objective, self.objective.snapshot(), self._limit)
        elif not self._saved.valid(deferred):
            self._forget_single()
            snapshot, like = self.objective.snapshot(), self._saved if self._graphs else None
            if like is not None and like.snapshot.constants.keys() == snapshot.constants.keys():
                for mine, new in zip(like.snapshot.tensors(), snapshot.tensors(), strict=True):
                    mine.copy_(new)  # where graphs read it
                snapshot = like.snapshot
            self._saved = SavedActivations(self.objective, snapshot, self._limit, like)
        return self._saved

    @property
    def _by_batch(self) -> bool:
        """Whether batches are recorded one by one, at the model's present values."""
        return any(recording.values is not None for recording in self._recordings)

    def _forget_single(self) -> None:
        """Has single batches recorded again, for other values. Raises NotRecordable where that is not worthwhile."""
        if not self._by_batch:
            return
        if self._made < _PRODUCTS_TO_RECORD_AGAIN:
            raise NotRecordable("each batch was recorded by itself, and the values change too often for that")
        self._recordings = [recording for recording in self._recordings if recording.values is None]
        self._programs, self._made, self._unchecked = {}, 0, True

    def choices(self, batch: Any, snapshot: Snapshot) -> list[Choice]:
        """What there is to choose of what is saved of a batch, from the most to nothing."""
        recording = self._recording(batch, snapshot)
        levels = recording.levels if self.level is None else [recording.levels[self._within(recording.levels)]]
        return [*levels, recording.nothing]

    def prepare(
        self, index: int, batch: Any, snapshot: Snapshot, level: int, deferred: Deferred | None = None
    ) -> SavedBatch:
        """A batch with its activations; level: the number of one of the `choices`."""
        program, tensors = self._program(batch, snapshot, level)
        values = [p.detach() for p in snapshot.parameters]
        activations, loss, weight = program.prepare(*values, *snapshot.constants.values(), *tensors)
        _, number = self.objective.weighed(index, program.recording.result(loss, weight), batch, deferred)
        found = SavedBatch(program, number, tensors, [tensor._version for tensor in tensors], list(activations))
        if (known := self._graphs.get(index)) is not None:
            if known.takes(program, found.activations):
                known.update(found.activations)
            else:
                known = self._graphs[index] = self._captured(found, known.pool)
            found.program, found.activations = known.program, known.activations
        return found

    def _captured(self, batch: SavedBatch, pool: Pool) -> Captured:
        """A batch's product as graphs, which are captured when they are first used."""
        given = [*batch.tensors, *batch.program.recording.constants()]
        return Captured(batch.program, batch.activations, given, pool)

    def _recording(self, batch: Any, snapshot: Snapshot) -> Recording:
        key, tensors = shape_of(batch)
        for recording in self._recordings:
            if recording.is_for(snapshot, key, tensors):
                return recording
        if self._by_batch and len(self._recordings) >= self.objective.batch_count():
            raise DataChanged
        with self.objective.evaluating():
            self._recordings.append(recorded(self.objective, snapshot, batch, self._frozen))
        return self._recordings[-1]

    def _program(self, batch: Any, snapshot: Snapshot, level: int) -> tuple[Program, list[Tensor]]:
        recording = self._recording(batch, snapshot)
        if self.level is not None:
            level = self._within(recording.levels)
        key = (id(recording), level)
        if key not in self._programs:
            self._programs[key] = eager(recording, level)
        return self._programs[key], shape_of(batch)[1]

    def _within(self, levels: Sized) -> int:
        """The level in use, or the last one that there is for batches of a shape."""
        return min(self.level or 0, len(levels) - 1)

    # --- making it faster ---------------------------------------------------------------------------------------

    @property
    def operations(self) -> int:
        """Number of operations in the recorded graphs."""
        return sum(recording.operations for recording in self._recordings)

    def resume(self, form: str, *, together: int, whole: bool, level: int | None) -> None:
        """Takes the form that was chosen in an earlier process. Raises what the first product and a change raise."""
        self(self._vector())
        if form == "compiled":
            self.compile(whole, level)
        elif form != "eager":
            self.capture()
        self.together = together

    def compile(self, whole: bool | None = None, level: int | None = None) -> None:
        """Has Inductor compile the recordings: `apply`, and `prepare` unless all activations are saved.

        whole: whether they are; level: of what is saved of each batch. None: as it is now, which free memory decides
        and rounding depends on. Raises whatever it raises; `undo` then goes back.
        """
        self._refuse_single()
        saved = self._saved
        complete = saved is not None and saved.complete if whole is None else whole
        self.compiled_whole = complete
        if level is None:
            level = 0 if saved is None else max((b.program.level for b in saved.batches.values()), default=0)
        self.level = level
        compiled = {}
        for recording in self._recordings:
            chosen = self._within(recording.levels)
            prepare, apply = recording.halves(chosen, for_compiler=True)
            first = prepare if complete else torch.compile(prepare, dynamic=False)
            second = torch.compile(apply, dynamic=False)
            compiled[id(recording), chosen] = Program(recording, chosen, first, second, vectorised(apply))
        self._programs, self._saved, self.together, self.form = compiled, None, 1, "compiled"
        self(self._vector())

    def capture(self) -> None:
        """Replays `apply` as CUDA graphs, one for each batch, all of which must be saved. For CUDA devices only.

        Raises what a capture raises, and RuntimeError where the graphs' memory is beyond the limit.
        """
        self._refuse_single()
        saved, vector = self._saved, self._vector()[:, 0]
        if saved is None or not saved.complete:
            raise RuntimeError("CUDA graphs need the activations of all batches to be saved")
        before, pool = reserved_memory(vector.device), Pool(vector.device)
        graphs = {index: self._captured(batch, pool) for index, batch in saved.batches.items()}
        with exact_arithmetic(self.objective.device), torch.no_grad():
            for graph in graphs.values():
                graph.program.apply(*graph.activations, vector)
        taken = max(reserved_memory(vector.device) - before, 0)
        limit = self._limit
        if limit is None:
            limit = int(SAVED_SHARE * (free_memory(vector.device) + saved.size + taken))
        if saved.size + taken > limit:
            raise RuntimeError(f"CUDA graphs take {readable(taken)} beyond what is saved")
        for index, batch in saved.batches.items():
            batch.program, batch.activations = graphs[index].program, graphs[index].activations
        self._graphs, self._graph_bytes = graphs, taken
        self.together, self.form = 1, _CUDA_GRAPH

    def _refuse_single(self) -> None:
        if self._by_batch:
            raise RuntimeError("recorded batch by batch, each for its own values only")

    def undo(self) -> None:
        """Back to the eager form."""
        self._programs, self._saved, self._graphs = {}, None, {}
        self.together, self.form, self.level = 1, "eager", None

    def relieve(self) -> bool:
        """Takes less memory from now on: fewer vectors together; then of each batch the least that can be saved without
        expensive recomputing; then half as many bytes, then none. False where that is so already."""
        if self.form == _CUDA_GRAPH:  # which has memory of its own
            self.undo()
        elif self.together > 1:
            self.together //= 2
        elif self._limit == 0:
            return False
        else:
            self._limit, self._reliefs = self._less()
            self._saved = None
        return True

    def _less(self) -> tuple[int, int]:
        """The next limit of what is saved, and how many of its steps that is."""
        held = 0 if self._saved is None else self._saved.size
        if self._reliefs == 0:
            least = held if self._saved is None or self.level is not None else self._saved.least()
            return (least, 1) if least < held else (held // 2, 2)
        return (self._limit // 2, 2) if self._reliefs == 1 and self._limit is not None else (0, 3)

    def _vector(self) -> Tensor:
        return torch.ones(self.objective.space.n, 1, dtype=self.objective.dtype, device=self.objective.device)

    def vectorise(self, columns: int) -> int:
        """Measures how many of so many vectors are best computed together, and does so from now on.

        Doubles the number while the cost of a vector falls and the intermediate values fit the memory limit.
        """
        self.together = 1
        if self._saved is None or not self._saved.batches:
            return 1
        batch, n, device = next(iter(self._saved.batches.values())), self.objective.space.n, self.objective.device
        # About as much as is saved where nothing is repeated.
        each, limit = batch.program.recording.levels[0].size, self._limit or SAVED_SHARE * free_memory(device)
        # Of its own: the global one may still be held by a capture that has failed.
        generator = torch.Generator(device).manual_seed(0)
        with exact_arithmetic(device), torch.no_grad():
            row = torch.randn(1, n, generator=generator, dtype=self.objective.dtype, device=device)
            best = _fastest(lambda: self._apply(batch, row), device)
            expected = self._apply(batch, row)
            together, activations = batch.program.apply_columns, batch.activations
            size = 2
            while size <= columns and size * each <= limit:
                try:
                    rows = torch.cat([row.flip(1).expand(size - 1, n), row])
                    difference = relative_difference(together(activations, rows)[-1:], expected)
                    cost = _fastest(lambda rows=rows: together(activations, rows), device) / size  # type: ignore[misc]
                except (RuntimeError, MemoryError):  # an operation without a batching rule, or too little memory
                    break
                if cost > _MAX_COST_RATIO * best or difference > _MAX_DIFFERENCE_TOGETHER:
                    break
                self.together, best, size = size, cost, 2 * size
        self.join(self.together)
        return self.together

    def join(self, together: int) -> None:
        """Computes so many vectors together from now on, at most as many as `vectorise` has found."""
        self.together = together
        for graph in self._graphs.values():
            graph.forget(together)

    def describe(self) -> str:
        """The plan in one line."""
        saved = self._saved
        form = f"{self.form}, recorded batch by batch" if self._by_batch else self.form
        if saved is None:
            return f"linearized, {form}"
        lower = sum(batch.program.level > 0 for batch in saved.batches.values())
        partly = f"; of {lower} of them only in part" if lower else ""
        held = f"activations of {len(saved.batches)} of {saved.count} batches saved ({readable(saved.size)}{partly})"
        together = f", {self.together} vectors together" if self.together > 1 else ""
        graphs = f", graphs of {readable(self._graph_bytes)}" if self._graphs else ""
        return f"linearized, {form}, {held}{graphs}{together}"


def _fastest(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of a few runs."""
    best = float("inf")
    for _ in range(_TIMINGS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
