"""The fast engine: each batch is recorded once, and what does not depend on the vector is computed once and saved.

See `tracing` for the recording and `saved_activations` for what is saved. The model's values are compared with the
saved ones before each product; where they have changed, all activations are recomputed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sized
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvpspec.kernels.torch_kernels import EXCLUSIVE, exact_arithmetic
from hvpspec.memory import free_memory, readable
from hvpspec.objective.objective import Objective
from hvpspec.objective.parameters import Snapshot
from hvpspec.oracle.agreement import relative_difference
from hvpspec.oracle.autograd import OnBatch
from hvpspec.oracle.recorded.recordings import recorded
from hvpspec.oracle.recorded.saved_activations import SAVED_SHARE, DataChanged, SavedActivations, SavedBatch
from hvpspec.oracle.recorded.splitting import Choice
from hvpspec.oracle.recorded.tracing import Program, Recording, eager, shape_of, vectorised

_MAX_COST_RATIO = 0.95  # of a vector among twice as many together: worth it below
_MAX_DIFFERENCE_TOGETHER = 1e-3  # relative, between a product computed with others and by itself
_TIMINGS = 3


class Linearized:
    """H @ V for one objective: eager, compiled by Inductor, or replayed as CUDA graphs (`form` says which).

    memory_limit: bytes for saved activations; None allows a share of what is free. Raises NotRecordable at the first
    product.
    """

    def __init__(self, objective: Objective, *, memory_limit: int | None = None) -> None:
        self.objective = objective
        self.form = "eager"
        self._limit = memory_limit
        self._recordings: dict[Hashable, Recording] = {}
        self._programs: dict[tuple[Hashable, int], Program] = {}  # for a shape of batch, at a level
        self._saved: SavedActivations | None = None
        self._frozen: tuple[Hashable, ...] | None = None
        self.together = 1  # vectors that are computed together
        self.level: int | None = None  # of what is saved, when compiled; None: of each batch, what memory allows
        self.compiled_whole = False  # whether all activations were saved when it was compiled
        self._reliefs = 0  # steps by which less is saved than the limit allowed at first

    # --- the product --------------------------------------------------------------------------------------------

    def __call__(self, columns: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        """H @ columns, shape (n, b). Raises NotRecordable, InputError and whatever an operation raises.

        `on_batch` is told of all batches again when the data turn out to have changed.
        """
        try:
            return self._product(columns, on_batch)
        except DataChanged:
            self._limit, self._saved = 0, None  # from now on everything is computed from the batches of each pass
            return self._product(columns, on_batch)

    def _product(self, columns: Tensor, on_batch: OnBatch | None) -> Tensor:
        rows = (columns.clone() if columns.is_inference() else columns).T.contiguous()
        total: Tensor | None = None
        with exact_arithmetic(self.objective.device), torch.no_grad():
            with EXCLUSIVE:  # while another thread evaluates the model, its values may be moved or in another precision
                saved = self._current()
            for index, batch in saved.one_pass(self):
                product, weight = self._apply(batch, rows), batch.weight
                del batch  # unless its activations are saved, they are freed before the next batch's are computed
                if on_batch is not None:
                    on_batch(index, weight, product.T)
                total = product * weight if total is None else total.add_(product, alpha=weight)
        assert total is not None  # data without weight are refused
        return total.div_(saved.total_weight).T

    def _apply(self, batch: SavedBatch, rows: Tensor) -> Tensor:
        program, activations = batch.program, batch.activations
        if self.together > 1 and len(rows) > 1:
            return torch.cat([program.apply_columns(activations, part) for part in torch.split(rows, self.together)])
        if len(rows) == 1:
            return program.apply(*activations, rows[0])[None]
        return torch.stack([program.apply(*activations, row) for row in rows])

    def _current(self) -> SavedActivations:
        """What is saved for the model's present values; empty where these or saved batches have changed."""
        frozen = self.objective.frozen_values()
        if frozen != self._frozen:
            if self._frozen is not None:  # numbers that the recordings hold have changed
                self._recordings, self._programs, self._saved = {}, {}, None
                self.form, self.level = "eager", None
            self._frozen = frozen
        if self._saved is None or not self._saved.valid():
            self._saved = SavedActivations(self.objective, self.objective.snapshot(), self._limit)
        return self._saved

    def choices(self, batch: Any, snapshot: Snapshot) -> list[Choice]:
        """What there is to choose of what is saved of a batch, from the most to nothing."""
        recording = self._recording(batch, snapshot)
        levels = recording.levels if self.level is None else [recording.levels[self._within(recording.levels)]]
        return [*levels, recording.nothing]

    def prepare(self, index: int, batch: Any, snapshot: Snapshot, level: int) -> SavedBatch:
        """A batch with its activations; level: the number of one of the `choices`."""
        program, tensors = self._program(batch, snapshot, level)
        values = [p.detach() for p in snapshot.parameters]
        activations, loss, weight = program.prepare(*values, *snapshot.constants.values(), *tensors)
        _, number = self.objective.weighed(index, program.recording.result(loss, weight), batch)
        return SavedBatch(program, number, tensors, [tensor._version for tensor in tensors], list(activations))

    def _recording(self, batch: Any, snapshot: Snapshot) -> Recording:
        key, _ = shape_of(batch)
        if key not in self._recordings:
            with self.objective.evaluating():
                self._recordings[key] = recorded(self.objective, snapshot, batch, self._frozen)
        return self._recordings[key]

    def _program(self, batch: Any, snapshot: Snapshot, level: int) -> tuple[Program, list[Tensor]]:
        key, tensors = shape_of(batch)
        recording = self._recording(batch, snapshot)
        if self.level is not None:
            level = self._within(recording.levels)
        if (key, level) not in self._programs:
            self._programs[key, level] = eager(recording, level)
        return self._programs[key, level], tensors

    def _within(self, levels: Sized) -> int:
        """The level in use, or the last one that there is for batches of a shape."""
        return min(self.level or 0, len(levels) - 1)

    # --- making it faster ---------------------------------------------------------------------------------------

    @property
    def operations(self) -> int:
        """Number of operations in the recorded graphs."""
        return sum(recording.operations for recording in self._recordings.values())

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
        saved = self._saved
        complete = saved is not None and saved.complete if whole is None else whole
        self.compiled_whole = complete
        if level is None:
            level = 0 if saved is None else max((b.program.level for b in saved.batches.values()), default=0)
        self.level = level
        compiled = {}
        for key, recording in self._recordings.items():
            chosen = self._within(recording.levels)
            prepare, apply = recording.halves(chosen, for_compiler=True)
            first = prepare if complete else torch.compile(prepare, dynamic=False)
            second = torch.compile(apply, dynamic=False)
            compiled[key, chosen] = Program(recording, chosen, first, second, vectorised(apply))
        self._programs, self._saved, self.together, self.form = compiled, None, 1, "compiled"
        self(self._vector())

    def capture(self) -> None:
        """Replays `apply` as CUDA graphs, one for each batch, all of which must be saved. For CUDA devices only."""
        from hvpspec.oracle.recorded.cuda_graph import capture

        if self._saved is None or not self._saved.complete:
            raise RuntimeError("CUDA graphs need the activations of all batches to be saved")
        vector = self._vector()[:, 0]
        with exact_arithmetic(self.objective.device), torch.no_grad():
            for batch in self._saved.batches.values():
                program = batch.program
                replay = capture(program.apply, batch.activations, vector)
                batch.program = replace(program, apply=replay)
        self.together, self.form = 1, "CUDA graph"

    def undo(self) -> None:
        """Back to the eager form."""
        self._programs, self._saved, self.together, self.form, self.level = {}, None, 1, "eager", None

    def relieve(self) -> bool:
        """Takes less memory from now on: fewer vectors together; then of each batch the least that can be saved without
        expensive recomputing; then half as many bytes, then none. False where that is so already."""
        if self.form == "CUDA graph":  # which has memory of its own
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
        batch, n, device = self._saved.batches[0], self.objective.space.n, self.objective.device
        # About as much as is saved where nothing is repeated.
        each, limit = batch.program.recording.levels[0].size, self._limit or SAVED_SHARE * free_memory(device)
        with exact_arithmetic(device), torch.no_grad():
            row = torch.randn(1, n, dtype=self.objective.dtype, device=device)
            best = _fastest(lambda: self._apply(batch, row), device)
            expected = self._apply(batch, row)
            together, activations = batch.program.apply_columns, batch.activations
            size = 2
            while size <= columns and size * each <= limit:
                rows = torch.cat([torch.randn_like(row).expand(size - 1, n), row])
                try:
                    difference = relative_difference(together(activations, rows)[-1:], expected)
                    cost = _fastest(lambda rows=rows: together(activations, rows), device) / size  # type: ignore[misc]
                except (RuntimeError, MemoryError):  # an operation without a batching rule, or too little memory
                    break
                if cost > _MAX_COST_RATIO * best or difference > _MAX_DIFFERENCE_TOGETHER:
                    break
                self.together, best, size = size, cost, 2 * size
        return self.together

    def describe(self) -> str:
        """The plan in one line."""
        saved = self._saved
        if saved is None:
            return f"linearized, {self.form}"
        lower = sum(batch.program.level > 0 for batch in saved.batches.values())
        partly = f"; of {lower} of them only in part" if lower else ""
        held = f"activations of {len(saved.batches)} of {saved.count} batches saved ({readable(saved.size)}{partly})"
        together = f", {self.together} vectors together" if self.together > 1 else ""
        return f"linearized, {self.form}, {held}{together}"


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
