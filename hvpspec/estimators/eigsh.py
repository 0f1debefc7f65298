"""Extreme eigenpairs by Lanczos, with their residuals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hvpspec.errors import InputError
from hvpspec.estimators.krylov import Krylov, Ritz, lanczos
from hvpspec.estimators.options import check_budget, check_count, check_seed, check_tol
from hvpspec.estimators.symmetric import Symmetric, as_symmetric
from hvpspec.results import Eigenpairs

_DEFAULT_BUDGET = 1000


def eigsh(
    A: Any,
    k: int = 6,
    which: str = "LM",
    *,
    tol: float = 1e-3,
    seed: int = 0,
    max_hvps: int | None = None,
    callback: Callable[[Eigenpairs], None] | None = None,
) -> Eigenpairs:
    """The k extreme eigenpairs of a symmetric operator (n × n), by Lanczos with full reorthogonalisation.

    A: HessianOperator, SciPy LinearOperator, sparse or dense array, or torch tensor.
    k: how many; at most n are returned.
    which: "LM" largest magnitude, "LA" largest, "SA" smallest, "BE" half from each end (the odd one from the top).
        Values come in that order: by falling magnitude, falling, rising, falling.
    tol: stop when every residual ‖A v − θ v‖ ≤ tol · |θ| (or is down at rounding errors).
    seed: of the random start vector.
    max_hvps: the budget; by default 1000, or n if that is less. Once it is spent, what there is comes back with
        `converged=False`.
    callback: called with the Eigenpairs so far (without vectors) as they improve.

    `error` bounds the distance from each value to an eigenvalue: the residual, plus the asymmetry that the products
    showed, plus rounding. A single random start sees multiple eigenvalues through breakdowns only: one of a
    cluster closer than the tolerance may be missed. Costs one HVP a step, and memory for one n-vector a step.

    Raises InputError for options out of range and for an operator that is not symmetric.
    """
    operator = as_symmetric(A)
    pairs = None
    for pairs in eigsh_steps(operator, k, which, tol=tol, seed=seed, max_hvps=max_hvps):
        if callback is not None and pairs.vectors is None:
            callback(pairs)
    assert pairs is not None
    return pairs


def eigsh_steps(
    A: Symmetric, k: int, which: str, *, tol: float, seed: int, max_hvps: int | None
) -> Iterator[Eigenpairs]:
    """The eigenpairs as they improve: without vectors while under way, the last one with them."""
    k = min(check_count("k", k), A.n)
    if which not in _ORDERS:
        names = ", ".join(f'"{name}"' for name in _ORDERS)
        raise InputError(f"which must be one of {names}; got {which!r}.")
    tol, seed = check_tol(tol), check_seed(seed)
    budget = min(check_budget(max_hvps) or _DEFAULT_BUDGET, A.n)

    already = A.hvps
    for krylov in lanczos(A, seed=seed, max_steps=budget):
        if not _worth_checking(krylov, budget):
            continue
        ritz = krylov.ritz()
        chosen = _choose(ritz.values, k, which)
        converged = _finished(krylov, ritz, chosen, k, which, tol)
        last = converged or krylov.m == budget
        yield Eigenpairs(
            values=ritz.values[chosen],
            vectors=krylov.vectors(ritz.coefficients[:, chosen]).cpu().numpy() if last else None,
            residuals=ritz.residuals[chosen],
            error=ritz.errors[chosen],
            converged=converged,
            hvps=A.hvps - already,
        )
        if last:
            return


def _worth_checking(krylov: Krylov, budget: int) -> bool:
    """Solving for T costs m²: at each step at first, every hundredth part of m later on."""
    m = krylov.m
    return m == budget or krylov.closed or m % max(1, m // 100) == 0


def _finished(krylov: Krylov, ritz: Ritz, chosen: np.ndarray, k: int, which: str, tol: float) -> bool:
    if krylov.m == krylov.storage.shape[1]:
        return True  # the basis spans the whole space
    if len(chosen) < k or not _small(krylov, ritz, chosen, tol).all():
        return False
    first = krylov.segments[-1]
    if first == 0:
        return not krylov.closed
    # After a breakdown the eigenspaces may hold more vectors than the segments so far have shown. This one shows no
    # more when its own extreme Ritz values are accurate and add nothing beyond the k-th.
    segment = krylov.ritz(first)
    extreme = _choose(segment.values, min(2 if which == "BE" else 1, len(segment.values)), which)
    if not _small(krylov, segment, extreme, tol).all():
        return False
    slack = 1e-8 * krylov.norm
    return all(_beyond(segment.values[i], ritz.values[chosen], which) <= slack for i in extreme)


def _small(krylov: Krylov, ritz: Ritz, index: np.ndarray, tol: float) -> np.ndarray:
    """Which residuals are within the tolerance, or down at rounding errors (an eigenvalue of 0 has no relative one)."""
    return ritz.residuals[index] <= np.maximum(tol * np.abs(ritz.values[index]), 20 * krylov.eps * krylov.norm)


def _beyond(value: float, chosen: np.ndarray, which: str) -> float:
    """By how much a value surpasses the least extreme of the chosen ones."""
    if which == "LM":
        return abs(value) - float(np.abs(chosen).min())
    if which == "LA":
        return value - float(chosen.min())
    if which == "SA":
        return float(chosen.max()) - value
    low, high = chosen[(len(chosen) + 1) // 2 :], chosen[: (len(chosen) + 1) // 2]
    above = value - float(high.min())
    below = float(low.max()) - value if len(low) else -math.inf
    return max(above, below)


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


def _choose(values: np.ndarray, k: int, which: str) -> np.ndarray:
    return _ORDERS[which](values, min(k, len(values)))
