"""The logs that another number of ranks has left, read by position: what they hold of the rows that this rank has now.

Inner products add in another order on another number of ranks, so that a run asks for vectors that are equal up to
rounding only, and would soon ask for quite others: a Lanczos vector that is off by a roundoff makes the following ones
off by more and more. So the vectors of the logs are taken as well, in place of those that are asked for. Each is then
made from vectors and products that are the same to the last bit, and off by its own rounding alone.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvpspec.distributed.alone import Alone
from hvpspec.distributed.group import Group, shares
from hvpspec.krylov.log.log_file import Header, LogFile
from hvpspec.krylov.log.records import ANSWERS, PRODUCTS, Answer, on_device_of, read
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.krylov.vectors import column_inner_of_part
from hvpspec.wording import counted

# Of the length of a vector: how far the one that is asked for may be from that of the log. Vectors that are made from
# the same ones to the last bit were off by 5 at most, and a product's own error is taken to be 50.
_ROUNDOFFS_OF_SAME_VECTOR = 16
_ROUNDOFFS_OF_SAME_PRODUCT = 1000  # of its length: sums over the batches are in another order


@dataclass(frozen=True)
class Left:
    """What a number of ranks has left in a folder: records of answers that all of them have, and products in these.

    spent: seconds until the last one. checked: the answers whose products are made again, to compare them.
    """

    ranks: int
    answers: int
    products: int
    spent: float
    checked: tuple[int, ...]

    @property
    def who(self) -> str:
        return f"{self.ranks} ranks" if self.ranks > 1 else "one process"


def log_path(folder: Path, rank: int, ranks: int) -> Path:
    """The log of one rank."""
    return folder / (f"rank-{rank}.log" if ranks == 1 else f"rank-{rank}-of-{ranks}.log")


def left_by_others(folder: Path, ranks: int, form: str) -> tuple[Left, Mapping[str, Any]] | None:
    """What holds most products, of all that numbers of ranks other than this one have left; with its inputs.

    form: of the logs, as their first record names it.
    """
    numbers = {_ranks_in(path.stem) for path in folder.glob("rank-0*.log")} - {None, ranks}
    found = [left for number in numbers if number is not None and (left := _left(folder, number, form)) is not None]
    return max(found, key=lambda each: each[0].products, default=None)


def remove_others(folder: Path, ranks: int) -> None:
    """Removes the logs of other numbers of ranks."""
    for path in folder.glob("rank-*.log"):
        if _ranks_in(path.stem) != ranks:
            path.unlink(missing_ok=True)


def _ranks_in(stem: str) -> int | None:
    """The number of ranks in the name of a log."""
    _, _, number = stem.partition("-of-")
    return int(number) if number.isdecimal() else None if number else 1


def _left(folder: Path, ranks: int, form: str) -> tuple[Left, Mapping[str, Any]] | None:
    with contextlib.ExitStack() as opened:
        headers: list[list[Header]] = []
        try:
            for rank in range(ranks):
                log = LogFile(log_path(folder, rank, ranks), only_read=True)
                opened.callback(log.close)
                headers.append(list(log.headers()))
        except OSError:
            return None
    first = headers[0][0] if headers[0] else {}
    if first.get("format") != form or not isinstance(first.get("inputs"), dict):
        return None
    whole = headers[0][1 : min(map(len, headers))]
    answers = [header for header in whole if header.get("kind") in ANSWERS]
    products = sum(int(header["columns"]) for header in answers if header["kind"] in PRODUCTS)
    checked = tuple({0, random.randrange(len(answers))}) if answers else ()
    spent = float(whole[-1].get("spent", 0.0)) if whole else 0.0
    return Left(ranks, len(answers), products, spent, checked), first["inputs"]


class OtherRanks:
    """The answers that other ranks have left, in their order, for this rank's positions of the vectors.

    A: the operator, whose products some of them are compared with. taken: products that were taken over so far. Raises
    OSError where a log cannot be read.
    """

    def __init__(self, folder: Path, left: Left, A: Symmetric, ranks: Group | Alone) -> None:
        self.left, self.taken = left, 0
        self._A, self._ranks, self._at = A, ranks, 0
        self._parts: list[tuple[LogFile, slice]] = []  # each log, and which of its positions are this rank's
        rows, start = range(A.n) if A.shard is None else A.shard.rows, 0
        try:
            for rank, length in enumerate(shares(A.n, left.ranks)):
                if rows.start < start + length and start < rows.stop:
                    own = slice(max(rows.start - start, 0), min(rows.stop - start, length))
                    self._parts.append((LogFile(log_path(folder, rank, left.ranks), only_read=True), own))
                start += length
        except OSError:
            self.close()
            raise

    @classmethod
    def opened(cls, folder: Path, left: Left, A: Symmetric, ranks: Group | Alone) -> OtherRanks | None:
        """None where a rank cannot read what it needs."""
        found = None
        with contextlib.suppress(OSError):
            found = cls(folder, left, A, ranks)
        if ranks.least(found is not None):
            return found
        if found is not None:
            found.close()
        return None

    def said(self) -> str:
        """How much was taken over."""
        return f"{self.taken} of {counted(self.left.products, 'product')} of {self.left.who} were taken over"

    def take(self, kind: str, X: Tensor, number: int) -> tuple[Answer, Header] | None:
        """Answer number `number` and its header, where it is to these vectors, which are overwritten; else None."""
        found = self._next(kind, X.shape[1], number)
        if not self._ranks.least(found is not None):
            return None
        assert found is not None
        vectors, answer, header = found[0].to(X.device), on_device_of(X, found[1]), found[2]
        if not self._equal(X, vectors, _ROUNDOFFS_OF_SAME_VECTOR * self._A.unit_roundoff):
            return None
        checked = number in self.left.checked and kind in PRODUCTS
        before = X.clone() if checked else X
        X.copy_(vectors)
        allowed = _ROUNDOFFS_OF_SAME_PRODUCT * self._A.eps
        if checked and not self._equal(self._A.multiply(X), answer.tensors[0], allowed):
            X.copy_(before)
            return None
        self.taken += X.shape[1] if kind in PRODUCTS else 0
        return answer, header

    def _equal(self, A: Tensor, B: Tensor, allowed: float) -> bool:
        """Whether all columns are, relative to their lengths, which all ranks have parts of."""
        squares = self._ranks.added(torch.stack([column_inner_of_part(A - B, A - B), column_inner_of_part(B, B)]))
        off, lengths = squares.sqrt().cpu()
        return bool((off <= allowed * lengths).all())

    def close(self) -> None:
        for log, _ in self._parts:
            log.close()
        self._parts = []

    def _next(self, kind: str, columns: int, number: int) -> tuple[Tensor, Answer, Header] | None:
        """Answer number `number`, which is not before the last one: the vectors (n, b), what they gave, and a header.

        None where it is of another kind, or damaged, and after the last one.
        """
        while self._at < number and self._at < self.left.answers:
            for _ in self._next_answers():
                pass
        if self._at >= self.left.answers:
            return None
        vectors, answers, header = list[Tensor](), list[tuple[Answer, slice]](), Header()
        for log, own, header in self._next_answers():
            found = read(log, header) if (header["kind"], header.get("columns")) == (kind, columns) else None
            if found is None:
                return None
            vectors.append(found[0][:, own])
            answers.append((found[1], own))
        if len(answers) < len(self._parts):
            return None
        whole = answers[0][0]
        product = [torch.cat([answer.tensors[0][own] for answer, own in answers])] if whole.tensors else []
        return torch.cat(vectors, 1).T, Answer([*product, *whole.tensors[1:]], whole.notes), header

    def _next_answers(self) -> Iterator[tuple[LogFile, slice, Header]]:
        """The next record of an answer in each log; those that were not read are left behind."""
        self._at += 1
        for log, own in self._parts:
            while (header := log.header()) is not None and header.get("kind") not in ANSWERS:
                log.skip()
            if header is None:
                return
            before = log.records
            yield log, own, header
            if log.records == before:
                log.skip()
