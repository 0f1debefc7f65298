"""The sums of the folds on their way from the ranks that have their batches to those that have their rows.

A rank has batches of few folds, and sends what it has of each once: in round t, the sum of its t-th fold, each rank its
own rows of it. While that is under way, the next fold is multiplied.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from hvpspec.distributed.shard import Shard
from hvpspec.distributed.wire import Transfer
from hvpspec.operators.parts.folds import Receive


class FoldRounds:
    """Gives `receive` this rank's rows of each fold's mean, when all of its parts are there.

    folds: those that each rank has batches of, in their order. like: this rank's rows of a product. total, weight: the
    sum over the folds so far.
    """

    def __init__(self, shard: Shard, folds: Sequence[Sequence[int]], like: Tensor, receive: Receive) -> None:
        self._shard, self._folds, self._receive = shard, folds, receive
        self._own = folds[shard.group.rank]
        self._rounds, self._round = max(map(len, folds)), 0
        self._parts = Counter(fold for each in folds for fold in each)  # of each fold, those that are to come
        self._sums: dict[int, Tensor] = {}
        self._weights: defaultdict[int, float] = defaultdict(float)
        self._sent: tuple[list[int | None], list[float], Transfer] | None = None
        self.total, self.weight = torch.zeros_like(like), 0.0

    def close(self, fold: int, weight: float, total: Tensor) -> None:
        """Sends this rank's part of the fold's sum, whose memory may be used again then."""
        if fold in self._own:
            self._begin_round(weight, total.clone())

    def end(self) -> None:
        """Takes part in what other ranks still send."""
        while self._round < self._rounds:
            self._begin_round(0.0, None)
        self._end_round()

    def _begin_round(self, weight: float, total: Tensor | None) -> None:
        weights = self._shard.group.met(weight)  # raises what a rank has raised that sends no more
        self._end_round()
        whose = [folds[self._round] if len(folds) > self._round else None for folds in self._folds]
        for fold in whose:
            if fold is not None and fold not in self._sums:
                self._sums[fold] = self.total.new_zeros(self.total.shape[::-1])
        into = [None if fold is None else self._sums[fold] for fold in whose]
        self._sent = whose, weights, self._shard.group.wire.spread(total, self._shard.lengths, into)
        self._round += 1

    def _end_round(self) -> None:
        if self._sent is None:
            return
        (whose, weights, transfer), self._sent = self._sent, None
        self._shard.group.wire.finish(transfer)
        for fold, weight in zip(whose, weights, strict=True):
            if fold is None:
                continue
            self._weights[fold] += weight
            self._parts[fold] -= 1
            if self._parts[fold] == 0:
                self._give(fold, self._sums.pop(fold).T, self._weights[fold])

    def _give(self, fold: int, total: Tensor, weight: float) -> None:
        if weight > 0:
            self.total += total
            self.weight += weight
            self._receive(fold, weight, total.div_(weight))
