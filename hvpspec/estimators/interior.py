"""The eigenvalues nearest to a point σ inside the spectrum, with error bounds, from products alone.

A Krylov space from random vectors holds the best approximations that its products allow, so it is extended until it
has resolved those eigenvalues, and it also shows that none is missing among them (`hvpspec.bounds.eigenvalues`). Where
memory ends first, they are refined one space of a few vectors after the other, by inverse iteration with MINRES.

A Ritz vector v between eigenvalues on both sides, whose value means nothing, may have any Ritz value. But ‖(A − σI) v‖
is no less than the distance of the nearest eigenvalue that is orthogonal to the others found, so that Ritz pairs are
ordered by it: it is √((θ − σ)² + ‖r‖²).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from hvpspec.bounds.eigenvalues import Exclusion, bracket, isolated_errors, proven_gaps
from hvpspec.bounds.missed import block_shows_all_copies, none_nearer
from hvpspec.errors import InputError
from hvpspec.estimators.passes.shared_pass import SharedPass, least_basis
from hvpspec.estimators.refine import best_directions
from hvpspec.krylov.basis import Storage
from hvpspec.krylov.inverse_iteration import nearest
from hvpspec.krylov.lanczos import COINCIDING, Krylov, Ritz
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.krylov.vectors import column_inner, uploaded
from hvpspec.options import DEFAULT_MAX_HVPS, LEAST_HVPS_TO_CHECK, AnyWhich
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.validation import check_choice, check_count, check_tol

_ROUNDOFFS_OF_RESIDUAL = 20  # of ‖H‖: a residual this small is rounding
_GROWTH_PER_CHECK = 0.05  # of the basis: convergence is checked whenever it has grown by so much


@dataclass(frozen=True)
class Nearest:
    """How many eigenpairs are asked for, nearest to which point, and the tolerance relative to the distance from it."""

    k: int
    sigma: float
    tol: float

    @classmethod
    def of(cls, k: Any, which: AnyWhich, sigma: Any, tol: Any) -> Nearest | None:
        """As `eigsh` is asked; None where it is asked for those at the ends."""
        check_choice("which", which, AnyWhich)
        if sigma is None:
            return cls(check_count("k", k), 0.0, check_tol(tol)) if which == "SM" else None
        if which == "SM":
            raise InputError(
                'which="SM" asks for the eigenvalues nearest to 0, which is sigma=0; leave one of them out.'
            )
        if which != "LM":
            raise InputError(
                f'which="{which}" says nothing with sigma, which asks for the nearest ones; leave out which.'
            )
        if not isinstance(sigma, Real) or isinstance(sigma, bool) or not math.isfinite(sigma):
            raise InputError(f"sigma must be a finite real number; got {sigma!r}.")
        return cls(check_count("k", k), float(sigma), check_tol(tol))

    def distances(self, values: np.ndarray) -> np.ndarray:
        """From σ."""
        return np.abs(values - self.sigma)

    def choose(self, ritz: Ritz) -> np.ndarray:
        """The indices of the Ritz pairs that stand for the k nearest ones, nearest first."""
        best = np.argsort(np.hypot(self.distances(ritz.values), ritz.residuals), kind="stable")[: self.k]
        nearest_first: np.ndarray = best[np.argsort(self.distances(ritz.values[best]), kind="stable")]
        return nearest_first

    def within(self, values: np.ndarray, residuals: np.ndarray, floor: float) -> np.ndarray:
        """Which residuals are within the tolerance, or no larger than `floor`, that of rounding errors."""
        reached: np.ndarray = residuals <= np.maximum(self.tol * self.distances(values), floor)
        return reached


def nearest_pairs(
    A: Symmetric,
    wanted: Nearest,
    *,
    seed: int,
    budget: int | None,
    confidence: float,
    verify: bool,
    block: int,
    start: Any,
    storage: Storage,
    callback: Callable[[Eigenpairs], None] | None,
) -> Eigenpairs:
    """The eigenpairs, as `eigsh` describes them."""
    k = min(wanted.k, A.n)
    shared = SharedPass(A, seed=seed, block=block, storage=storage, k=k, probes=False, towards=start)
    kept = shared.checks if budget is None or budget > LEAST_HVPS_TO_CHECK else 0
    total = DEFAULT_MAX_HVPS if budget is None else budget - kept
    most = min(total, A.n)
    A.expect(min(least_basis(k, block), most))  # at least: so the first product may keep its graphs
    done, next_check = False, 0.0
    while not done and shared.hvps < most and shared.can_extend:
        shared.extend(most - shared.hvps)
        krylov = shared.krylov
        if krylov.m < next_check and krylov.segment != krylov.m:
            continue
        next_check = (1 + _GROWTH_PER_CHECK) * krylov.m
        ritz = krylov.ritz()
        done = _finished(krylov, ritz, wanted.choose(ritz), wanted)
        if callback is not None and not done:
            callback(_read(shared, wanted, confidence)[0])
    ritz = shared.krylov.ritz()
    shared.check(kept, ritz.coefficients[:, np.union1d(wanted.choose(ritz), [0, len(ritz.values) - 1])])
    pairs, chosen, ritz = _read(shared, wanted, confidence)
    if not pairs.converged and shared.hvps - kept < total and not shared.can_extend:
        return _refined(shared, wanted, pairs, total + kept - shared.hvps, seed)
    pairs = replace(pairs, shard=A.shard)
    vectors = shared.krylov.vectors(ritz.coefficients[:, chosen])
    if verify:
        pairs = _verified(shared, wanted, pairs, vectors, ritz.noise[chosen])
    return replace(pairs, vectors=vectors.cpu().numpy())


def _read(shared: SharedPass, wanted: Nearest, confidence: float) -> tuple[Eigenpairs, np.ndarray, Ritz]:
    """The eigenpairs in the Krylov space, without vectors; the indices of these Ritz pairs, and all Ritz pairs."""
    krylov = shared.krylov
    ritz, exclusion = krylov.ritz(), Exclusion.of(krylov)
    chosen = wanted.choose(ritz)
    values, residuals, noise = ritz.values[chosen], ritz.residuals[chosen], ritz.noise[chosen]
    known = krylov.m == krylov.n or block_shows_all_copies(exclusion, ritz, chosen)
    counted, everywhere = np.full(len(chosen), known), (-math.inf, math.inf)
    largest = bracket(ritz, exclusion, 1, confidence)
    population, reason = shared.spread.population(ritz, largest)
    pairs = Eigenpairs(
        values=values,
        vectors=None,
        residuals=residuals,
        error=isolated_errors(exclusion, values, residuals, ritz.values, counted) + noise,
        converged=_finished(krylov, ritz, chosen, wanted),
        hvps=shared.hvps,
        largest=largest,
        smallest=bracket(ritz, exclusion, -1, confidence),
        data_error=shared.spread.eigenvalues(ritz.coefficients[:, chosen]),
        all_copies=known,
        rounding=shared.rounding,
        reached=wanted.within(values, residuals, _floor(krylov)),
        population=population,
        population_reason=reason,
        gaps=proven_gaps(exclusion, ritz, krylov.projection.coupling, chosen, everywhere),
        at_rounding=wanted.distances(values) <= noise,
    )
    return pairs, chosen, ritz


def _floor(krylov: Krylov) -> float:
    return _ROUNDOFFS_OF_RESIDUAL * krylov.eps * krylov.projection.norm


def _finished(krylov: Krylov, ritz: Ritz, chosen: np.ndarray, wanted: Nearest) -> bool:
    """Whether the pairs asked for have been found to within the tolerance, and it is shown that none is missing."""
    if krylov.m == krylov.n:
        return True  # the basis spans the whole space
    values = ritz.values[chosen]
    if len(chosen) < wanted.k or not wanted.within(values, ritz.residuals[chosen], _floor(krylov)).all():
        return False
    starts = [first for first, _ in krylov.projection.segments]
    if len(starts) == 1:
        return none_nearer(Exclusion.of(krylov), ritz, values, wanted.sigma, wanted.tol)
    # After a breakdown, eigenspaces may have more dimensions than the segments have shown. A segment that has ended
    # shows that they have not if none of its values, which are then eigenvalues, is nearer than the k-th.
    if len(starts) == 2 or starts[-1] != krylov.m:
        return False
    last = krylov.projection.ritz(krylov.eps, starts[-2], starts[-1]).values
    slack = COINCIDING * krylov.projection.norm
    return float(wanted.distances(last).min()) >= float(wanted.distances(values).max()) - slack


def _refined(shared: SharedPass, wanted: Nearest, known: Eigenpairs, budget: float, seed: int) -> Eigenpairs:
    """The same pairs by inverse iteration, from the best directions of a Krylov space that memory has ended.

    That none is missing, the space may show all the same.
    """
    krylov, k = shared.krylov, min(wanted.k, shared.A.n)
    exclusion, ritz, norm = Exclusion.of(krylov), krylov.ritz(), krylov.projection.norm
    first = best_directions(krylov, k, -wanted.sigma)
    krylov.basis.release()
    found = nearest(
        shared.A, k, wanted.sigma, tol=wanted.tol, budget=budget, norm=norm, seed=seed, drawn=krylov.drawn, first=first
    )
    assert found is not None  # as it has vectors to start from
    rounding = np.maximum(found.error - found.residuals, float(ritz.noise.max()))
    return replace(
        known,
        values=found.values,
        vectors=found.vectors,
        residuals=found.residuals,
        error=found.residuals + rounding,
        converged=found.converged and none_nearer(exclusion, ritz, found.values, wanted.sigma, wanted.tol),
        hvps=shared.hvps,
        verified=found.verified,
        data_error=None,
        all_copies=False,
        reached=wanted.within(found.values, found.residuals, float(rounding.max())),
        gaps=None,
        shard=shared.A.shard,
        at_rounding=wanted.distances(found.values) <= rounding,
    )


def _verified(shared: SharedPass, wanted: Nearest, pairs: Eigenpairs, vectors: Any, noise: np.ndarray) -> Eigenpairs:
    """With values and residuals from products of their own."""
    products = shared.A @ vectors
    values = column_inner(vectors, products).cpu().numpy()
    rest = products - vectors * uploaded(values, vectors)
    residuals = column_inner(rest, rest).sqrt().cpu().numpy()
    reached = wanted.within(values, residuals, max(_floor(shared.krylov), float(noise.max(initial=0.0))))
    return replace(
        pairs,
        values=values,
        residuals=residuals,
        error=np.minimum(pairs.error + np.abs(values - pairs.values), residuals + noise),
        reached=reached,
        converged=pairs.converged and bool(reached.all()),
        hvps=shared.hvps,
        verified=True,
    )
