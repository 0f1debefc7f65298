"""An operator whose products are in a journal: see `hvpspec.krylov.log.journal`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvpspec.atomic_files import prepare_folder
from hvpspec.errors import InputError
from hvpspec.krylov.by_folds import ByFolds, FoldOf, Reduce
from hvpspec.krylov.log.inputs import inputs_of
from hvpspec.krylov.log.journal import Journal
from hvpspec.krylov.log.records import Answer
from hvpspec.krylov.operator_view import Multiply, Recompute, Symmetric
from hvpspec.options import SpectrumOptions
from hvpspec.results.estimate import Recomputed

_ROUNDOFFS_OF_SAME_PRODUCT = 100  # relative: an operator whose product differs by more is another one

_Compare = Callable[[Tensor, Tensor], None]
Where = str | os.PathLike[str] | Journal


@contextlib.contextmanager
def keeping(
    journal: Where | None, A: Symmetric, options: SpectrumOptions, start: Any = None
) -> Iterator[tuple[Symmetric, Journal | None]]:
    """The operator of a run, with a journal if there is to be one.

    journal: a folder, which gets a journal of this run until that has ended well; or a journal of the caller's, which
    remains open. start: vectors of a warm start.
    """
    if journal is None:
        yield A, None
    elif isinstance(journal, Journal):
        yield journaled(A, journal), journal
        journal.ended()
    else:
        prepare_folder(Path(journal), "journal")
        group = None if A.shard is None else A.shard.group
        with Journal(Path(journal), inputs_of(A, options, start), group=group) as log:
            yield journaled(A, log), log
            log.ended()
            log.finish()


def journaled(A: Symmetric, journal: Journal) -> Symmetric:
    """The operator, with answers from the journal as long as that has them, and written to it from then on.

    Raises InputError where the operator is not the one that the journal was written with.
    """
    journal.bind(A)
    compare = _comparing(A, journal)
    return replace(
        A,
        multiply=_multiplying(A, journal, compare),
        multiply_by_folds=None if A.multiply_by_folds is None else _multiplying_by_folds(A, journal, compare),
        recompute=None if A.recompute is None else _recomputing(A.recompute, journal),
        noise=lambda: journal.noise,
        decide=lambda name, find: int(journal.fact(name, lambda: A.decide(name, find))),
    )


def _comparing(A: Symmetric, journal: Journal) -> _Compare:
    """An operator that cannot say what it depends on shows it by the first product, which is made once more."""
    compared = A.fingerprint is not None or not journal.replaying

    def compare(X: Tensor, recorded: Tensor) -> None:
        nonlocal compared
        if not compared and journal.replaying:
            now = A.multiply(X)
            if not float((now - recorded).norm()) <= _ROUNDOFFS_OF_SAME_PRODUCT * A.unit_roundoff * float(now.norm()):
                raise InputError(
                    f"{journal.folder} was left by an interrupted run with another operator, as a product shows; "
                    "delete that folder to start over."
                )
        compared = True

    return compare


def _multiplying(A: Symmetric, journal: Journal, compare: _Compare) -> Multiply:
    def multiply(X: Tensor, /) -> Tensor:
        product = journal.answer("product", X, lambda: Answer([A @ X])).tensors[0]
        compare(X, product)
        return product

    return multiply


def _multiplying_by_folds(A: Symmetric, journal: Journal, compare: _Compare) -> ByFolds:
    def by_folds(X: Tensor, folds: int, reduce: Reduce, /) -> tuple[Tensor, list[FoldOf]]:
        def compute() -> Answer:
            product, found = A.by_folds(X, reduce)
            parts = [torch.from_numpy(part) for fold in found for part in fold.parts]
            return Answer([product, *parts], {"folds": [[fold.number, fold.weight] for fold in found]})

        answer = journal.answer("folds", X, compute)
        product, *parts = answer.tensors
        compare(X, product)
        numbers, arrays = answer.notes["folds"], [part.numpy() for part in parts]
        each = len(arrays) // max(len(numbers), 1)
        of = [tuple(arrays[each * i : each * (i + 1)]) for i in range(len(numbers))]
        return product, [FoldOf(number, weight, own) for (number, weight), own in zip(numbers, of, strict=True)]

    return by_folds


def _recomputing(again: Recompute, journal: Journal) -> Recompute:
    def recompute(X: Tensor, /) -> tuple[Tensor, Recomputed] | None:
        def compute() -> Answer:
            found = again(X)
            return Answer([]) if found is None else Answer([found[0]], {"how": found[1]})

        answer = journal.answer("recompute", X, compute)
        return (answer.tensors[0], answer.notes["how"]) if answer.tensors else None

    return recompute
