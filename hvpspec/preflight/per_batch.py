"""What the matrices of single batches add to the time of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hvpspec.options import BatchOptions
from hvpspec.results.preflight import Preflight

_HVPS_FOR_AN_END = 8  # of a batch's spectrum, as measured
_HVPS_FOR_BOTH = 12
_SECONDS_PER_STEP = 5e-3  # of an estimator besides a product


@dataclass(frozen=True)
class PerBatch:
    """How many batches are looked at, of how many, and the products with one of them each: expected, and at most."""

    batches: int
    of: int
    expected_hvps: int
    most_hvps: int


def planned_per_batch(of: int, asked: BatchOptions) -> PerBatch:
    """The products that are expected for so many batches."""
    batches = min(of, asked.max_batches)
    most = asked.budget(batches)
    each = _HVPS_FOR_BOTH if asked.which == "BE" else _HVPS_FOR_AN_END
    return PerBatch(batches, of, min(each * batches, most), most)


def with_per_batch(known: Preflight, plan: PerBatch) -> Preflight:
    """The preflight with the time that these take. A product with one batch takes its part of one with all."""
    if known.seconds is None or known.expected_seconds is None or known.most_seconds is None:
        return known
    # Each batch has graphs of its own, which its first product makes: about one product more.
    one = known.seconds / plan.of
    expected = (plan.expected_hvps + plan.batches) * one + plan.expected_hvps * _SECONDS_PER_STEP
    most = (plan.most_hvps + plan.batches) * one + plan.most_hvps * _SECONDS_PER_STEP
    return replace(
        known, expected_seconds=known.expected_seconds + expected, most_seconds=known.most_seconds + most
    )  # fmt: skip
