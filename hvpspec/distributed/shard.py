"""Which positions of the long vectors a rank has, and the inner products of vectors that are spread over ranks.

Estimators are the same functions on one rank and on many: each rank runs them with its own part of every long vector.
Small numbers are the same on all of them, because all of them come from sums over the ranks. Such a sum is made where
an inner product is (`hvpspec.krylov.vectors`), and with vectors that are whole none is: `sharded` says which it is.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvpspec.distributed.group import Group, shares
from hvpspec.errors import InputError
from hvpspec.system.undoing import scoped

WHOLE_BYTES = 1 << 30  # of whole vectors that a product begins with; with its results and sums it has several such sets

P = ParamSpec("P")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Shard:
    """The part of vectors of n numbers that this rank has: positions next to one another, as many as on other ranks."""

    group: Group
    n: int

    def __post_init__(self) -> None:
        if self.n < self.group.size:
            raise InputError(
                f"{self.group.size} ranks are more than the {self.n} parameters; start fewer (--nproc-per-node)."
            )

    @property
    def lengths(self) -> list[int]:
        """Of all ranks' parts."""
        return shares(self.n, self.group.size)

    @property
    def rows(self) -> range:
        """The positions of this rank's part."""
        start = sum(self.lengths[: self.group.rank])
        return range(start, start + self.lengths[self.group.rank])

    def part(self, whole: Tensor) -> Tensor:
        """This rank's rows of a whole vector (n, …)."""
        return whole[self.rows.start : self.rows.stop]

    def whole(self, part: Tensor) -> Tensor:
        """The whole vectors (n, b) of which each rank gives its rows. On every rank; n b numbers are received."""
        return self.group.wire.finish(self.group.wire.gathered(part, self.lengths))

    def whole_array(self, part: NDArray[Any]) -> NDArray[Any]:
        """`whole` for an array, on the CPU."""
        device = "cuda" if self.group.backend == "nccl" else "cpu"
        return self.whole(torch.from_numpy(np.ascontiguousarray(part)).to(device)).cpu().numpy()

    def added_part(self, whole: Tensor) -> Tensor:
        """This rank's rows of the sum over the ranks of `whole` (n, b)."""
        return self.group.wire.finish(self.group.wire.summed(whole, 1.0, self.lengths))

    def together(self, dtype: torch.dtype) -> int:
        """How many whole vectors, which a product needs of each of its columns, a rank has at once at most."""
        return max(WHOLE_BYTES // (self.n * dtype.itemsize), 1)


_current: ContextVar[Shard | None] = ContextVar("shard", default=None)


@contextlib.contextmanager
def sharded(shard: Shard | None) -> Iterator[None]:
    """Inner products are of vectors of which each rank has its rows; None: of whole vectors.

    An error that leaves this on one rank alone is told to the others.
    """
    with scoped(_current, shard):
        try:
            yield
        except BaseException as error:
            if shard is not None:
                shard.group.leave(error)
            raise


def over_ranks(estimator: Callable[P, Result]) -> Callable[P, Result]:
    """For a function of an operator, its first argument: with the vectors as that has them."""

    @functools.wraps(estimator)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        operator: Any = args[0] if args else next(iter(kwargs.values()), None)
        shard = getattr(getattr(operator, "spread", operator), "shard", None)
        if shard is None:
            return estimator(*args, **kwargs)
        if (callback := kwargs.get("callback")) is not None:  # what it raises on one rank is raised on all
            kwargs["callback"] = lambda found: shard.group.together(lambda: callback(found))  # type: ignore[operator]
        with sharded(shard):
            shard.group.same("options", repr(_plain(args[1:], kwargs)))
            return estimator(*args, **kwargs)

    return call


def _plain(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Options that must be the same on all ranks, as what is asked for depends on them."""
    named = [*enumerate(args), *sorted(kwargs.items())]
    kinds = (bool, int, float, str, tuple)
    return [(name, value) for name, value in named if isinstance(value, kinds) and name not in ("journal", "verbose")]


def added(parts: Tensor) -> Tensor:
    """The sum over the ranks where vectors are spread over them; the same numbers where they are whole."""
    shard = _current.get()
    return parts if shard is None or not parts.numel() else shard.group.added(parts)


def largest(numbers: Tensor) -> Tensor:
    """The largest over the ranks of each number, in float64; infinite where one is NaN."""
    shard = _current.get()
    if shard is None:
        return numbers
    return shard.group.largest(torch.nan_to_num(numbers.double(), nan=torch.inf, posinf=torch.inf, neginf=-torch.inf))


def whole(part: Tensor) -> Tensor:
    """The whole vectors (n, b) of which this is a rank's part."""
    shard = _current.get()
    return part if shard is None else shard.whole(part)


def part(whole: Tensor) -> Tensor:
    """A rank's rows of whole vectors (n, b)."""
    shard = _current.get()
    return whole if shard is None else shard.part(whole)


def rows_of(n: int) -> range:
    """The positions that this rank has of vectors of n numbers."""
    shard = _current.get()
    return range(n) if shard is None else shard.rows
