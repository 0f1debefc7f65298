"""A preflight under a time limit takes a third of it at most: on so many batches as that allows, and no longer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from hvpspec.operators.hessian import HessianOperator
from hvpspec.options import Engine
from hvpspec.oracle import Chooser
from hvpspec.results.preflight import Finding, Preflight
from hvpspec.system.time_limit import OutOfTime, clock, interruptible, time_left, time_limit
from hvpspec.wording import counted

_SHARE = 1 / 3  # of the time that is left
# In gradients: one, and five products in three passes, of each batch; differences of the first one in float64.
_GRADIENTS_PER_BATCH, _GRADIENTS_OF_FIRST = 11.0, 30.0


def within_share(inspected: Callable[[list[Preflight]], Preflight], known: Preflight) -> Preflight:
    """What `inspected` returns; or, where it is ended at its share of the time, what was known by then.

    inspected: adds to the list that it is given what it knows after each step. known: beforehand.
    """
    so_far = [known]
    try:
        with time_limit(_SHARE * time_left(), alarm=True), interruptible():
            return inspected(so_far)
    except OutOfTime:
        found = "the checks took the third of the time limit that is theirs"
        finding = Finding("out_of_time", found, "what is not mentioned here was not checked", "note")
        return replace(so_far[-1], findings=(*so_far[-1].findings, finding))


def affordable_part(H: HessianOperator, gradient: Callable[[HessianOperator], object]) -> HessianOperator:
    """The operator itself, or one on the first batches alone where all take longer than the time that is left.

    gradient: computes one, to be timed.
    """
    if math.isinf(time_left()):
        return H
    first, batches = _on_first_batches(H, 1), H.batch_count()
    start = clock()
    gradient(first)
    each = max(clock() - start, 1e-9)
    affordable = (time_left() / each - _GRADIENTS_OF_FIRST) / _GRADIENTS_PER_BATCH
    return H if affordable >= batches else _on_first_batches(H, max(int(affordable), 1))


def _on_first_batches(H: HessianOperator, count: int) -> HessianOperator:
    """By double backward, or by finite differences; its products need not be verified."""
    part = copy.copy(H)
    part.objective = H.objective.with_(data=list(islice(H.objective.data, count)))
    engine: Engine = "finite-difference" if H.engine == "finite-difference" else "autograd"
    part._product, part.hvps = Chooser(part.objective, engine, verified=True), 0
    return part


def made_on_part(H: HessianOperator, part: HessianOperator) -> list[Finding]:
    """A finding on checks that are made on a part of the data."""
    if part is H:
        return []
    found = (
        f"checks of all {counted(H.batch_count(), 'batch', 'batches')} would take more than a third of the time limit"
    )
    first = "first one" if part.batch_count() == 1 else f"first {part.batch_count():,}"
    return [Finding("part_of_data", found, f"they are made on the {first} alone", "note")]


def for_all_data(H: HessianOperator, part: HessianOperator, known: Preflight) -> Preflight:
    """Seconds of a part as those of all data. Memory is not known from that."""
    if part is H:
        return known
    scale = H.batch_count() / part.batch_count()

    def scaled(seconds: float | None) -> float | None:
        return None if seconds is None else scale * seconds

    return replace(
        known, seconds=scaled(known.seconds), expected_seconds=scaled(known.expected_seconds),
        most_seconds=scaled(known.most_seconds), expected_memory=None, most_memory=None,
    )  # fmt: skip
