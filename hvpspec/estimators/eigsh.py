"""Extreme eigenpairs by Lanczos, with their residuals and certificates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.bounds.eigenvalues import Exclusion, bracket, isolated_errors
from hvpspec.errors import InputError
from hvpspec.estimators.shared_pass import OnePass
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.lanczos import Krylov, Ritz
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.krylov.vectors import column_inner
from hvpspec.options import Place
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.validation import check_budget, check_confidence, check_count, check_seed, check_tol

_DEFAULT_BUDGET = 1000
_RESOLVED, _MISSED = 0.02, 0.05  # how near to found eigenvalues a warm start may miss one, and how often one farther


@dataclass(frozen=True)
class Wanted:
    """Which eigenpairs, and how well."""

    k: int
    which: str
    tol: float

    def __post_init__(self) -> None:
        check_count("k", self.k)
        if self.which not in _ORDERS:
            names = ", ".join(f'"{name}"' for name in _ORDERS)
            raise InputError(f"which must be one of {names}; got {self.which!r}.")
        check_tol(self.tol)

    def choose(self, values: np.ndarray, k: int | None = None) -> np.ndarray:
        """Which of the values, in order."""
        return _ORDERS[self.which](values, min(k or self.k, len(values)))


def eigsh(
    A: Any,
    k: int = 6,
    which: str = "LM",
    *,
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
    """The k extreme eigenpairs of a symmetric operator (n × n), by block Lanczos with full reorthogonalisation.

    A: HessianOperator, SciPy LinearOperator, sparse or dense array, or torch tensor.
    k: how many; at most n are returned.
    which: "LM" largest magnitude, "LA" largest, "SA" smallest, "BE" half from each end (the odd one from the top).
        Values come in that order: by falling magnitude, falling, rising, falling.
    tol: stop when every residual ‖A v − θ v‖ ≤ tol · |θ| (or is down at rounding errors).
    seed: of the random start vectors.
    max_hvps: the budget; by default 1000, or n if that is less. Once it is spent, what there is comes back with
        `converged=False`.
    confidence: of the brackets `largest` and `smallest`.
    verify: multiply the eigenvectors once more (k HVPs) and report the residuals measured so.
    block_size: random start vectors. With one, which needs the fewest HVPs, a multiple eigenvalue shows as a single
        one unless the space closes; b vectors show up to b copies. (`spectrum` finds missed copies with its probes.)
    start: vectors (n,) or (n, p) that eigenvectors are thought to be near, such as those of an operator that differs
        little (a warm start); needs block_size=1, and must not have been found with the same seed. Half of the start
        stays random, so that brackets and errors hold whatever is given, and the run ends only once it is shown, at
        95 %, that no eigenvalue was missed but within 2 % of one that was found. Good vectors save some HVPs, bad ones
        cost a few.
    basis_memory: what the basis may take, in bytes or as "2GiB"; by default a quarter of what is free. A basis that
        has filled it is shrunk to its best vectors (thick restart), which costs some more HVPs.
    basis_on: "device", "cpu" or "disk" (a temporary file, deleted afterwards).
    callback: called with the Eigenpairs so far (without vectors) as they improve.

    `error` bounds the distance from each value to an eigenvalue: the residual, or ‖r‖²/gap where the value is shown
    to be isolated, plus the asymmetry that the products showed, plus rounding. Costs one HVP a step and vector, and
    memory for as many n-vectors as there are steps, up to basis_memory.

    Raises InputError for options out of range, for an operator that is not symmetric and for too little memory.
    """
    wanted = Wanted(k, which, tol)
    seed, budget = check_seed(seed), check_budget(max_hvps)
    confidence, storage = check_confidence(confidence), check_storage(basis_memory, basis_on)
    block_size = check_count("block_size", block_size)
    if start is not None and block_size > 1:
        raise InputError("start goes with block_size=1; leave one of them out.")
    operator = as_symmetric(A)
    one = OnePass(
        operator, seed=seed, block=block_size, storage=storage, k=min(k, operator.n), probes=False, towards=start
    )
    budget = min(budget or _DEFAULT_BUDGET, operator.n)
    while True:
        one.extend(budget - one.hvps, wanted.choose)
        if not worth_checking(one.krylov) and one.hvps < budget:
            continue
        if callback is None and one.hvps < budget and not converged(one.krylov, wanted):
            continue
        pairs, chosen, ritz = current(one, wanted, confidence)
        if pairs.converged or one.hvps >= budget:
            return finish(one, pairs, chosen, ritz, wanted if verify else None)
        if callback is not None:
            callback(pairs)


def worth_checking(krylov: Krylov) -> bool:
    """Solving for T costs m³: at each step at first, every hundred-and-fiftieth part of m later on."""
    return krylov.segment == krylov.m or krylov.m % max(1, krylov.m // 150) == 0


def converged(krylov: Krylov, wanted: Wanted) -> bool:
    """Whether the pairs that are wanted are there and within tolerance."""
    ritz = krylov.ritz()
    return _finished(krylov, ritz, wanted.choose(ritz.values), wanted)


def current(one: OnePass, wanted: Wanted, confidence: float) -> tuple[Eigenpairs, np.ndarray, Ritz]:
    """The eigenpairs as the Krylov space has them, without vectors; which Ritz pairs they are."""
    krylov = one.krylov
    ritz = krylov.ritz()
    chosen = wanted.choose(ritz.values)
    values, residuals = ritz.values[chosen], ritz.residuals[chosen]
    exclusion = Exclusion.of(krylov)
    return (
        Eigenpairs(
            values=values,
            vectors=None,
            residuals=residuals,
            error=isolated_errors(exclusion, values, residuals, ritz.values) + ritz.noise[chosen],
            converged=_finished(krylov, ritz, chosen, wanted),
            hvps=one.hvps,
            largest=bracket(ritz, exclusion, 1, confidence),
            smallest=bracket(ritz, exclusion, -1, confidence),
            data_error=one.spread.eigenvalues(ritz.coefficients[:, chosen]),
        ),
        chosen,
        ritz,
    )


def finish(one: OnePass, pairs: Eigenpairs, chosen: np.ndarray, ritz: Ritz, verify: Wanted | None) -> Eigenpairs:
    """The eigenpairs with vectors and, to `verify` them, residuals that were measured."""
    krylov = one.krylov
    vectors = krylov.vectors(ritz.coefficients[:, chosen])
    pairs = replace(pairs, vectors=vectors.cpu().numpy())
    if verify is None:
        return pairs
    # By the Krylov relation H v = θ v + F Cᵀs; what the product differs from that by is the HVP's own noise.
    products = one.A @ vectors
    expected = vectors * _row(pairs.values, vectors)
    expected += krylov.frontier @ _small(krylov.projection.coupling.T @ ritz.coefficients[:, chosen], vectors)
    noise = np.maximum(ritz.noise[chosen], _lengths(products - expected))
    values = column_inner(vectors, products).cpu().numpy()
    residuals = _lengths(products - vectors * _row(values, vectors))
    small = residuals <= np.maximum(verify.tol * np.abs(values), noise)
    return replace(
        pairs,
        values=values,
        residuals=residuals,
        error=isolated_errors(Exclusion.of(krylov), values, residuals, ritz.values) + noise,
        converged=pairs.converged and bool(small.all()),
        hvps=one.hvps,
        verified=True,
    )


def _finished(krylov: Krylov, ritz: Ritz, chosen: np.ndarray, wanted: Wanted) -> bool:
    if krylov.m == krylov.n:
        return True  # the basis spans the whole space
    if len(chosen) < wanted.k or not _within(krylov, ritz, chosen, wanted.tol).all():
        return False
    if krylov.leans and not _nothing_missed(Exclusion.of(krylov), ritz.values[chosen], wanted.which):
        return False
    starts = [first for first, _ in krylov.projection.segments]
    if len(starts) == 1:
        return True
    # After a breakdown the eigenspaces may hold more vectors than the segments so far have shown. The last one shows no
    # more when its own extreme Ritz values are accurate and add nothing beyond the k-th.
    start, end = (starts[-2], starts[-1]) if starts[-1] == krylov.m else (starts[-1], krylov.m)
    if start == 0:
        return False
    segment = krylov.projection.ritz(krylov.eps, start, end)
    extreme = wanted.choose(segment.values, 2 if wanted.which == "BE" else 1)
    if not _within(krylov, segment, extreme, wanted.tol).all():
        return False
    slack = 1e-8 * krylov.projection.norm
    return all(_beyond(segment.values[i], ritz.values[chosen], wanted.which) <= slack for i in extreme)


def _nothing_missed(exclusion: Exclusion | None, found: np.ndarray, which: str) -> bool:
    """Whether it is shown that no eigenvalue belongs among those found, but for ones that lie close beside them.

    A cold start has as much of one eigenvector as of another, to chance. One that leans towards the wrong ones can meet
    those first: what was found is then accurate, but not what was asked for.
    """
    if exclusion is None:
        return True
    radius = _RESOLVED * np.maximum(np.abs(found), 0.1 * np.abs(found).max())
    order = np.argsort(found)
    found, radius = found[order], radius[order]
    least = float(np.abs(found).min()) + float(radius[np.argmin(np.abs(found))])
    points = np.concatenate(
        [found - radius, found + radius, [-least, least]]
        + [np.linspace(a, b, 9) for a, b in zip((found + radius)[:-1], (found - radius)[1:], strict=True) if a < b]
    )
    near = (np.abs(points[:, None] - found) < (1 - 1e-9) * radius).any(1)
    asked = np.array([_beyond(point, found[_ORDERS[which](found, len(found))], which) > 0 for point in points])
    points = points[asked & ~near]
    return exclusion.empty_at(points, _MISSED)


def _within(krylov: Krylov, ritz: Ritz, index: np.ndarray, tol: float) -> np.ndarray:
    """Which residuals are within the tolerance, or down at rounding errors (an eigenvalue of 0 has no relative one)."""
    floor = 20 * krylov.eps * krylov.projection.norm
    return ritz.residuals[index] <= np.maximum(tol * np.abs(ritz.values[index]), floor)


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


def _row(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like)


def _small(matrix: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrix)).to(like)


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
