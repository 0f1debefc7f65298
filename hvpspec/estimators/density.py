"""The spectral density by stochastic Lanczos quadrature: each random vector samples the distribution of eigenvalues.

For a random unit vector v the measure Σ_i (u_iᵀv)² δ(λ_i) has the distribution of eigenvalues as its mean, and scatters
little when n is large: (u_iᵀv)² summed over a share p of the eigenvalues is a Beta variable of variance
2p(1 − p)/(n + 2). Lanczos from v gives its Gauss quadrature, and bounds on its distribution function. Eigenvalues that
are known one by one are counted as one each. (Golub and Welsch 1969, doi:10.1090/S0025-5718-69-99647-1; Chen, Trogdon,
Ubaru 2021, arXiv:2105.06595: spend products on steps rather than on vectors.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import eigh

from hvpspec.estimators.basis import check_storage
from hvpspec.estimators.certificates import Exclusion, bracket
from hvpspec.estimators.krylov import Krylov
from hvpspec.estimators.onepass import OnePass
from hvpspec.estimators.options import Tolerance, check_budget, check_seed
from hvpspec.estimators.symmetric import as_symmetric
from hvpspec.results import Density

_DEFAULT_BUDGET = 1000
_KNOWN = 1e-2  # an eigenvector known to this angle is taken off the start vector's measure
_ONE = 11.0  # n times the weight of one eigenvalue is a χ²₁ variable: above this (1 in 1000) it may stand for several


def spectral_density(
    A: Any,
    *,
    rtol: float = 0.02,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    basis_memory: int | str | None = None,
    basis_on: str = "device",
    callback: Callable[[Density], None] | None = None,
) -> Density:
    """The distribution of the eigenvalues of a symmetric operator (n × n), by stochastic Lanczos quadrature.

    A: HessianOperator, SciPy LinearOperator, sparse or dense array, or torch tensor.
    rtol: stop when the Wasserstein-1 distance to the true distribution is, with probability `confidence`, at most
        rtol times the width of the spectrum. Up to half of that is left to the quadrature, which more Lanczos steps
        mend, the rest to sampling, which more random vectors do.
    max_hvps: the budget; by default 1000, or n if that is less. Once it is spent, what there is comes back with
        `converged=False`.
    seed, basis_memory, basis_on: as for `hvpspec.eigsh`. callback: called with the Density after each step.

    An eigenvalue that coincides with a few others to rounding can be taken for a single one: a random vector meets all
    of them as one, and only its weight there, a random number, tells. (`spectrum` finds copies with its probes.)

    Costs one HVP a step. Raises InputError for options out of range or an operator that is not symmetric.
    """
    tolerance, seed = Tolerance(rtol, 0.0, confidence), check_seed(seed)
    storage, operator = check_storage(basis_memory, basis_on), as_symmetric(A)
    budget = min(check_budget(max_hvps) or _DEFAULT_BUDGET, operator.n)
    done: list[Krylov] = []
    already, steps = operator.hvps, 0
    while True:
        one = OnePass(operator, seed=seed, storage=storage, probes=False, first_draw=len(done))
        while True:
            one.extend(1)
            spent, last = operator.hvps - already, one.krylov.m >= (steps or one.capacity)
            if not last and spent < budget and (steps or one.krylov.m % max(1, one.krylov.m // 20)):
                continue
            density = read_density([*done, one.krylov], confidence, spent)
            allowed = tolerance.rtol * (density.support[1] - density.support[0])
            density = replace(density, converged=density.error <= allowed or one.dimension == 0)
            if density.converged or spent >= budget:
                return density
            if callback is not None:
                callback(density)
            if last or (not steps and _steps_suffice(density, allowed, one, budget)):
                break
        steps = one.krylov.m  # enough for the other random vectors, too
        one.krylov.basis.release()  # the small matrices are all that is needed of it now
        done.append(one.krylov)


def _steps_suffice(density: Density, allowed: float, one: OnePass, budget: int) -> bool:
    """Whether other random vectors help more than further steps, and cost less than going on to the whole space."""
    quadrature = quadrature_error(density)
    if quadrature > allowed / 2:
        return False
    vectors = ((density.error - quadrature) / (allowed - quadrature)) ** 2 if allowed > quadrature else math.inf
    cheaper = math.isfinite(vectors) and math.ceil(vectors) * one.krylov.m < one.A.n
    return cheaper or one.A.n > min(one.capacity, budget)


def quadrature_error(density: Density) -> float:
    """The part of `density.error` that more steps would mend: how far apart its bounds are."""
    between = np.diff(np.concatenate([density.nodes, [density.support[1]]]))
    sums = np.cumsum(density.weights)
    return float(np.maximum(density.cdf_upper - sums, sums - density.cdf_lower) @ np.maximum(between, 0.0))


def _whole(krylov: Krylov, confidence: float, hvps: int) -> Density:
    """The density when the basis spans the whole space: every eigenvalue is known."""
    nodes, n = krylov.ritz().values, krylov.n
    sums = np.arange(1, n + 1) / n
    return Density(
        nodes=nodes,
        weights=np.full(n, 1 / n),
        exact=np.ones(n, bool),
        cdf_lower=sums,
        cdf_upper=sums,
        support=(float(nodes[0]), float(nodes[-1])),
        n=n,
        samples=1,
        confidence=confidence,
        hvps=hvps,
    )


@dataclass(frozen=True)
class _Sample:
    """One segment: its start vectors, and at each node the weight, whether exact, and the steps of both bounds."""

    width: int
    nodes: np.ndarray
    weights: np.ndarray
    exact: np.ndarray
    below: np.ndarray
    above: np.ndarray


def read_density(spaces: list[Krylov], confidence: float, hvps: int) -> Density:
    """The density that the Krylov spaces, each from its own random start, have sampled. Costs no HVP."""
    for krylov in spaces:
        if krylov.m == krylov.n:
            return _whole(krylov, confidence, hvps)
    known = [(krylov.ritz(), Exclusion.of(krylov)) for krylov in spaces]
    low = max(bracket(ritz, exclusion, -1, confidence).lower for ritz, exclusion in known)
    high = min(bracket(ritz, exclusion, 1, confidence).upper for ritz, exclusion in known)
    samples = [sample for krylov in spaces for sample in _samples(krylov, low, high)]
    count = sum(sample.width for sample in samples)

    def column(name: str, *, shared: bool = True) -> np.ndarray:
        return np.concatenate([getattr(s, name) * (s.width / count if shared else 1) for s in samples])[order]

    order = np.argsort(np.concatenate([sample.nodes for sample in samples]), kind="stable")
    nodes, weights = column("nodes", shared=False), column("weights")
    return Density(
        nodes=nodes,
        weights=weights / weights.sum(),
        exact=column("exact", shared=False).astype(bool),
        cdf_lower=np.clip(np.cumsum(column("below")), 0.0, 1.0),
        cdf_upper=np.clip(np.cumsum(column("above")), 0.0, 1.0),
        support=(min(low, float(nodes[0])), max(high, float(nodes[-1]))),
        n=spaces[0].n,
        samples=count,
        confidence=confidence,
        hvps=hvps,
    )


def _samples(krylov: Krylov, low: float, high: float) -> list[_Sample]:
    """One for each segment; the spectrum lies in [low, high].

    A segment's start is random in the complement of the segments before it, whose values are all known exactly. One
    that has not ended adds little beside one that has, and is left out.
    """
    known, n = krylov.of_start, krylov.n
    starts = [first for first, _ in known.segments] + [len(known.T)]
    found = []
    before = np.zeros(0)
    for number, (first, width) in enumerate(known.segments):
        end = starts[number + 1]
        ended = number + 1 < len(known.segments)
        if end == first or (number and not ended):
            break
        values, vectors = eigh(known.T[first:end, first:end])
        weights = (vectors[:width] ** 2).mean(0)
        residuals = np.linalg.norm(known.coupling[first:end].T @ vectors, axis=0)
        values, weights, residuals, copies = _merged(values, weights, residuals, 1e-8 * known.norm)
        exact = (residuals <= _KNOWN * _gaps(values)) & (weights * (n - first) <= _ONE * copies)
        if ended and not _plausible(weights[~exact] * (n - first), n - first - copies[exact].sum()):
            exact &= weights * (n - first) <= 1
        if krylov.undisturbed is not None:
            copies = np.maximum(copies, _found(krylov, values, residuals))
        counted = np.where(exact, copies, 0.0) / n
        rest = np.where(exact, 0.0, weights)
        if rest.sum() > 0:
            rest *= ((n - first) / n - counted.sum()) / rest.sum()
        edges = None if ended else _edges(krylov, values, exact, low, high)
        nodes, mass, exact, below, above = _with_bounds(values, rest + counted, exact, edges)
        earlier = np.full(len(before), 1 / n)
        found.append(
            _Sample(
                min(width, end - first),
                np.concatenate([before, nodes]),
                np.concatenate([earlier, mass]),
                np.concatenate([np.ones(len(before), bool), exact]),
                np.concatenate([earlier, below]),
                np.concatenate([earlier, above]),
            )
        )
        before = np.concatenate([before, np.repeat(values, copies.astype(int))])
    return found


def _edges(
    krylov: Krylov, values: np.ndarray, exact: np.ndarray, low: float, high: float
) -> tuple[float, float] | None:
    """Where the sampled part of the distribution lies: up to the first empty stretch beside its outermost nodes."""
    inside = np.flatnonzero(~exact)
    exclusion = Exclusion.of(krylov)
    if not inside.size:
        return None
    ends = [low, high]
    for side, node in ((0, inside[0]), (1, inside[-1])):
        beyond = node + 2 * side - 1
        if exclusion is not None and 0 <= beyond < len(values):
            edge = exclusion.edge(float(values[node]), float(values[beyond]))
            ends[side] = ends[side] if edge is None else edge
    return ends[0], ends[1]


def _with_bounds(
    values: np.ndarray, weights: np.ndarray, exact: np.ndarray, edges: tuple[float, float] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, weights, exact, and the steps of the lower and the upper bound on the distribution function.

    From a node up to the next, the sampled part lies between the sum of the weights before that node and the sum up to
    the next one; the last weight is sure to be reached at the upper edge, the first may come from the lower edge on.
    Without edges there is no error of quadrature (the space is invariant): both bounds are the weights themselves.
    """
    if edges is None:
        return values, weights, exact, weights, weights
    values = np.concatenate([values, edges])
    weights = np.concatenate([weights, [0.0, 0.0]])
    exact = np.concatenate([exact, [False, False]])
    order = np.argsort(values, kind="stable")
    values, weights, exact = values[order], weights[order], exact[order]
    inside = np.flatnonzero(~exact)  # from edge to edge
    below, above = np.where(exact, weights, 0.0), np.where(exact, weights, 0.0)
    below[inside[1:]] = weights[inside[:-1]]
    above[inside[:-1]] = weights[inside[1:]]
    return values, weights, exact, below, above


def _merged(
    values: np.ndarray, weights: np.ndarray, residuals: np.ndarray, near: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ritz values that lie closer than `near` as one, with the sum of their weights, and how many they are."""
    first = np.flatnonzero(np.concatenate([[True], np.diff(values) > near]))
    copies = np.diff(np.concatenate([first, [len(values)]])).astype(float)
    return (
        np.add.reduceat(values, first) / copies,
        np.add.reduceat(weights, first),
        np.maximum.reduceat(residuals, first),
        copies,
    )


def _plausible(weights: np.ndarray, count: float) -> bool:
    """Whether the nodes that are not exact look as if all other eigenvalues lay there: a sum like χ² with `count`.

    In a space that has closed there is no other place for them.
    """
    return abs(float(weights.sum()) - count) <= 3 * math.sqrt(2 * max(count, 1))


def _found(krylov: Krylov, values: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """How many eigenvalues the space has come to show at each value, with vectors that were added to its start."""
    ritz = krylov.ritz()
    near = np.abs(ritz.values[:, None] - values) <= ritz.residuals[:, None] + residuals + ritz.noise[:, None]
    sure = ritz.residuals[:, None] <= _KNOWN * _gaps(values)
    return (near & sure).sum(0).astype(float)


def _gaps(values: np.ndarray) -> np.ndarray:
    """From each value to the nearest other one; its magnitude where it is the only one."""
    gaps = np.diff(values)
    gap = np.minimum(np.concatenate([[np.inf], gaps]), np.concatenate([gaps, [np.inf]]))
    return np.where(np.isfinite(gap), gap, np.abs(values))
