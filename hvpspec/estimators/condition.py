"""The conditioning on its own: one pass for every figure, and further random vectors where sums need them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hvpspec.bounds.quadrature import quadrature_error, read_density
from hvpspec.errors import InputError
from hvpspec.estimators.condition_figures import read_condition
from hvpspec.estimators.eigsh import Wanted
from hvpspec.estimators.refine import refined
from hvpspec.estimators.shared_pass import OnePass
from hvpspec.estimators.spectrum import Pass
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.lanczos import Krylov
from hvpspec.options import QUANTITIES
from hvpspec.results.condition import Condition
from hvpspec.results.density import Density
from hvpspec.results.spectrum import Progress
from hvpspec.validation import (
    Tolerance,
    check_budget,
    check_count,
    check_damping,
    check_rank_threshold,
    check_seed,
)


def condition(
    A: Any,
    *,
    damping: float = 0.0,
    k: int = 10,
    rtol: float = 0.01,
    sums_rtol: float | None = None,
    counts_rtol: float | None = None,
    refine: bool = False,
    refine_k: int = 1,
    refine_hvps: int = 500,
    rank_threshold: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    tol: float = 1e-3,
    basis_memory: int | str | None = None,
    basis_on: str = "device",
    callback: Callable[[Progress], None] | None = None,
) -> Condition:
    """How well conditioned A + damping · I is, and what that means; every figure with its error or as a bound.

    A: HessianOperator, SciPy LinearOperator, sparse or dense array, or torch tensor, of shape (n, n).
    damping: δ ≥ 0. Effective dimension, log-determinant and an upper bound on the condition number need A + δI to be
        definite.
    sums_rtol: go on with further random vectors until effective dimension and log-determinant are known to this
        relative half-width; by default they are what the pass for the other figures gives. Those vectors narrow the
        number and the mass of negative eigenvalues and the rank as well.
    counts_rtol: go on until those are known to this: the counts as a share of n, the mass of the larger of itself and
        ‖A‖₂. Further vectors are given more steps where it takes steps. Where eigenvalues crowd around zero, that is
        dear: up to n products.
    refine: look for the `refine_k` eigenvalues of A + δI nearest to 0 by inverse iteration with MINRES, with at most
        `refine_hvps` products beyond the others, and none where the others have found them already; they are `refined`,
        and sharpen `nearest_zero` and `kappa`.
    rank_threshold: the numerical rank counts |λ| above it; by default n · 2ε · ‖A‖₂.
    k, rtol, confidence, seed, max_hvps, tol, basis_memory, basis_on, callback: as for `hvpspec.spectrum`, whose
        products these are: it costs the same, and `spectrum(A, damping=…).condition` comes free with it.

    Raises InputError for options out of range or an operator that is not symmetric.
    """
    check_damping(damping)
    for name, rtol_of in (("sums_rtol", sums_rtol), ("counts_rtol", counts_rtol)):
        if rtol_of is not None and Tolerance(rtol_of).rtol == 0:
            raise InputError(f"{name} must be > 0.")
    refine_k, refine_hvps = check_count("refine_k", refine_k), check_count("refine_hvps", refine_hvps)
    threshold, budget = check_rank_threshold(rank_threshold), check_budget(max_hvps)
    storage = check_storage(basis_memory, basis_on)
    run = Pass(
        A, Wanted(k, "LM", tol), Tolerance(rtol, 0.0, confidence), check_seed(seed), budget, QUANTITIES, False, storage,
        None, callback, damping, afterwards=refine_hvps if refine else 0,
    )  # fmt: skip
    found = run.go()
    if found.density is None:
        raise InputError(f"max_hvps={max_hvps} leaves no product for the density; give it more.")

    one, density = run.one, found.density
    others: list[Krylov] = []
    known = _read(run, density, threshold, others)
    steps, already = len(one.krylov.of_start.T), one.hvps
    while not _reached(known, sums_rtol, counts_rtol):
        if counts_rtol is not None and quadrature_error(density) > density.error / 3:
            steps *= 2
        if one.hvps - already + steps > one.A.n:  # the whole space is cheaper, where it fits
            steps = one.A.n
        left = None if budget is None else budget - one.hvps
        if left is not None and left < steps:
            break
        one_more = OnePass(one.A, seed=seed, storage=storage, probes=False, first_draw=one.krylov.drawn + len(others))
        steps = min(steps, one_more.capacity)
        for _ in range(steps):
            one_more.extend(1)
        one_more.krylov.basis.release()
        others.append(one_more.krylov)
        density = _shared_density(run, others)
        known = _read(run, density, threshold, others)
        if callback is not None:
            seconds, hvps = run.known.seconds, one.hvps
            callback(Progress("effective dimension", hvps, None, replace(run.known, hvps=hvps, seconds=seconds)))
        if one.hvps - already >= one.A.n:
            break
    if not refine:
        return known
    return refined(known, one, k=refine_k, budget=refine_hvps, tol=tol, seed=seed, report=run.refining)


def _read(run: Pass, density: Density, threshold: float | None, others: list[Krylov]) -> Condition:
    return read_condition(
        run.one, density, confidence=run.tolerance.confidence, damping=run.damping, rank_threshold=threshold,
        pairs=run.known.eigenpairs, others=tuple(others),
    )  # fmt: skip


def _shared_density(run: Pass, others: list[Krylov]) -> Density:
    """From all spaces that have half as many steps as the longest one, or more: shorter ones would blur that."""
    confidence = run.tolerance.confidence
    spaces = [run.one.krylov, *others]
    longest = max(len(krylov.of_start.T) for krylov in spaces)
    used = [krylov for krylov in spaces if 2 * len(krylov.of_start.T) >= longest]
    return read_density(used, confidence, run.one.hvps, run.one.sums(confidence))


def _reached(known: Condition, sums_rtol: float | None, counts_rtol: float | None) -> bool:
    fine = True
    if sums_rtol is not None:
        sums = (known.effective_dimension, known.log_determinant)
        fine = all(figure is None or figure.error <= sums_rtol * max(abs(figure.value), 1.0) for figure in sums)
    if counts_rtol is not None:
        counts, mass = (known.negative, known.rank), known.negative_mass
        fine &= all(figure.error <= counts_rtol * known.parameters for figure in counts)
        fine &= mass.error <= counts_rtol * max(mass.value, known.norm.upper)
    return fine
