"""Probing until the figures asked for are within tolerance: what trace, frobenius_norm and spectrum share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from hvpspec.estimators.options import Tolerance, check_budget, check_seed
from hvpspec.estimators.probes import ProbeSums, probe_steps
from hvpspec.estimators.symmetric import Symmetric, as_symmetric
from hvpspec.results import Estimate

Figure = Literal["trace", "frobenius_norm"]


@dataclass(frozen=True)
class Sampled:
    """The figures so far, and how many products they are expected to need in all."""

    figures: dict[Figure, Estimate]
    expected: int


def sample_steps(
    A: Symmetric, figures: tuple[Figure, ...], tolerance: Tolerance, *, seed: int, max_hvps: int | None
) -> Iterator[Sampled]:
    """The figures as the probes accumulate; ends when all are within tolerance or the budget is spent."""
    already = A.hvps

    def wanted(sums: ProbeSums) -> float:
        return max(_probes_needed(*_interval(sums, figure, tolerance), sums.count, tolerance) for figure in figures)

    for sums in probe_steps(A, seed=seed, max_hvps=max_hvps, wanted=wanted):
        exact = sums.exact_trace is not None
        hvps = A.hvps - already
        estimates = {}
        for figure in figures:
            value, error = _interval(sums, figure, tolerance)
            converged = exact or error <= tolerance.allowed(value)
            method = "exact" if exact else "hutchinson"
            estimates[figure] = Estimate(value, error, tolerance.confidence, converged, hvps, method)
        needed = wanted(sums)
        expected = hvps if exact else min(needed, sums.count + A.n, max_hvps or math.inf)
        yield Sampled(estimates, math.ceil(max(expected, hvps)))
        if all(estimate.converged for estimate in estimates.values()):
            return


def sample(
    A: Any,
    figure: Figure,
    *,
    rtol: float,
    atol: float,
    confidence: float,
    seed: int,
    max_hvps: int | None,
    callback: Callable[[Estimate], None] | None,
) -> Estimate:
    """One figure on its own: see `hvpspec.trace`."""
    tolerance = Tolerance(rtol, atol, confidence)
    operator = as_symmetric(A)
    estimate = None
    for step in sample_steps(operator, (figure,), tolerance, seed=check_seed(seed), max_hvps=check_budget(max_hvps)):
        estimate = step.figures[figure]
        if callback is not None:
            callback(estimate)
    assert estimate is not None
    return estimate


def _interval(sums: ProbeSums, figure: Figure, tolerance: Tolerance) -> tuple[float, float]:
    read = sums.trace if figure == "trace" else sums.frobenius_norm
    return read(tolerance.confidence)


def _probes_needed(value: float, error: float, count: int, tolerance: Tolerance) -> float:
    """Half-widths fall like 1/√probes."""
    allowed = tolerance.allowed(value)
    if error <= allowed:
        return count
    return math.inf if allowed == 0 or count < 2 else count * (error / allowed) ** 2
