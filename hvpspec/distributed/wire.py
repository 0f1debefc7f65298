"""Long vectors on their way between ranks: in buckets, of which some are under way while the caller computes.

Buckets are sent in the order in which they were asked for, which is the same on all ranks, and never in one that a
clock or a rank's own data decide. So the sums are the same to the last bit, however fast anyone is.
"""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from hvpspec.errors import InputError, LostRank

BUCKET_BYTES = 32 << 20  # that a rank sends to all others together, or receives, at once
MOST_UNDER_WAY = 4  # buckets

_Posted = tuple[dist.Work, Callable[[], None]]  # a bucket under way, and what is to be done when it has arrived


@dataclass
class Transfer:
    """Vectors on their way. found: where they are, once `Wire.finish` has returned."""

    found: Tensor
    buckets: Iterator[_Posted]
    under_way: int = 0
    is_sent: bool = False


class Wire:
    """What one rank sends and receives. handle: of the process group; None for all of its ranks."""

    def __init__(self, handle: dist.ProcessGroup | None) -> None:
        self._handle = handle
        self._rank, self._size = dist.get_rank(handle), dist.get_world_size(handle)
        self._waiting: deque[Transfer] = deque()
        self._under_way: deque[tuple[Transfer, dist.Work, Callable[[], None]]] = deque()
        self._failure: Exception | None = None
        self.bytes_sent = 0  # of this rank, in collectives of long vectors

    # --- what is sent ---

    def gathered(self, part: Tensor, lengths: Sequence[int]) -> Transfer:
        """Begins to send the parts of all ranks to all: (length, b) each, found one after the other, as (n, b)."""
        whole = part.new_empty(part.shape[1], sum(lengths))
        return self._begin(whole.T, self._gathering(part, lengths, whole))

    def summed(self, whole: Tensor, factor: float, lengths: Sequence[int]) -> Transfer:
        """Begins to add `factor` times `whole` (n, b) over the ranks; found are this rank's rows of the sum."""
        found = whole.new_zeros(whole.shape[1], lengths[self._rank])
        if whole.is_cuda:
            return self._begin(found.T, self._adding(whole, factor, lengths, found))
        return self._begin(found.T, self._spreading(whole, factor, lengths, [found] * self._size))

    def spread(self, whole: Tensor | None, lengths: Sequence[int], into: Sequence[Tensor | None]) -> Transfer:
        """Begins to send each rank its rows of `whole` (n, b), where this rank has something to send.

        into: for each rank, what its rows (b, length) are added to; None where that rank sends nothing.
        """
        found = next(each for each in into if each is not None)
        return self._begin(found, self._spreading(whole, 1.0, lengths, into))

    # --- when it is sent ---

    def advance(self) -> None:
        """Takes what has arrived and sends what there is room for, without waiting; what fails then is raised later."""
        if self._failure is not None:
            return
        try:
            while self._under_way and self._under_way[0][1].is_completed():
                self._take()
            self._send()
        except Exception as error:
            self._failure = error

    def finish(self, transfer: Transfer) -> Tensor:
        """What has been sent, once it is all there."""
        if (error := self._failure) is not None:
            self._failure = None
            raise error
        while transfer.under_way or not transfer.is_sent:
            self._send()
            if self._under_way:
                self._take()
        return transfer.found

    def drain(self) -> None:
        """Waits for all that was begun, which all ranks have begun."""
        self._failure = None
        while self._waiting or self._under_way:
            self._send()
            if self._under_way:
                self._take()

    def drop(self) -> None:
        """Waits for nothing any more: a rank is lost.

        The end of the process would wait too, when it destroys a process group that has something under way. So it
        does not destroy this one.
        """
        if self._under_way:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._handle or dist.group.WORLD))
        self._waiting.clear()
        self._under_way.clear()
        self._failure = None

    def _begin(self, found: Tensor, buckets: Iterator[_Posted]) -> Transfer:
        transfer = Transfer(found, buckets)
        self._waiting.append(transfer)
        self._send()
        return transfer

    def _send(self) -> None:
        while self._waiting and len(self._under_way) < MOST_UNDER_WAY:
            transfer = self._waiting[0]
            posted = next(transfer.buckets, None)
            if posted is None:
                transfer.is_sent = True
                self._waiting.popleft()
            else:
                transfer.under_way += 1
                self._under_way.append((transfer, *posted))

    def _take(self) -> None:
        transfer, work, arrived = self._under_way.popleft()
        transfer.under_way -= 1
        with answering():
            work.wait()
        arrived()

    # --- buckets ---

    def _pieces(self, lengths: Sequence[int], columns: int, itemsize: int) -> Iterator[slice]:
        """Rows of each rank's part that make up a bucket together."""
        rows, most = max(BUCKET_BYTES // (self._size * columns * itemsize), 1), max(lengths)
        return (slice(start, min(start + rows, most)) for start in range(0, most, rows))

    def _gathering(self, part: Tensor, lengths: Sequence[int], whole: Tensor) -> Iterator[_Posted]:
        columns = part.shape[1]
        for piece in self._pieces(lengths, columns, part.element_size()):
            own = part.new_zeros(columns, piece.stop - piece.start)
            rows = part[piece]
            own[:, : len(rows)] = rows.T
            every = part.new_empty(self._size * columns, own.shape[1])
            with answering():
                work = dist.all_gather_single(every, own, group=self._handle, async_op=True)
            self.bytes_sent += (self._size - 1) * own.nbytes
            yield work, partial(_place, every.view(self._size, columns, -1), whole, piece, lengths)

    def _adding(self, whole: Tensor, factor: float, lengths: Sequence[int], found: Tensor) -> Iterator[_Posted]:
        """By NCCL, which adds on the way. (gloo would send all of it to all ranks, which is twice as much.)"""
        columns = whole.shape[1]
        for piece in self._pieces(lengths, columns, whole.element_size()):
            parts = whole.new_zeros(self._size, columns, piece.stop - piece.start)
            for part, start, length in zip(parts, _starts(lengths), lengths, strict=True):
                rows = whole[start : start + length][piece]
                torch.mul(rows.T, factor, out=part[:, : len(rows)])
            own = whole.new_empty(columns, parts.shape[2])
            with answering():
                work = dist.reduce_scatter_single(own, parts.view(-1, own.shape[1]), group=self._handle, async_op=True)
            self.bytes_sent += (self._size - 1) * own.nbytes
            yield work, partial(_keep, own, found, piece)

    def _spreading(
        self, whole: Tensor | None, factor: float, lengths: Sequence[int], into: Sequence[Tensor | None]
    ) -> Iterator[_Posted]:
        """By sending each rank its rows, which adds them in the order of the ranks."""
        target = next(each for each in into if each is not None)
        columns = len(target)
        for piece in self._pieces(lengths, columns, target.element_size()):
            widths = [max(min(piece.stop, length) - piece.start, 0) * columns for length in lengths]
            sent = [0] * self._size if whole is None else widths
            taken = [0 if each is None else widths[self._rank] for each in into]
            parts, every = target.new_empty(sum(sent)), target.new_empty(sum(taken))
            if whole is not None:
                for part, start, length in zip(torch.split(parts, sent), _starts(lengths), lengths, strict=True):
                    rows = whole[start : start + length][piece]
                    torch.mul(rows.T, factor, out=part.view(columns, -1))
            with answering():
                work = dist.all_to_all_single(every, parts, taken, sent, group=self._handle, async_op=True)
            self.bytes_sent += (sum(sent) - sent[self._rank]) * target.element_size()
            yield work, partial(_add, torch.split(every, taken), into, piece)


def _starts(lengths: Sequence[int]) -> list[int]:
    return list(accumulate(lengths, initial=0))[:-1]


def _place(every: Tensor, whole: Tensor, piece: slice, lengths: Sequence[int]) -> None:
    for part, start, length in zip(every, _starts(lengths), lengths, strict=True):
        rows = whole[:, start : start + length][:, piece]
        rows.copy_(part[:, : rows.shape[1]])


def _keep(own: Tensor, found: Tensor, piece: slice) -> None:
    rows = found[:, piece]
    rows.copy_(own[:, : rows.shape[1]])


def _add(parts: Sequence[Tensor], into: Sequence[Tensor | None], piece: slice) -> None:
    for part, total in zip(parts, into, strict=True):
        if total is not None:
            rows = total[:, piece]
            rows.add_(part.view(rows.shape))


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Raises LostRank where a collective fails, as it does where one of the ranks has ended."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        raise LostRank(None, str(error)) from None
