"""What an engine keeps of each batch between products: the activations, as many as memory allows.

Of each batch there are several levels of what to save (`splitting.choices`). Where not all batches fit at the first
one, what costs the least time for its bytes is given up first: activations that are cheap to recompute, or those of
whole batches. Saved activations belong to the model's values and the data at one moment; changes of either are
detected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from hvpspec.kernels.comparison import same
from hvpspec.kernels.deferred import Deferred
from hvpspec.memory import free_memory
from hvpspec.objective.batches import numbered
from hvpspec.objective.live_model import versions
from hvpspec.objective.losses.conventions import NoWeight
from hvpspec.objective.objective import Objective
from hvpspec.objective.parameters import Snapshot
from hvpspec.oracle.recorded.splitting import Choice
from hvpspec.oracle.recorded.tracing import Program, shape_of

SAVED_SHARE = 0.4  # of the free memory, for saved activations, where no limit is given


class DataChanged(Exception):
    """A pass over the data gave other batches than the one before, so that nothing may be saved."""


@dataclass
class SavedBatch:
    """A batch with its activations. `versions` count the writes to the batch's tensors, at the time of saving."""

    program: Program
    weight: float
    tensors: list[Tensor]
    versions: list[int]
    activations: list[Tensor]

    def is_of(self, batch: Any, deferred: Deferred | None) -> bool:
        """Whether this is the same batch, by value."""
        return same(shape_of(batch)[1], self.tensors, deferred)

    def written_to(self) -> bool:
        """Whether the batch's tensors, which may be the user's own, have been written to since."""
        return any(tensor._version != version for tensor, version in zip(self.tensors, self.versions, strict=True))


class Preparing(Protocol):
    """What computes activations."""

    def choices(self, batch: Any, snapshot: Snapshot) -> Sequence[Choice]:
        """What there is to choose of what is saved of a batch, from the most to nothing."""

    def prepare(self, index: int, batch: Any, snapshot: Snapshot, level: int, deferred: Deferred | None) -> SavedBatch:
        """The batch with its activations; level: the number of one of the choices."""


class SavedActivations:
    """The saved batches for one snapshot of the model.

    limit: bytes that they may take; None allows a share of the free memory. like: what was saved for other values,
    whose choices and places are taken over.
    """

    def __init__(
        self, objective: Objective, snapshot: Snapshot, limit: int | None, like: SavedActivations | None = None
    ) -> None:
        self.snapshot = snapshot
        self._versions = versions(objective.model)
        self.batches: dict[int, SavedBatch] = {}
        self.size = 0  # bytes
        self.count: int | None = None  # batches in all, once a pass has ended
        self.total_weight = 0.0
        self._objective, self._limit = objective, limit
        self._levels = None if like is None else {index: b.program.level for index, b in like.batches.items()}

    @property
    def complete(self) -> bool:
        """Whether every batch is saved."""
        return self.count is not None and len(self.batches) == self.count

    def valid(self, deferred: Deferred | None = None) -> bool:
        """Whether model and saved batches have kept their values.

        deferred: is asked to raise Doubtful if the model has not, unless it has been written to: then that is compared
        at once.
        """
        if any(batch.written_to() for batch in self.batches.values()):
            return False
        now = versions(self._objective.model)
        if now == self._versions:
            return self._objective.unchanged(self.snapshot, deferred)
        if not self._objective.unchanged(self.snapshot):
            return False
        self._versions = now
        return True

    def one_pass(self, preparing: Preparing, deferred: Deferred | None) -> Iterator[tuple[int, SavedBatch]]:
        """The number and the activations of each batch of weight > 0; the data are not read where all are saved.

        The caller drops a batch before asking for the next, so that the activations of unsaved batches are freed.
        Raises DataChanged, or has Doubtful raised later.
        """
        if self.complete:
            yield from ((index, saved) for index, saved in sorted(self.batches.items()) if saved.weight > 0)
            return
        limit = self._limit
        if limit is None:
            limit = int(SAVED_SHARE * (free_memory(self._objective.device) + self.size))
        weight, count, known = 0.0, 0, self.total_weight
        for index, batch in numbered(self._objective.data):
            batch = self._objective.moved(index, batch)
            found = self.batches.get(index)
            if found is None:
                level = self._level(index, count, batch, preparing, limit)
                found = preparing.prepare(index, batch, self.snapshot, level or 0, deferred)
                if level is not None:
                    self._save(index, found, limit)
            elif not found.is_of(batch, deferred):
                raise DataChanged
            weight, count = weight + found.weight, count + 1
            if found.weight > 0:
                yield index, found
            del found
        if weight == 0:
            raise NoWeight
        if known and not math.isclose(weight, known, rel_tol=1e-6):
            raise DataChanged
        self.count, self.total_weight = count, weight

    def _level(self, index: int, before: int, batch: Any, preparing: Preparing, limit: int) -> int | None:
        """At which level to save a batch; None: not at all.

        Only in the first pass, where all `before` it are saved. The batches to come are taken to be like this one.
        """
        if self.count is not None or len(self.batches) != before:
            return None
        if self._levels is not None:
            return self._levels.get(index)
        own = _bytes(shape_of(batch)[1])
        *levels, nothing = preparing.choices(batch, self.snapshot)
        options = [*((level.size + own, level.extra) for level in levels), (0, nothing.extra)]
        level = first_of(options, self._objective.batch_count() - before, limit - self.size)
        return level if level < len(levels) else None

    def _save(self, index: int, batch: SavedBatch, limit: int) -> None:
        size = self.bytes_of(batch)
        if self.size + size <= limit or self._levels is not None:
            self.batches[index] = batch
            self.size += size

    def least(self) -> int:
        """Bytes of the saved batches if each were saved at the last level."""
        return sum(b.program.recording.levels[-1].size + _bytes(b.tensors) for b in self.batches.values())

    def bytes_of(self, batch: SavedBatch) -> int:
        """Bytes of a batch and its activations, each storage once, without the model's values and constants."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in batch.activations}
        constants = batch.program.recording.constants()
        there = (*self.snapshot.parameters, *self.snapshot.constants.values(), *constants, *batch.tensors)
        for tensor in there:
            storages.pop(tensor.untyped_storage().data_ptr(), None)
        return sum(storages.values()) + _bytes(batch.tensors)


def first_of(options: Sequence[tuple[int, float]], count: int, limit: int) -> int:
    """Which of the options (bytes, time) to take for the first of so many like batches, the others following suit.

    The options go from the most bytes to none. Those taken are two at most, which take the least time of all that stay
    within the limit, and of which the one with more bytes comes first. Where some batches are not saved, one of them
    needs the room of the first option while it is in use.
    """
    best, first = float("inf"), len(options) - 1
    for high, (most, least_time) in enumerate(options[:-1]):
        for low, (least, most_time) in enumerate(options[high:], high):
            left = limit - count * least - (options[0][0] if low == len(options) - 1 else 0)
            number = count if low == high else min(left // (most - least), count)
            time = number * least_time + (count - number) * most_time
            if left >= 0 and number > 0 and time < best:
                best, first = time, high
    return first


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of a batch: of its entries, as it may be a part of the data that somebody else holds."""
    return sum(tensor.nbytes for tensor in tensors)
