"""How ranks make a product together: each multiplies with its own batches, and the sum is spread over them.

    H x = Σ_r W_r (H_r x) / Σ_r W_r

for the total weight W_r of the batches of rank r. Of each long vector a rank has its rows alone, except in a product:
x is gathered, multiplied as in one process, and of the sum each rank gets its rows.
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hvpspec.distributed.group import Group
from hvpspec.distributed.shard import Shard
from hvpspec.errors import LostRank
from hvpspec.objective.losses.conventions import NoWeight
from hvpspec.objective.losses.loss import LossValue
from hvpspec.objective.objective import Objective
from hvpspec.objective.subsets.shares import Share
from hvpspec.operators.parts.checked_ranks import check_alone, check_together
from hvpspec.operators.parts.fold_rounds import FoldRounds
from hvpspec.operators.parts.folds import Folds, Receive, fold_of
from hvpspec.options import Engine
from hvpspec.oracle import Chooser
from hvpspec.results.record import RankList
from hvpspec.system.stops import asked
from hvpspec.system.time_limit import check_time, interruptible
from hvpspec.wording import device_name

OnBatch = Callable[[int, float, Tensor | None], None]
Product = Callable[[Tensor, OnBatch], Tensor]


class Ranks:
    """The ranks that share an objective's data and its vectors. `share` is this rank's."""

    def __init__(self, group: Group, objective: Objective, engine: Engine) -> None:
        assert isinstance(objective.data, Share)
        check_alone(group, objective)
        self.group, self.shard = group, Shard(group, objective.space.n)
        self._objective, self._share, self._engine = objective, objective.data, engine
        self._settled = False
        self.noise = 0.0  # the largest of the ranks', of products by finite differences
        self._numbers: list[list[int]] | None = None
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
        """This rank's rows of the product, for its rows of the vectors.

        Few columns at a time where vectors are long: all ranks have them whole during the product. While some are
        multiplied, the next ones come in, and the sums of the last ones go out.
        """
        wire, parts = self.group.wire, torch.split(columns, self.shard.together(columns.dtype), 1)
        sums = []
        with self._wired():
            self.group.together(_check_stops)
            coming = wire.gathered(parts[0], self.shard.lengths)
            for after in (*parts[1:], None):
                whole = wire.finish(coming)
                if after is not None:
                    coming = wire.gathered(after, self.shard.lengths)
                own, weight = self._own(product, whole, lambda *batch: None)
                total = self._total(weight)
                sums.append((wire.summed(own, weight, self.shard.lengths), total))
                del whole, own
            found = [wire.finish(each).div_(total) for each, total in sums]
        return found[0] if len(found) == 1 else torch.cat([each.T for each in found]).T

    def whole(self, product: Product, columns: Tensor) -> Tensor:
        """The product with whole vectors, which all ranks have."""
        own, weight = self._own(product, columns, lambda *batch: None)
        total = self._total(weight)
        return self.group.added(own * weight) / total

    def local_by_folds(self, product: Product, columns: Tensor, folds: int, receive: Receive) -> Tensor:
        """As `local`; `receive` gets this rank's rows of the product of each fold of all ranks' batches.

        The product is the sum over the folds, whose parts each rank has sent already.
        """
        with self._wired():
            whole = self._gathered(columns)
            rounds = FoldRounds(self.shard, self._folds_of_ranks(folds), columns, receive)
            parts = Folds(whole, folds, self.batch_count, rounds.close)

            def end() -> None:
                parts.end()
                rounds.end()

            self._own(product, whole, parts.add, end)
        if rounds.weight == 0:
            raise NoWeight
        return rounds.total.div_(rounds.weight)

    def _folds_of_ranks(self, folds: int) -> list[list[int]]:
        """Those that each rank has batches of."""
        return [
            sorted({fold_of(number, folds, self.batch_count) for number in numbers})
            for numbers in self.batches_of_ranks()
        ]

    def batches_of_ranks(self) -> list[list[int]]:
        """The numbers of each rank's batches; to be called on all of them the first time."""
        if self._numbers is None:
            said = self.group.told(json.dumps(list(self._share.numbering)))
            self._numbers = [json.loads(numbers) for numbers in said]
        return self._numbers

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

    @contextlib.contextmanager
    def _wired(self) -> Iterator[None]:
        """Where an error ends this, nothing remains under way, which what comes next might take for its own."""
        try:
            yield
        except BaseException as error:
            on_all = isinstance(error, NoWeight) or (self.group.knows(error) and not isinstance(error, LostRank))
            self.group.wire.drain() if on_all else self.group.wire.drop()  # other ranks may not send their part
            raise

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
        check_together(self.group, self._objective, self._share, self._engine)
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
            self.group.wire.advance()
            with self.group.passing_on():
                on_batch(*batch)

        def work() -> Tensor:
            found = torch.zeros_like(whole)
            with self._agreeing(product):
                if self._share.numbers:
                    with interruptible(), contextlib.suppress(NoWeight):
                        found = product(whole, each)
                elif isinstance(product, Chooser):
                    product.attend(whole.shape[1])
            end()
            return found

        try:
            found = self.group.together(work)
        except BaseException:
            if isinstance(product, Chooser):
                product.reopen()
            raise
        return found, self._objective.weight if self._share.numbers else 0.0

    def _agreeing(self, product: Product) -> contextlib.AbstractContextManager[None]:
        """Around a product, before which ranks may change the engine."""
        if not isinstance(product, Chooser):
            return contextlib.nullcontext()

        def tell(own: Any) -> list[Any]:
            return [json.loads(words) for words in self.group.told(json.dumps(own))]

        return product.agreeing(tell, counts=bool(self._share.numbers) and self._objective.weight > 0)

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
        with self._counted(columns):
            return self._ranks.local(self._product, columns)

    def multiply_by_folds(self, columns: Tensor, folds: int, receive: Receive) -> Tensor:
        """The same; `receive` gets its rows of each fold's product."""
        with self._counted(columns):
            return self._ranks.local_by_folds(self._product, columns, folds, receive)

    @contextlib.contextmanager
    def _counted(self, columns: Tensor) -> Iterator[None]:
        """Around a product: where it fails for lack of a rank, the error says which product that was."""
        self._operator.hvps += columns.shape[1]
        try:
            yield
        except LostRank as error:
            error.product = self._operator.hvps
            raise
        self._operator.agree_on_noise()

    def recompute(self, columns: Tensor) -> tuple[Tensor, Any] | None:
        """The product with other rounding errors."""
        return self._ranks.recomputed(self._operator.recompute, columns)

    def fresh(self, columns: Tensor) -> Tensor:
        """The product as the engine autograd computes it now."""
        return self._ranks.local(lambda X, on_batch: self._operator.fresh(X), columns)
