"""All figures of one operator, one after the other: eigenpairs by Lanczos, then trace and norm from shared probes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from hvpspec.estimators.eigsh import eigsh_steps
from hvpspec.estimators.options import Tolerance, check_budget, check_count, check_seed
from hvpspec.estimators.sampling import sample_steps
from hvpspec.estimators.symmetric import as_symmetric
from hvpspec.results import Progress, Spectrum


def spectrum(
    A: Any,
    k: int = 10,
    *,
    rtol: float = 0.01,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    tol: float = 1e-3,
    callback: Callable[[Progress], None] | None = None,
) -> Spectrum:
    """Eigenvalues of largest magnitude, trace and Frobenius norm of a symmetric operator, each with its error.

    A: HessianOperator, SciPy LinearOperator, sparse or dense array, or torch tensor, of shape (n, n).
    k: how many eigenpairs (at most n), to a relative residual of `tol`.
    rtol, confidence: of the intervals of the trace and the norm.
    max_hvps: the budget for all figures together (None: none); Lanczos may use half of it, the probes the rest. What
        is not within tolerance by then comes back with `converged=False`.
    callback: called with a Progress after each step; an exception it raises, or Ctrl-C, ends the run, and the last
        Progress holds what was known.

    Raises InputError for options out of range or an operator that is not symmetric.
    """
    check_count("k", k)
    tolerance, seed, budget = Tolerance(rtol, 0.0, confidence), check_seed(seed), check_budget(max_hvps)
    operator = as_symmetric(A)
    start = time.perf_counter()
    known = Spectrum(operator.n, None, None, None, 0, 0.0, complete=False)

    def report(stage: str, expected: int | None, **figures: Any) -> None:
        nonlocal known
        known = replace(known, **figures, hvps=operator.hvps, seconds=time.perf_counter() - start)
        if callback is not None:
            callback(Progress(stage, operator.hvps, expected, known))

    lanczos_budget = None if budget is None else max(1, budget // 2)
    history: list[tuple[int, float]] = []  # products, and the worst relative residual then
    for pairs in eigsh_steps(operator, k, "LM", tol=tol, seed=seed, max_hvps=lanczos_budget):
        if len(pairs.values) == min(k, operator.n):
            worst = np.max(pairs.residuals / np.maximum(np.abs(pairs.values), np.finfo(float).tiny))
            history.append((pairs.hvps, float(worst)))
        report("eigenvalues", _foresee(history, tol, lanczos_budget), eigenpairs=pairs)

    before = operator.hvps
    left = None if budget is None else budget - before
    if left != 0:
        for step in sample_steps(operator, ("trace", "frobenius_norm"), tolerance, seed=seed, max_hvps=left):
            report("trace and norm", before + step.expected, **step.figures)
    known = replace(known, seconds=time.perf_counter() - start, complete=True)
    return known


def _foresee(history: list[tuple[int, float]], tol: float, budget: int | None) -> int | None:
    """When the residuals reach the tolerance, if they go on falling as they have of late; None if they do not fall."""
    if len(history) < 4:
        return None
    (m, now), (m_before, before) = history[-1], history[-1 - len(history) // 2]
    if not 0 < now < before < math.inf or tol <= 0:
        return None
    rate = math.log(before / now) / (m - m_before)
    foreseen = m + math.ceil(max(0.0, math.log(now / tol)) / rate)
    return foreseen if budget is None else min(foreseen, budget)
