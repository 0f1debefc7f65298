"""Eigenpairs by Lanczos, with their residuals and error bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from hvpspec.bounds.eigenvalues import Count, Exclusion, bracket, counted_within, isolated_errors, proven_gaps
from hvpspec.bounds.missed import beyond, block_shows_all_copies, no_copies, nothing_missed
from hvpspec.bounds.zero_rows import pairs_with_zeros
from hvpspec.distributed.shard import over_ranks, whole
from hvpspec.errors import InputError
from hvpspec.estimators.interior import Nearest, nearest_pairs
from hvpspec.estimators.passes.shared_pass import SharedPass, least_basis
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.lanczos import COINCIDING, Krylov, Ritz
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.krylov.vectors import column_inner, times, uploaded
from hvpspec.options import DEFAULT_MAX_HVPS, LEAST_HVPS_TO_CHECK, AnyWhich, Place, Which
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.validation import check_budget, check_choice, check_confidence, check_count, check_seed, check_tol

_ROUNDOFFS_OF_RESIDUAL = 20  # of ‖H‖: a residual this small is rounding
_LEAST_CHECKS_TO_EXTRAPOLATE = 4  # of the residuals
_CHECKS_PER_BASIS = 150  # convergence is checked after each growth of a large basis by one part in this many


@dataclass(frozen=True)
class Wanted:
    """Which eigenpairs are asked for, and their tolerance."""

    k: int
    which: Which
    tol: float

    def __post_init__(self) -> None:
        check_count("k", self.k)
        check_choice("which", self.which, Which)
        check_tol(self.tol)

    def choose(self, values: np.ndarray, k: int | None = None) -> np.ndarray:
        """The indices of the k values asked for, in order."""
        return _ORDERS[self.which](values, min(k or self.k, len(values)))


@over_ranks
def eigsh(
    A: Any,
    k: int = 6,
    which: AnyWhich = "LM",
    *,
    sigma: float | None = None,
    tol: float = 1e-3,
    seed: int = 0,
    max_hvps: int | None = None,
    confidence: float = 0.95,
    verify: bool = False,
    block_size: int = 1,
    start: Any = None,
    basis_memory: int | str | None = None,
    basis_on: Place = "device",
    callback: Callable[[Eigenpairs], None] | None = None,
) -> Eigenpairs:
    """Compute k eigenpairs of a symmetric operator by Lanczos, with error bounds: extreme ones, or nearest to a point.

    Parameters
    ----------
    A : HessianOperator, LinearOperator, sparse or dense array, or torch tensor, shape (n, n)
        The symmetric operator.
    k : int, default 6
        How many eigenpairs; at most n are returned.
    which : {"LM", "LA", "SA", "BE", "SM"}, default "LM"
        Largest magnitude, largest, smallest, half from each end (for odd k one more from the top), or smallest
        magnitude. The values are returned in that order: by decreasing magnitude, decreasing, increasing, decreasing,
        increasing magnitude.
    sigma : float, optional
        Find the eigenvalues nearest to it, nearest first; `which` must then be "LM", as in SciPy, where the eigenvalues
        of (A − σI)⁻¹ are meant. ``which="SM"`` is ``sigma=0``.
    tol : float, default 1e-3
        Stop when every residual ``‖A v − θ v‖`` is at most ``tol · |θ|``, with `sigma` ``tol · |θ − σ|``, or as small
        as rounding errors.
    seed : int, default 0
        Of the random vectors, which are the same on every device.
    max_hvps : int, optional
        Budget of products; by default 1000, or n if that is less. When it is spent, the current pairs are returned
        with ``converged=False``.
    confidence : float, default 0.95
        Of the brackets `largest` and `smallest`.
    verify : bool, default False
        Multiply the eigenvectors by A once more (k products) and report the residuals measured in this way.
    block_size : int, default 1
        Number of random start vectors. One needs the fewest products, but shows a multiple eigenvalue as a single one
        unless the Krylov space becomes invariant; b vectors show up to b copies. (`spectrum` also searches for copies
        that its start vectors have missed.)
    start : array or tensor, shape (n,) or (n, p), optional
        Vectors believed to be close to eigenvectors, such as those of a similar operator (a warm start). They must not
        have been computed with the same seed, and `block_size` must be 1. Half of the start remains random, so that
        brackets and error bounds hold whatever is given; the run ends only when it is shown at 95 % that no eigenvalue
        was missed, except within 2 % of one that was found. Good vectors save some products, bad ones cost a few.
    basis_memory : int or str, optional
        Most memory for the basis, in bytes or as ``"2GiB"``; by default a quarter of what is free. When the basis has
        filled it, it is reduced to its best vectors (a thick restart), which costs some more products.
    basis_on : {"device", "cpu", "disk"}, default "device"
        Where the basis is kept; "disk" is a temporary file.
    callback : callable, optional
        Called with the current `Eigenpairs`, without vectors, as they improve.

    Returns
    -------
    Eigenpairs
        ``values`` (k,), ``vectors`` (n, k), ``residuals`` and ``error``. `error` bounds the distance from each value to
        an eigenvalue: the residual r, or ``r² / gap`` where the value is shown to be isolated and single, plus the
        asymmetry that the products have shown, plus rounding. For a HessianOperator in float32 the latter is measured
        (`rounding`). ``converged`` says that the residuals are within the tolerance and that no eigenvalue is missing
        in a gap between those found; ``all_copies``, that no copy of one is missing either, which takes a `block_size`
        greater than 1. Of those nearest to a point, ``converged`` also says that none nearer is missing (at 99 %), but
        for eigenvalues that are closer to one found than twice the tolerance; ``at_rounding``, which of them cannot be
        told from the point in the precision of the products.

    Raises
    ------
    InputError
        For options out of range, an operator that is not symmetric, or too little memory.

    Notes
    -----
    Costs one HVP for each step and start vector, one more that checks the products of an operator that is no matrix
    (unless the budget is below 10), and memory for as many vectors of n numbers as there are steps, up to
    `basis_memory`. What a HessianOperator does once before its first product (``verify``) is not counted in HVPs. Block
    Lanczos with full reorthogonalization and a thick restart (doi:10.1137/S0895479898334605).

    Eigenvalues inside the spectrum are expensive: in HVPs, about 3 to 10 times the width of the spectrum divided by the
    distance of those asked for from all others, but no more than n where memory holds so large a basis. Where it does
    not, there is no restart: the budget that is left goes to inverse iteration with MINRES. The values then have their
    residuals as `error`, and ``converged`` is True only if the basis has shown that none is missing.

    Examples
    --------
    >>> import numpy as np
    >>> import hvpspec
    >>> pairs = hvpspec.eigsh(np.diag([5.0, -4.0, 3.0, 2.0, 1.0]), k=2)
    >>> pairs.values.round(6)
    array([ 5., -4.])
    >>> hvpspec.eigsh(np.diag([5.0, -4.0, 3.0, 2.0, 1.0]), k=2, which="SA").values.round(6)
    array([-4.,  1.])
    >>> hvpspec.eigsh(np.diag([5.0, -4.0, 3.0, 2.0, 1.0]), k=2, sigma=2.9).values.round(6)
    array([3., 2.])
    """
    near = Nearest.of(k, which, sigma, tol)
    seed, budget = check_seed(seed), check_budget(max_hvps)
    confidence, storage = check_confidence(confidence), check_storage(basis_memory, basis_on)
    block_size = check_count("block_size", block_size)
    if start is not None and block_size > 1:
        raise InputError("start needs block_size=1; leave out one of the two.")
    operator = as_symmetric(A)
    if near is not None:
        return nearest_pairs(
            operator, near, seed=seed, budget=budget, confidence=confidence, verify=verify, block=block_size,
            start=start, storage=storage, callback=callback,
        )  # fmt: skip
    assert which != "SM"
    wanted = Wanted(k, which, tol)
    shared = SharedPass(
        operator, seed=seed, block=block_size, storage=storage, k=min(k, operator.n), probes=False, towards=start
    )
    kept = shared.checks if budget is None or budget > LEAST_HVPS_TO_CHECK else 0
    budget = min(budget - kept if budget else DEFAULT_MAX_HVPS, operator.n)
    operator.expect(min(least_basis(k, block_size), budget))  # at least: so the first product may keep its graphs
    while True:
        shared.extend(budget - shared.hvps, wanted.choose)
        if not worth_checking(shared.krylov) and shared.hvps < budget:
            continue
        if callback is None and shared.hvps < budget and not converged(shared.krylov, wanted):
            continue
        pairs, chosen, ritz = current(shared, wanted, confidence)
        if pairs.converged or shared.hvps >= budget:
            check(shared, kept, wanted)
            pairs, chosen, ritz = current(shared, wanted, confidence)
            return finish(shared, pairs, chosen, ritz, wanted if verify else None)
        if callback is not None:
            callback(pairs)


def check(shared: SharedPass, left: float, wanted: Wanted | None) -> bool:
    """`SharedPass.check`, with the rounding measured on the wanted Ritz vectors and on those at both ends.

    Returns whether errors have grown by it.
    """
    before, interest = shared.krylov.eps, None
    if wanted is not None and shared.krylov.m:
        ritz = shared.krylov.ritz()
        ends = [int(np.argmin(ritz.values)), int(np.argmax(ritz.values))]
        interest = ritz.coefficients[:, np.union1d(wanted.choose(ritz.values), ends)]
    shared.check(left, interest)
    return shared.krylov.eps > before


def worth_checking(krylov: Krylov) -> bool:
    """Whether to diagonalise T, which costs m³: after each step at first, less often when the basis is large."""
    return krylov.segment == krylov.m or krylov.m % max(1, krylov.m // _CHECKS_PER_BASIS) == 0


def converged(krylov: Krylov, wanted: Wanted) -> bool:
    """Whether the pairs asked for have been found to within the tolerance."""
    ritz = krylov.ritz()
    return _finished(krylov, ritz, wanted.choose(ritz.values), wanted)


def current(
    shared: SharedPass,
    wanted: Wanted,
    confidence: float,
    *,
    rest: tuple[float, float] = (-math.inf, math.inf),
    counts: Sequence[Count] = (),
) -> tuple[Eigenpairs, np.ndarray, Ritz]:
    """The eigenpairs in the Krylov space, without vectors; the indices of these Ritz pairs, and all Ritz pairs.

    rest: where the eigenvalues of B lie, as has been shown otherwise. counts: of the eigenvalues of H.
    """
    krylov = shared.krylov
    ritz = krylov.ritz()
    chosen = wanted.choose(ritz.values)
    values, residuals = ritz.values[chosen], ritz.residuals[chosen]
    exclusion = Exclusion.of(krylov)
    known = krylov.m == krylov.n or block_shows_all_copies(exclusion, ritz, chosen)
    counted = known | counted_within(ritz, krylov.projection.coupling, chosen, rest)
    largest = bracket(ritz, exclusion, 1, confidence)
    population, reason = shared.spread.population(ritz, largest)
    return (
        Eigenpairs(
            values=values,
            vectors=None,
            residuals=residuals,
            error=isolated_errors(exclusion, values, residuals, ritz.values, counted) + ritz.noise[chosen],
            converged=_finished(krylov, ritz, chosen, wanted),
            hvps=shared.hvps,
            largest=largest,
            smallest=bracket(ritz, exclusion, -1, confidence),
            data_error=shared.spread.eigenvalues(ritz.coefficients[:, chosen]),
            all_copies=known or no_copies(krylov, ritz, chosen, wanted.which, wanted.tol, rest, counts),
            rounding=shared.rounding,
            reached=_within(krylov, ritz, chosen, wanted.tol),
            population=population,
            population_reason=reason,
            gaps=proven_gaps(exclusion, ritz, krylov.projection.coupling, chosen, rest, counts),
        ),
        chosen,
        ritz,
    )


def with_zero_rows(krylov: Krylov, pairs: Eigenpairs, wanted: Wanted) -> Eigenpairs:
    """The eigenpairs with those of zero rows. Of largest magnitude, these are only where there are no others.

    A space that was restored from its small matrices knows how many such rows there are, and not which.
    """
    if not krylov.zeros:
        return pairs
    zero = np.ones(krylov.zeros)
    if krylov.zero is not None:
        zero = whole(krylov.zero[:, None].byte())[:, 0].cpu().numpy()
    k = len(pairs.values) if wanted.which == "LM" and krylov.m < krylov.n else wanted.k
    return pairs_with_zeros(pairs, zero, k, wanted.choose, krylov.positions.start)


def finish(shared: SharedPass, pairs: Eigenpairs, chosen: np.ndarray, ritz: Ritz, verify: Wanted | None) -> Eigenpairs:
    """The eigenpairs with vectors and, if they are to be verified, with measured residuals."""
    krylov = shared.krylov
    vectors = krylov.vectors(ritz.coefficients[:, chosen])
    pairs = replace(pairs, vectors=vectors.cpu().numpy(), shard=shared.A.shard)
    if verify is None:
        return pairs
    # By the Krylov relation H v = θ v + F Cᵀs. The difference between this and the product is the noise of the HVP.
    products = shared.A @ vectors
    expected = vectors * uploaded(pairs.values, vectors)
    expected += times(krylov.frontier, krylov.projection.coupling.T @ ritz.coefficients[:, chosen])
    noise, exclusion = np.maximum(ritz.noise[chosen], _lengths(products - expected)), Exclusion.of(krylov)
    values = column_inner(vectors, products).cpu().numpy()
    residuals = _lengths(products - vectors * uploaded(values, vectors))
    small = residuals <= np.maximum(verify.tol * np.abs(values), noise)
    return replace(
        pairs,
        values=values,
        residuals=residuals,
        error=isolated_errors(exclusion, values, residuals, ritz.values, pairs.error < pairs.residuals) + noise,
        reached=small,
        converged=pairs.converged and bool(small.all()),
        hvps=shared.hvps,
        verified=True,
    )


def relative_residuals(pairs: Eigenpairs) -> np.ndarray:
    """‖A v − θ v‖ / |θ| of each pair."""
    relative: np.ndarray = pairs.residuals / np.maximum(np.abs(pairs.values), np.finfo(float).tiny)
    return relative


def steps_to_tolerance(history: list[tuple[int, float]], tol: float) -> int | None:
    """Steps until the residuals reach the tolerance if they decrease as before; None if they do not decrease."""
    if len(history) < _LEAST_CHECKS_TO_EXTRAPOLATE:
        return None
    (m, now), (m_before, before) = history[-1], history[-1 - len(history) // 2]
    if not 0 < now < before < math.inf or tol <= 0:
        return None
    return math.ceil(max(0.0, math.log(now / tol)) * (m - m_before) / math.log(before / now))


def _finished(krylov: Krylov, ritz: Ritz, chosen: np.ndarray, wanted: Wanted) -> bool:
    if krylov.m == krylov.n:
        return True  # the basis spans the whole space
    if len(chosen) < wanted.k or not _within(krylov, ritz, chosen, wanted.tol).all():
        return False
    # After a restart the start vector proves no more than it did before, however many steps are made.
    if krylov.undisturbed is None and not nothing_missed(
        Exclusion.of(krylov), ritz.values[chosen], wanted.which, wanted.tol
    ):
        return False
    starts = [first for first, _ in krylov.projection.segments]
    if len(starts) == 1:
        return True
    # After a breakdown, eigenspaces may have more dimensions than the segments have shown. The last segment shows that
    # they have not if its own extreme Ritz values are accurate and none of them lies beyond the k-th.
    start, end = (starts[-2], starts[-1]) if starts[-1] == krylov.m else (starts[-1], krylov.m)
    if start == 0:
        return False
    segment = krylov.projection.ritz(krylov.eps, start, end)
    extreme = wanted.choose(segment.values, 2 if wanted.which == "BE" else 1)
    if not _within(krylov, segment, extreme, wanted.tol).all():
        return False
    slack = COINCIDING * krylov.projection.norm
    return all(beyond(segment.values[i], ritz.values[chosen], wanted.which) <= slack for i in extreme)


def _within(krylov: Krylov, ritz: Ritz, index: np.ndarray, tol: float) -> np.ndarray:
    """Which residuals are within the tolerance, or as small as rounding errors, as for an eigenvalue of 0."""
    floor = _ROUNDOFFS_OF_RESIDUAL * krylov.eps * krylov.projection.norm
    within: np.ndarray = ritz.residuals[index] <= np.maximum(tol * np.abs(ritz.values[index]), floor)
    return within


def _lengths(columns: Tensor) -> np.ndarray:
    return column_inner(columns, columns).sqrt().cpu().numpy()


def _largest_magnitude(values: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-np.abs(values), kind="stable")[:k]


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-values, kind="stable")[:k]


def _smallest(values: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(values, kind="stable")[:k]


def _both_ends(values: np.ndarray, k: int) -> np.ndarray:
    descending = np.argsort(-values, kind="stable")
    if k >= len(values):
        return descending
    return np.concatenate([descending[: (k + 1) // 2], descending[len(values) - k // 2 :]])


_ORDERS = {"LM": _largest_magnitude, "LA": _largest, "SA": _smallest, "BE": _both_ends}
