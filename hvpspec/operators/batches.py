"""Operators of single batches, which share model, loss and engine with the operator of all of them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Self

from hvpspec.errors import InputError
from hvpspec.objective.batches import numbered
from hvpspec.objective.objective import NO_WEIGHT, Objective
from hvpspec.operators.tensors import TensorOperator
from hvpspec.oracle import Chooser


class OverBatches(TensorOperator):
    """An operator that is the mean of those of its batches, by their weights."""

    objective: Objective
    hvps: int
    _product: Chooser

    def batch_count(self) -> int:
        """Number of batches of the data.

        Returns
        -------
        int
            Counted in a pass over the data where no pass has been made and the data have no length.
        """
        return self.objective.batch_count()

    def batch_operators(self, numbers: Collection[int]) -> Iterator[tuple[int, float, Self]]:
        """The operators of single batches, for one pass over the data.

        Parameters
        ----------
        numbers : collection of int
            Of the batches, from 0.

        Yields
        ------
        tuple of int, float and operator
            The batch's number, its weight, and the operator of that batch alone; of a weight of 0, this operator
            instead. Each makes its products by the engine in use, costs nothing before the first one, and is to be
            dropped before the next one is asked for, so that what it saves is freed.
        """
        for number, batch in numbered(self.objective.data):
            if number not in numbers:
                continue
            alone = self.objective.on_batch(number, batch)
            try:
                weight = alone.value().weight
            except InputError as error:
                if str(error) != NO_WEIGHT:
                    raise
                yield number, 0.0, self
                continue
            yield number, weight, self._on(alone)

    def _on(self, objective: Objective) -> Self:
        """The same operator for other data, by the engine in use."""
        one = copy.copy(self)
        one.objective, one._product, one.hvps = objective, self._product.on(objective), 0
        return one
