"""Each rank's share of the batches: neighbouring ones, as many as the others have, and so of few folds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from hvpspec.distributed.group import shares
from hvpspec.errors import InputError
from hvpspec.objective.batches import Batches, check_data, number_of
from hvpspec.objective.subsets.sampled_batches import SampledBatches

_COMPARED_BATCHES = 2  # of all data, with which each rank begins to measure what the loss is a mean over


class Share(SampledBatches):
    """The batches of one rank.

    numbering: their numbers among all `of` batches of the ranks, by which they are named and their noise is drawn.
    numbers: those in the data, which differ where the batches are a sample of these. whole: the batches of all ranks;
    None where each rank has been given its own. measures_whole: see `Evidence`.
    """

    numbering: Sequence[int]

    def __init__(
        self,
        data: Iterable[Any],
        numbering: Sequence[int],
        of: int,
        whole: Iterable[Any] | None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        super().__init__(data, numbering if numbers is None else numbers, of, 0)
        self.numbering = tuple(numbering)
        self.whole = whole
        self.measures_whole = False

    def _read(self) -> Iterator[Any]:
        return iter(self._data) if self.whole is None else super()._read() if self.numbers else iter(())


class Evidence:
    """What shows what the loss is a mean over: the same first batches on each rank, and its own.

    Where ranks have found different things (`measures_whole`), each looks at all batches, as one process would.
    """

    def __init__(self, share: Share) -> None:
        self._share = share

    def __iter__(self) -> Iterator[Any]:
        share = self._share
        if share.whole is None:
            yield from share
        elif share.measures_whole:
            yield from share.whole
        else:
            yield from islice(share.whole, _COMPARED_BATCHES)
            seen = sum(number < _COMPARED_BATCHES for number in share.numbering)
            yield from islice(share, seen, None)


def share_of(data: Iterable[Any], rank: int, size: int) -> Share:
    """The share of a rank. Of a list, and of a DataLoader in the order of its data set, no other batch is loaded.

    Raises InputError for a loader that repeats samples so that all ranks have as many: they would count twice.
    """
    if isinstance(data, Share):
        return data
    data = check_data(data)
    data = data.all_data if type(data) is Batches else data
    if (sampler := _own_sampler(data)) is not None:
        return _given_share(data, sampler, rank, size)
    of = number_of(data)
    lengths = shares(of, size)
    start = sum(lengths[:rank])
    numbering = range(start, start + lengths[rank])
    if isinstance(data, SampledBatches):
        return Share(data.all_data, numbering, of, data, [data.numbers[number] for number in numbering])
    return Share(data, numbering, of, data)


def _given_share(data: Iterable[Any], sampler: DistributedSampler[Any], rank: int, size: int) -> Share:
    if (sampler.num_replicas, sampler.rank) != (size, rank):
        raise InputError(
            f"the data's DistributedSampler is that of rank {sampler.rank} of {sampler.num_replicas}, and this is rank "
            f"{rank} of {size}; leave the sampler out: hvpspec divides the batches among the ranks."
        )
    samples = len(sampler.dataset)  # type: ignore[arg-type]
    if sampler.total_size != samples:
        what = "repeats" if sampler.total_size > samples else "leaves out"
        raise InputError(
            f"the data's DistributedSampler {what} {abs(sampler.total_size - samples)} of {samples} samples so that "
            "all ranks have as many; leave the sampler out: hvpspec divides the batches among the ranks."
        )
    count = number_of(data)
    return Share(data, [rank + size * index for index in range(count)], size * count, None)


def _own_sampler(data: Any) -> DistributedSampler[Any] | None:
    """That of a DataLoader which loads this rank's samples only."""
    loader = getattr(data, "all_data", data)
    sampler = getattr(loader, "sampler", None) if isinstance(loader, DataLoader) else None
    return sampler if isinstance(sampler, DistributedSampler) else None


def all_batches(data: Iterable[Any]) -> Iterable[Any]:
    """Those of all ranks, as far as this one can read them."""
    if not isinstance(data, Share):
        return data
    return data.all_data if data.whole is None else data.whole


def to_measure(data: Iterable[Any]) -> Iterable[Any]:
    """The batches that show what a loss is a mean over."""
    return Evidence(data) if isinstance(data, Share) else data
