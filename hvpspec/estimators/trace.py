"""Trace and Frobenius norm: what a Krylov basis knows of them, and random probes of the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

from hvpspec.distributed.shard import over_ranks
from hvpspec.errors import InputError
from hvpspec.estimators.passes.extend_or_probe import choose, ends
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.krylov.basis import Storage, check_storage
from hvpspec.krylov.operator_view import Symmetric, as_symmetric
from hvpspec.options import LEAST_HVPS_TO_CHECK, Place, SampledQuantity
from hvpspec.results.estimate import Estimate
from hvpspec.validation import Tolerance, check_budget, check_choice, check_seed

Method = Literal["krylov", "hutchinson"]


@over_ranks
def trace(
    A: Any,
    *,
    rtol: float = 0.01,
    atol: float = 0.0,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    method: Method = "krylov",
    basis_memory: int | str | None = None,
    basis_on: Place = "device",
    callback: Callable[[Estimate], None] | None = None,
) -> Estimate:
    """Estimate the trace of a symmetric operator, with a confidence interval.

    Parameters
    ----------
    A : HessianOperator, LinearOperator, sparse or dense array, or torch tensor, shape (n, n)
        The symmetric operator.
    seed, basis_memory, basis_on
        As for `hvpspec.eigsh`; the memory is for basis and probes.
    rtol, atol : float, default 0.01 and 0
        Stop when the half-width of the interval is at most ``max(rtol · |trace|, atol)``. If the trace is smaller than
        the Frobenius norm, positive and negative eigenvalues cancel, and it cannot be estimated to a small fraction of
        itself: the half-width is then compared with ``max(rtol · ‖A‖_F, atol)``, and `relative_to` in the result is
        "frobenius_norm".
    confidence : float, default 0.95
        The probability that the interval contains the trace.
    max_hvps : int, optional
        Budget of products; None for no budget. When it is spent, the current estimate is returned with
        ``converged=False``.
    method : {"krylov", "hutchinson"}, default "krylov"
        "krylov" divides the products between a Lanczos basis, on which the trace is known, and random probes of
        its complement, wherever each saves more. It makes no basis where that does not pay, and is exact when the basis
        spans the whole space. "hutchinson" uses probes only and needs no memory for a basis.
    callback : callable, optional
        Called with the current `Estimate` after each step.

    Returns
    -------
    Estimate
        ``value`` and ``error``, the half-width of the interval.

    Raises
    ------
    InputError
        For options out of range, an operator that is not symmetric, or ``rtol=0`` with nothing that ends the run.

    Notes
    -----
    Costs one HVP for each basis vector and each probe. The number of probes is about 2 F (1.96 / (rtol · tr))², where F
    is the squared Frobenius norm of what the basis leaves, less its mean eigenvalue; there are at most n + 8 products
    if a basis of n vectors fits in memory, and one more that checks these where A is no matrix. Krylov-aware trace
    estimation: arXiv:2205.01736; Hutchinson's estimator: doi:10.1080/03610918908812806.

    Examples
    --------
    >>> import numpy as np
    >>> import hvpspec
    >>> found = hvpspec.trace(np.diag(np.arange(1.0, 6.0)))
    >>> round(found.value, 6), found.method, found.hvps
    (15.0, 'exact', 5)
    """
    return sample(
        A, "trace", rtol=rtol, atol=atol, confidence=confidence, seed=seed, max_hvps=max_hvps, method=method,
        basis_memory=basis_memory, basis_on=basis_on, callback=callback,
    )  # fmt: skip


@over_ranks
def frobenius_norm(
    A: Any,
    *,
    rtol: float = 0.01,
    atol: float = 0.0,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    method: Method = "krylov",
    basis_memory: int | str | None = None,
    basis_on: Place = "device",
    callback: Callable[[Estimate], None] | None = None,
) -> Estimate:
    """Estimate the Frobenius norm of a symmetric operator, with a confidence interval.

    ‖A‖_F² is known on a Lanczos basis, and estimated by ‖A ω‖² for standard normal ω on its complement.

    Parameters
    ----------
    A : HessianOperator, LinearOperator, sparse or dense array, or torch tensor, shape (n, n)
        The symmetric operator.
    confidence, seed, max_hvps, basis_memory, basis_on, callback
        As for `hvpspec.trace`.
    rtol, atol : float, default 0.01 and 0
        Stop when the half-width of the interval is at most ``max(rtol · ‖A‖_F, atol)``.
    method : {"krylov", "hutchinson"}, default "krylov"
        As for `hvpspec.trace`; "hutchinson" estimates tr A² with two uses of each product.

    Returns
    -------
    Estimate
        ``value`` and ``error``, the longer half of the interval.

    Raises
    ------
    InputError
        As for `hvpspec.trace`.

    Notes
    -----
    Costs one HVP for each basis vector and each probe. The number of probes is about ½ (1.96 / rtol)² ‖B²‖_F² / ‖A‖_F⁴,
    where B is what the basis leaves. Sources: as for `hvpspec.trace`.

    Examples
    --------
    >>> import numpy as np
    >>> import hvpspec
    >>> found = hvpspec.frobenius_norm(np.diag([3.0, 4.0]))
    >>> round(found.value, 6), found.converged
    (5.0, True)
    """
    return sample(
        A, "frobenius_norm", rtol=rtol, atol=atol, confidence=confidence, seed=seed, max_hvps=max_hvps, method=method,
        basis_memory=basis_memory, basis_on=basis_on, callback=callback,
    )  # fmt: skip


def sample(
    A: Any,
    quantity: SampledQuantity,
    *,
    rtol: float,
    atol: float,
    confidence: float,
    seed: int,
    max_hvps: int | None,
    method: Method,
    basis_memory: int | str | None,
    basis_on: Place,
    callback: Callable[[Estimate], None] | None,
) -> Estimate:
    """See `hvpspec.trace`."""
    tolerance, seed, budget = Tolerance(rtol, atol, confidence), check_seed(seed), check_budget(max_hvps)
    storage = check_storage(basis_memory, basis_on)
    check_choice("method", method, Method)
    operator = as_symmetric(A)
    estimate = None
    for estimate in _estimates(operator, quantity, tolerance, seed, budget, storage, basis=method == "krylov"):
        if callback is not None:
            callback(estimate)
    assert estimate is not None
    return estimate


def _estimates(
    A: Symmetric,
    quantity: SampledQuantity,
    tolerance: Tolerance,
    seed: int,
    budget: int | None,
    storage: Storage,
    *,
    basis: bool,
) -> Iterator[Estimate]:
    """The estimate after each step, until it is within the tolerance or the budget is spent."""
    shared = SharedPass(A, seed=seed, storage=storage, basis=basis)
    if not ends(shared, tolerance, budget):
        raise InputError("rtol=0 needs an atol, a budget (max_hvps), or a basis_memory that holds n vectors.")
    limit = math.inf if budget is None else budget
    kept = shared.checks if limit > LEAST_HVPS_TO_CHECK else 0
    while True:
        estimate = shared.estimate(quantity, tolerance)
        if shared.hvps and math.isfinite(estimate.value):
            yield estimate
        move = choose(shared, {quantity: estimate}, tolerance, limit - kept * bool(shared.krylov.m) - shared.hvps)
        if move.action == "stop":
            eps = A.eps
            shared.check(kept)
            if A.eps > eps or shared.rounding is not None or shared.hvps > estimate.hvps:
                yield shared.estimate(quantity, tolerance)
            return
        if move.action == "extend":
            shared.extend(move.count)
        else:
            shared.probe(move.count)
