"""The products of the folds of the batches, from the products of single ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Receive = Callable[[int, float, Tensor], None]


def fold_of(index: int, folds: int, batches: int) -> int:
    """The number of the fold that a batch is in: neighbouring batches are in the same one."""
    return min(index * folds // batches, folds - 1)


class Folds:
    """Adds up the batches of each fold, in their order.

    close: called with the number, the weight and the sum of w_b H_b X over the batches of each fold, in their order,
    also for those that have none; its memory is used again afterwards.
    """

    def __init__(self, like: Tensor, folds: int, batches: int, close: Receive) -> None:
        self._folds, self._batches, self._close = folds, batches, close
        self._total, self._weight = torch.zeros_like(like), 0.0
        self._fold, self._last, self._closed = 0, -1, 0

    def add(self, index: int, weight: float, product: Tensor | None) -> None:
        """The product (n, b) of batch number `index`; None is zero."""
        if index <= self._last:  # the product is begun again, with another engine or with less memory
            self._fold, self._weight = 0, 0.0
            self._total.zero_()
        self._last = index
        of = fold_of(index, self._folds, self._batches)
        while self._fold < of:
            self._end()
        self._weight += weight
        if product is not None:
            self._total.add_(product, alpha=weight)

    def end(self) -> None:
        """No further batch is to come."""
        while self._fold < self._folds:
            self._end()

    def _end(self) -> None:
        if self._fold == self._closed:  # else it has been given in a pass that was begun again
            self._close(self._fold, self._weight, self._total)
            self._closed += 1
        self._total.zero_()
        self._weight, self._fold = 0.0, self._fold + 1
