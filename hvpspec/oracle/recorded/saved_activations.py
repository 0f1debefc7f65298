"""What an engine keeps of each batch between products: the activations, for as many batches as memory allows.

Saved activations belong to the model's values and the data at one moment. Changes of either are detected; activations
that are not saved are recomputed for each product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.memory import free_memory
from hvpspec.objective.batches import move
from hvpspec.objective.objective import NO_WEIGHT, Objective
from hvpspec.objective.parameters import Snapshot
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

    def is_of(self, batch: Any) -> bool:
        """Whether this is the same batch, by value."""
        _, tensors = shape_of(batch)
        return len(tensors) == len(self.tensors) and all(
            a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in zip(tensors, self.tensors, strict=True)
        )

    def written_to(self) -> bool:
        """Whether the batch's tensors, which may be the user's own, have been written to since."""
        return any(tensor._version != version for tensor, version in zip(self.tensors, self.versions, strict=True))


class SavedActivations:
    """The saved batches for one snapshot of the model.

    limit: bytes that they may take; None allows a share of the free memory.
    """

    def __init__(self, objective: Objective, snapshot: Snapshot, limit: int | None) -> None:
        self.snapshot = snapshot
        self.batches: dict[int, SavedBatch] = {}
        self.size = 0  # bytes
        self.count: int | None = None  # batches in all, once a pass has ended
        self.total_weight = 0.0
        self._objective, self._limit = objective, limit

    @property
    def complete(self) -> bool:
        """Whether every batch is saved."""
        return self.count is not None and len(self.batches) == self.count

    def valid(self) -> bool:
        """Whether model and saved batches have kept their values."""
        return self._objective.unchanged(self.snapshot) and not any(b.written_to() for b in self.batches.values())

    def one_pass(self, prepare: Callable[[int, Any, Snapshot], SavedBatch]) -> Iterator[tuple[int, SavedBatch]]:
        """The number and the activations of each batch of weight > 0; the data are not read where all are saved.

        prepare: computes the activations of a batch. The caller drops a batch before asking for the next, so that the
        activations of unsaved batches are freed. Raises DataChanged.
        """
        if self.complete:
            yield from ((index, saved) for index, saved in sorted(self.batches.items()) if saved.weight > 0)
            return
        limit = self._limit
        if limit is None:
            limit = int(SAVED_SHARE * (free_memory(self._objective.device) + self.size))
        weight, count, known = 0.0, 0, self.total_weight
        for index, batch in enumerate(self._objective.data):
            batch = move(batch, self._objective.device, self._objective.dtype)
            found = self.batches.get(index)
            if found is None:
                found = prepare(index, batch, self.snapshot)
                self._save(index, found, limit)
            elif not found.is_of(batch):
                raise DataChanged
            weight, count = weight + found.weight, count + 1
            if found.weight > 0:
                yield index, found
            del found
        if weight == 0:
            raise InputError(NO_WEIGHT)
        if known and not math.isclose(weight, known, rel_tol=1e-6):
            raise DataChanged
        self.count, self.total_weight = count, weight

    def _save(self, index: int, batch: SavedBatch, limit: int) -> None:
        """Saves a batch of the first pass, where all before it are saved and its activations fit the limit."""
        size = self.bytes_of(batch)
        # Where not all batches will fit, the others need room too while they are in use.
        room = 0 if size * self._objective.batch_count() <= limit else size
        if self.count is None and len(self.batches) == index and self.size + size + room <= limit:
            self.batches[index] = batch
            self.size += size

    def bytes_of(self, batch: SavedBatch) -> int:
        """Bytes of a batch's activations, each storage once, without those of the model's values."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in batch.activations}
        for tensor in (*self.snapshot.parameters, *self.snapshot.constants.values()):
            storages.pop(tensor.untyped_storage().data_ptr(), None)
        return sum(storages.values())
