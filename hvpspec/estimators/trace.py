"""The trace by Hutchinson's estimator: the mean of ωᵀAω over random sign vectors ω (doi:10.1080/03610918908812806)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hvpspec.estimators.sampling import sample
from hvpspec.results import Estimate


def trace(
    A: Any,
    *,
    rtol: float = 0.01,
    atol: float = 0.0,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    callback: Callable[[Estimate], None] | None = None,
) -> Estimate:
    """The trace of a symmetric operator (n × n), with an interval that holds it with probability `confidence`.

    A: HessianOperator, SciPy LinearOperator, sparse or dense array, or torch tensor.
    rtol, atol: stop when the half-width is ≤ max(rtol · |trace|, atol). A trace near zero needs an atol.
    seed: of the probes; the same seed gives the same probes on every device.
    max_hvps: the budget; None sets none. Once it is spent, what there is comes back with `converged=False`.
    callback: called with the Estimate so far after each block of 8 probes.

    Costs one HVP a probe, about 2 ‖A − (tr/n) I‖_F² (1.96 / (rtol · tr))² in all. When that is more than n, A is
    multiplied by the n unit vectors instead, and the trace is exact up to rounding.
    Raises InputError for options out of range or an operator that is not symmetric.
    """
    return sample(
        A, "trace", rtol=rtol, atol=atol, confidence=confidence, seed=seed, max_hvps=max_hvps, callback=callback
    )
