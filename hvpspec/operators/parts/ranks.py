"""How ranks make a product together: each multiplies with its own batches, and the sum is spread over them.

    H x = Σ_r W_r (H_r x) / Σ_r W_r

for the total weight W_r of the batches of rank r. Of each long vector a rank has its rows alone, except in a product:
x is gathered, multiplied as in one process, and of the sum each rank gets its rows.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable
from importlib import metadata
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from hvpspec.distributed.group import Group
from hvpspec.distributed.shard import Shard
from hvpspec.objective.losses.conventions import NoWeight
from hvpspec.objective.losses.loss import LossValue
from hvpspec.objective.objective import Objective
from hvpspec.objective.subsets.shares import Share
from hvpspec.operators.fingerprint import digest_of_data, digest_of_model
from hvpspec.operators.parts.folds import Folds, Receive
from hvpspec.results.record import RankList
from hvpspec.system.stops import asked
from hvpspec.system.time_limit import check_time, interruptible
from hvpspec.wording import device_name

OnBatch = Callable[[int, float, Tensor | None], None]
Product = Callable[[Tensor, OnBatch], Tensor]


class Ranks:
    """The ranks that share an objective's data and its vectors. `share` is this rank's."""

    def __init__(self, group: Group, objective: Objective) -> None:
        assert isinstance(objective.data, Share)
        self.group, self.shard = group, Shard(group, objective.space.n)
        self._objective, self._share = objective, objective.data
        self._settled = False
        self._described: RankList | None = None

    @property
    def batch_count(self) -> int:
        """Of all ranks."""
        return self._share.of

    @property
    def has_data(self) -> bool:
        """Whether this rank has batches."""
        return bool(self._share.numbers)

    def local(self, product: Product, columns: Tensor) -> Tensor:
        """This rank's rows of the product, for its rows of the vectors."""
        whole = self._gathered(columns)
        own, weight = self._own(product, whole, lambda *batch: None)
        total = self._total(weight)
        return self.shard.added_part(own * weight) / total

    def whole(self, product: Product, columns: Tensor) -> Tensor:
        """The product with whole vectors, which all ranks have."""
        own, weight = self._own(product, columns, lambda *batch: None)
        total = self._total(weight)
        return self.group.added(own * weight) / total

    def local_by_folds(self, product: Product, columns: Tensor, folds: int, receive: Receive) -> Tensor:
        """As `local`; `receive` gets this rank's rows of the product of each fold of all ranks' batches.

        The product is the sum over the folds, each of which has been spread over the ranks already.
        """
        whole = self._gathered(columns)
        found, all_weights = torch.zeros_like(columns), 0.0

        def close(fold: int, weight: float, total: Tensor) -> None:
            nonlocal all_weights
            together = sum(self.group.met(weight))
            part = self.shard.added_part(total)
            if together > 0:
                all_weights += together
                found.add_(part)
                receive(fold, together, part / together)

        parts = Folds(whole, folds, self.batch_count, close)
        self._own(product, whole, parts.add, parts.end)
        if all_weights == 0:
            raise NoWeight
        return found / all_weights

    def recomputed(
        self, again: Callable[[Tensor], tuple[Tensor, Any] | None], columns: Tensor
    ) -> tuple[Tensor, Any] | None:
        """What `HessianOperator.recompute` returns, of all ranks' batches and for this rank's rows."""
        self.settle()
        whole = self._gathered(columns)
        has_data = bool(self._share.numbers)
        found = self.group.together(lambda: again(whole) if has_data else (torch.zeros_like(whole), "float64"))
        known = self.group.told("" if found is None else found[1])
        if found is None or "" in known:
            return None
        weight = self._objective.weight if has_data else 0.0
        product = found[0].to(torch.float64) * weight
        how = "float64" if set(known) == {"float64"} else "other rounding"
        return self.shard.added_part(product) / self._total(weight), how

    def _gathered(self, columns: Tensor) -> Tensor:
        """The whole vectors; where a rank was interrupted since the last product, all are."""
        self.group.together(_check_stops)
        return self.shard.whole(columns)

    def described(self) -> RankList:
        """Who they are; to be called on all of them the first time."""
        if self._described is None:
            devices = self.group.told(device_name(self._objective.device))
            hosts = self.group.told(platform.node())
            self._described = RankList(self.group.size, self.group.backend, len(set(hosts)), tuple(devices))
        return self._described

    def settle(self) -> LossValue | None:
        """Agrees on what the loss is a mean over, and on its total weight. Costs what measuring that costs, once.

        Returns this rank's loss where it was evaluated for that; None afterwards, and where the rank has no data.
        """
        if self._settled:
            return None
        self._compare()
        has_data, objective = bool(self._share.numbers), self._objective

        def counting() -> str:
            if has_data:
                objective.settle()
            return repr(objective.counting) if has_data else ""

        found = set(self.group.told(self.group.together(counting)))
        if len(found - {""}) > 1:
            self._share.measures_whole = True
            objective.unsettle()
            self.group.together(counting)
        own = self.group.together(lambda: self._value() if has_data else None)
        objective.is_part_of(self._total(0.0 if own is None else own.weight))
        self.described()
        self._settled = True
        return own

    def loss(self) -> LossValue:
        """The loss on the batches of all ranks."""
        # What is found while ranks settle is of the mean: a sum is over the data of all, whose weight is known then.
        again, own = self._settled or self._objective.reduction == "sum", self.settle()
        if again:
            own = self.group.together(lambda: self._value() if self._share.numbers else None)
        own = own or LossValue(0.0, 0.0, 0, 0.0, 0)
        names = ("value", "size")
        value, size = (sum(self.group.met(own.weight * getattr(own, name))) for name in names)
        weight, batches = sum(self.group.met(own.weight)), int(sum(self.group.met(own.batches)))
        samples = self.group.met(-1 if own.samples is None else own.samples)
        if weight == 0:
            raise NoWeight
        return LossValue(value / weight, weight, batches, size / weight, None if -1 in samples else int(sum(samples)))

    def _compare(self) -> None:
        """Raises InputError where ranks were given different things."""
        objective, share = self._objective, self._share
        first = [] if share.whole is None else list(islice(share.whole, 1))
        packages = ("hvpspec", "torch", "numpy")
        options = (objective.matrix, objective.dtype, objective.reduction, objective.noise_seed, objective.device.type)

        def known() -> dict[str, Any]:
            return {
                f"version of {', '.join(packages)}": [metadata.version(name) for name in packages],
                "choice of parameters": repr(objective.space.names),
                "model": digest_of_model(objective),
                "first batch or number of batches": [share.of * (share.whole is not None), digest_of_data(first)],
                "loss": objective.loss.name,
                "matrix, dtype, reduction, noise seed or kind of device": repr(options),
            }

        for name, value in self.group.together(known).items():
            self.group.same(name, value)

    def _value(self) -> LossValue | None:
        try:
            return self._objective.value()
        except NoWeight:
            return None

    def _own(
        self, product: Product, whole: Tensor, on_batch: OnBatch, end: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, float]:
        """The product with this rank's batches, and their weight."""
        self.settle()

        def each(*batch: Any) -> None:
            check_time()
            _check_stops()
            with self.group.passing_on():
                on_batch(*batch)

        def work() -> Tensor:
            found = torch.zeros_like(whole)
            if self._share.numbers:
                with interruptible(), contextlib.suppress(NoWeight):
                    found = product(whole, each)
            end()
            return found

        return self.group.together(work), self._objective.weight if self._share.numbers else 0.0

    def _total(self, weight: float) -> float:
        total = sum(self.group.met(weight))
        if total == 0:
            raise NoWeight
        return total


def _check_stops() -> None:
    if (stop := asked()) is not None:
        raise stop


class Spread:
    """An operator as the estimators see it on a rank: with this rank's rows of the vectors.

    It has of `hvpspec.krylov.operator_view.DataOperator` what takes vectors.
    """

    def __init__(self, ranks: Ranks, product: Product, operator: Any) -> None:
        self.shard = ranks.shard
        self._ranks, self._product, self._operator = ranks, product, operator

    def matmat(self, columns: Tensor) -> Tensor:
        """This rank's rows of the product."""
        self._operator.hvps += columns.shape[1]
        return self._ranks.local(self._product, columns)

    def multiply_by_folds(self, columns: Tensor, folds: int, receive: Receive) -> Tensor:
        """The same; `receive` gets its rows of each fold's product."""
        self._operator.hvps += columns.shape[1]
        return self._ranks.local_by_folds(self._product, columns, folds, receive)

    def recompute(self, columns: Tensor) -> tuple[Tensor, Any] | None:
        """The product with other rounding errors."""
        return self._ranks.recomputed(self._operator.recompute, columns)

    def fresh(self, columns: Tensor) -> Tensor:
        """The product as the engine autograd computes it now."""
        return self._ranks.local(lambda X, on_batch: self._operator.fresh(X), columns)
