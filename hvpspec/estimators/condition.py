"""The conditioning by itself: one pass for all quantities, and further random vectors where the sums need them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hvpspec.bounds.quadrature import quadrature_error, read_density
from hvpspec.distributed.shard import over_ranks
from hvpspec.errors import InputError
from hvpspec.estimators.condition_figures import read_condition
from hvpspec.estimators.passes.one_run import Pass
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.estimators.refine import refined
from hvpspec.krylov.lanczos import Krylov
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.options import DEFAULT_REFINE_HVPS, Place, SpectrumOptions
from hvpspec.results.condition import Condition
from hvpspec.results.density import Density
from hvpspec.results.spectrum import Progress
from hvpspec.validation import Tolerance, check_count, check_rank_threshold

_LEAST_RELATIVE_LENGTH = 0.5  # of the longest Krylov space: shorter ones would blur the density and are left out
_QUADRATURE_SHARE = 1 / 3  # of the density's error: if the quadrature has more, further vectors get more steps


@over_ranks
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
    refine_hvps: int = DEFAULT_REFINE_HVPS,
    rank_threshold: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    tol: float = 1e-3,
    basis_memory: int | str | None = None,
    basis_on: Place = "device",
    callback: Callable[[Progress], None] | None = None,
) -> Condition:
    """Describe how well conditioned A + damping · I is, every quantity with its error or as a bound.

    Parameters
    ----------
    A : HessianOperator, LinearOperator, sparse or dense array, or torch tensor, shape (n, n)
        The symmetric operator.
    confidence, seed, max_hvps, tol, basis_memory, basis_on, callback
        As for `hvpspec.spectrum`.
    damping : float, default 0
        δ ≥ 0. Effective dimension, log-determinant and an upper bound on the condition number need A + δI to be
        definite.
    k : int, default 10
        Eigenpairs of largest magnitude to compute; the bulk is all other eigenvalues.
    rtol : float, default 0.01
        Of trace and Frobenius norm, see `hvpspec.spectrum`.
    sums_rtol : float, optional
        Use further random vectors until effective dimension and log-determinant are known to this relative half-width;
        by default, they are as accurate as the pass for the other quantities makes them. Further vectors also narrow
        the number and the mass of negative eigenvalues, and the rank.
    counts_rtol : float, optional
        Use further random vectors until the counts are known to this fraction of n, and the mass of negative
        eigenvalues to this fraction of itself or of ‖A‖₂, whichever is larger. If eigenvalues are dense around zero,
        this is expensive: up to n products.
    refine : bool, default False
        Search for the `refine_k` eigenvalues of A + δI nearest to 0, by inverse iteration with MINRES (see `refined` in
        the result); they sharpen `nearest_zero` and `kappa`.
    refine_k : int, default 1
        How many eigenvalues to search for.
    refine_hvps : int, default 500
        Budget of products for this search, beyond `max_hvps`.
    rank_threshold : float, optional
        The numerical rank is the number of eigenvalues with |λ| above it; by default n · 2ε · ‖A‖₂, but at most
        √(2ε) ‖A‖₂ and at least what the products are accurate to.

    Returns
    -------
    Condition
        Condition number, numbers of negative eigenvalues, ranks, sums, and what they mean for optimizers and solvers.

    Raises
    ------
    InputError
        For options out of range, an operator that is not symmetric, or a budget without a product for the density.

    Notes
    -----
    Costs what `hvpspec.spectrum` costs, from the same products: ``spectrum(A, damping=…).condition`` comes free with a
    spectrum. Further random vectors and the refinement cost extra. Sources: doi:10.1007/BFb0063440 (sums),
    doi:10.1137/0712047 (MINRES).

    Examples
    --------
    >>> import numpy as np
    >>> import hvpspec
    >>> found = hvpspec.condition(np.diag([8.0, 4.0, 2.0, 1.0]))
    >>> found.definite, round(found.kappa.lower, 6), round(found.kappa.upper, 6)
    ('positive', 8.0, 8.0)
    """
    options = SpectrumOptions(
        k=k, rtol=rtol, confidence=confidence, tol=tol, seed=seed, max_hvps=max_hvps, damping=damping, refine=refine,
        refine_hvps=refine_hvps, basis_memory=basis_memory, basis_on=basis_on,
    )  # fmt: skip
    for name, rtol_of in (("sums_rtol", sums_rtol), ("counts_rtol", counts_rtol)):
        if rtol_of is not None and Tolerance(rtol_of).rtol == 0:
            raise InputError(f"{name} must be > 0.")
    refine_k, threshold = check_count("refine_k", refine_k), check_rank_threshold(rank_threshold)
    run = Pass(A, as_symmetric(A), options, callback=callback)
    run.measure()
    if run.density.rest is None:
        raise InputError(f"max_hvps={max_hvps} leaves no product for the density; allow more.")
    known = _with_further_vectors(run, threshold, sums_rtol, counts_rtol)
    if not refine:
        return known
    return refined(
        known, run.shared, k=refine_k, budget=options.refine_hvps, tol=options.tol, seed=options.seed,
        report=run.report_refinement,
    )  # fmt: skip


def _with_further_vectors(
    run: Pass, threshold: float | None, sums_rtol: float | None, counts_rtol: float | None
) -> Condition:
    """The conditioning to within these tolerances, or as far as the budget allows."""
    shared, others = run.shared, list[Krylov]()
    assert run.density.rest is not None
    density = run.density.rest
    known = _read(run, density, threshold, others)
    steps, already = len(shared.krylov.of_start.T), shared.hvps
    while not _reached(known, sums_rtol, counts_rtol):
        if counts_rtol is not None and quadrature_error(density) > density.error * _QUADRATURE_SHARE:
            steps *= 2
        if shared.hvps - already + steps > shared.krylov.n:  # a basis of the whole space costs less, if it fits
            steps = shared.krylov.n
        if run.budget.unspent < steps:
            break
        others.append(_another_space(run, steps, shared.krylov.drawn + len(others)))
        steps = others[-1].m
        density = _shared_density(run, others)
        known = _read(run, density, threshold, others)
        run.report("effective dimension", None)
        if shared.hvps - already >= shared.krylov.n:
            break
    return known


def _another_space(run: Pass, steps: int, first_draw: int) -> Krylov:
    """From another random vector, with that many steps, or as many as fit in memory."""
    space = SharedPass(
        run.shared.A, seed=run.options.seed, storage=run.storage, probes=False, first_draw=first_draw,
        zero=run.shared.krylov.zero,
    )  # fmt: skip
    for _ in range(min(steps, space.capacity)):
        space.extend(1)
    space.rounding = run.shared.rounding  # measured already
    space.check(run.budget.unspent)
    space.krylov.basis.release()
    return space.krylov


def _read(run: Pass, density: Density, threshold: float | None, others: list[Krylov]) -> Condition:
    return read_condition(
        run.shared, density, confidence=run.options.confidence, damping=run.options.damping, rank_threshold=threshold,
        pairs=run.known.eigenpairs, others=tuple(others),
    )  # fmt: skip


def _shared_density(run: Pass, others: list[Krylov]) -> Density:
    """From all spaces that are long enough."""
    confidence = run.options.confidence
    spaces = [run.shared.krylov, *others]
    longest = max(len(krylov.of_start.T) for krylov in spaces)
    used = [krylov for krylov in spaces if len(krylov.of_start.T) >= _LEAST_RELATIVE_LENGTH * longest]
    return read_density(used, confidence, run.shared.hvps, run.shared.sums(confidence))


def _reached(known: Condition, sums_rtol: float | None, counts_rtol: float | None) -> bool:
    reached = True
    if sums_rtol is not None:
        sums = (known.effective_dimension, known.log_determinant)
        reached = all(sum_ is None or sum_.error <= sums_rtol * max(abs(sum_.value), 1.0) for sum_ in sums)
    if counts_rtol is not None:
        counts, mass = (known.negative, known.rank), known.negative_mass
        reached &= all(count.error <= counts_rtol * known.parameters for count in counts)
        reached &= mass.error <= counts_rtol * max(mass.value, known.norm.upper)
    return reached
