"""Operators of single batches, which share model, loss and engine with the operator of all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, Self

from hvpspec.objective.batches import numbered
from hvpspec.objective.losses.conventions import NoWeight
from hvpspec.objective.objective import Objective
from hvpspec.operators.parts.over_engine import OverEngine
from hvpspec.operators.parts.ranks import Ranks, Spread
from hvpspec.oracle import Chooser


class OverBatches(OverEngine):
    """An operator that is the mean of those of its batches, by their weights."""

    objective: Objective
    hvps: int
    _product: Chooser
    _ranks: Ranks | None
    spread: Spread | None
    sharing: int = 1  # ranks that have parts of the long vectors, also where this is the operator of one of them alone

    def batch_count(self) -> int:
        """Number of batches of the data.

        Returns
        -------
        int
            Counted in a pass over the data where no pass has been made and the data have no length.
        """
        return self.objective.batch_count() if self._ranks is None else self._ranks.batch_count

    def agree_on_noise(self) -> None:
        """Of ranks, whose products by finite differences err differently, all take the largest error for theirs."""
        ranks = self._ranks
        if ranks is not None and self._product.engine == "finite-difference":
            ranks.settle()
            own = ranks.group.together(lambda: self._product.noise if ranks.has_data else 0.0)
            ranks.noise = max(ranks.group.met(own))

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on computing as an operator in another process would have; of ranks, to be called on all.

        Parameters
        ----------
        state : dict
            What its `state()` returned.
        """
        super().resume(state)
        self.agree_on_noise()

    def follow(self, known: list[dict[str, Any]] | None) -> None:
        """See `OverEngine`. Of ranks, to be called on all: where one knows of no earlier run, all choose freely."""
        if self._ranks is not None and not all(self._ranks.group.met(float(bool(known)))):
            known = None
        super().follow(known)

    def alone(self) -> Self:
        """The operator of this rank's batches alone, which other ranks know nothing of; itself without ranks."""
        if self._ranks is None:
            return self
        other = copy.copy(self)
        other.sharing, other._ranks, other.spread = self._ranks.group.size, None, None
        return other

    @property
    def ranks(self) -> Ranks | None:
        """The processes that share the work, if it is shared."""
        return self._ranks

    def batch_operators(
        self, numbers: Collection[int]
    ) -> Iterator[tuple[int, Callable[[], tuple[float, Self | None]]]]:
        """The operators of single batches, for one pass over the data. Of ranks, each has those of its own batches.

        Parameters
        ----------
        numbers : collection of int
            Of the batches, from 0.

        Yields
        ------
        tuple of int and callable
            The batch's number, and what gives its weight and the operator of that batch alone, or None where the weight
            is 0. That costs one forward pass of the batch. The operator makes its products by the engine in use, and is
            to be dropped before the next batch is asked for, so that what it saves is freed. Other ranks know nothing
            of it.
        """
        if self._ranks is not None:
            self._ranks.settle()
        return self._of_batches(numbers)

    def _of_batches(self, numbers: Collection[int]) -> Iterator[tuple[int, Callable[[], tuple[float, Self | None]]]]:
        for number, batch in numbered(self.objective.data):
            if number in numbers:
                yield number, partial(self._on_batch, number, batch)
            if number >= max(numbers, default=-1):
                return

    def _on_batch(self, number: int, batch: Any) -> tuple[float, Self | None]:
        objective = self.objective.on_batch(number, batch)
        try:
            weight = objective.value().weight
        except NoWeight:
            return 0.0, None
        one = copy.copy(self.alone())
        one.objective, one._product, one.hvps = objective, self._product.on(objective), 0
        return weight, one
