"""Some of the batches of a data set: a random sample, drawn once and the same in every pass, or the first ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from hvpspec.objective.batches import Batches, check_data, frozen, number_of
from hvpspec.validation import check_count, check_seed

_SECONDS_UNTIL_SAID = 5.0


class SampledBatches(Batches):
    """Some of the batches, in their own order; no others are kept. `sample_batches` draws them.

    numbers: theirs among all `of` batches. seed: that they were drawn with.
    """

    def __init__(self, data: Iterable[Any], numbers: Sequence[int], of: int, seed: int) -> None:
        super().__init__(data)
        self.numbers, self.of, self.seed = tuple(numbers), of, seed

    def __len__(self) -> int:
        return len(self.numbers)

    def _read(self) -> Iterator[Any]:
        if isinstance(self._data, (list, tuple)):
            yield from (self._data[number] for number in self.numbers)
            return
        if (loader := _loader_of(self._data, self.numbers)) is not None:
            yield from loader
            return
        chosen = set(self.numbers)
        for number, batch in enumerate(self._data):
            if number in chosen:
                yield batch
            if number == self.numbers[-1]:
                return

    def frozen(self) -> SampledBatches:
        """The same with copies of the batches of one pass, for data that change from pass to pass."""
        return SampledBatches(frozen(self), range(len(self)), self.of, self.seed)


def sample_batches(data: Iterable[Any], count: int, *, seed: int = 0) -> SampledBatches:
    """A random sample of the batches, without replacement: data for a quick look at a large data set.

    Parameters
    ----------
    data : iterable of batches
        As for `hvpspec.HessianOperator`. Of a list, and of a DataLoader that goes through a map-style data set in its
        order, no other batch is loaded; of anything else, a pass goes on to the last one that was drawn.
    count : int
        How many are drawn; all of them where there are no more.
    seed : int, default 0
        Of the draw.

    Returns
    -------
    SampledBatches
        An iterable of the batches that were drawn, in their order, with ``len()``; ``numbers`` has their positions and
        ``of`` the number of all batches.

    Raises
    ------
    InputError
        For data that cannot be iterated over repeatedly, and for a count that is not a whole number ≥ 1.

    Notes
    -----
    An eigenvalue's ``data_error``, and ``eigenpairs.population``, then say what is known of all data of that kind.
    Where `data` are all that matters, a sample of a share p of them has a standard error √(1 − p) times as large.

    Examples
    --------
    >>> import hvpspec
    >>> drawn = hvpspec.sample_batches([10, 20, 30, 40, 50], 2, seed=1)
    >>> len(drawn), drawn.of, list(drawn) == list(drawn)
    (2, 5, True)
    """
    count, seed = check_count("count", count), check_seed(seed)
    of = number_of(check_data(data))
    numbers = np.random.default_rng(seed).permutation(of)[:count]
    return SampledBatches(data, sorted(map(int, numbers)), of, seed)


class FirstBatches(Batches):
    """The first batches of each pass, at most `count`: data need not end."""

    def __init__(self, data: Iterable[Any], count: int) -> None:
        super().__init__(check_data(data))
        self.count = count

    def __len__(self) -> int:
        return min(self.count, super().__len__())

    def _read(self) -> Iterator[Any]:
        return islice(super()._read(), self.count)


class WatchedBatches(Batches):
    """Batches whose number is not known: after a few seconds of the first pass, it is said how many there were.

    say: is given the sentence.
    """

    def __init__(self, data: Iterable[Any], say: Callable[[str], object]) -> None:
        super().__init__(check_data(data))
        self._say: Callable[[str], object] | None = say

    def _read(self) -> Iterator[Any]:
        start = time.monotonic()
        for number, batch in enumerate(super()._read()):
            if self._say is not None and time.monotonic() - start > _SECONDS_UNTIL_SAID:
                self._say(
                    f"{number:,} batches were read so far, and the data do not say how many there are; if they do not "
                    "end, --max-batches N uses the first N."
                )
                self._say = None
            yield batch
        self._say = None


def has_length(data: Any) -> bool:
    """Whether data know how many batches they have."""
    try:
        return len(data) >= 0
    except Exception:  # it has none, whatever it raises to say so
        return False


def _loader_of(data: Iterable[Any], numbers: Sequence[int]) -> DataLoader[Any] | None:
    """A DataLoader of these batches alone, where their samples are known; None for other data."""
    if type(data) is not DataLoader or isinstance(data.dataset, IterableDataset):
        return None
    sampler = data.batch_sampler
    if type(sampler) is not BatchSampler or type(sampler.sampler) is not SequentialSampler:
        return None
    size, samples = sampler.batch_size, len(sampler.sampler)
    batches = [list(range(size * number, min(size * (number + 1), samples))) for number in numbers]
    return DataLoader(
        data.dataset, batch_sampler=batches, num_workers=data.num_workers, collate_fn=data.collate_fn,
        pin_memory=data.pin_memory, timeout=data.timeout, worker_init_fn=data.worker_init_fn,
        multiprocessing_context=data.multiprocessing_context, generator=data.generator,
    )  # fmt: skip
