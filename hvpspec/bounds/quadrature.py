"""The distribution of eigenvalues that the start vectors of Krylov spaces have sampled, with bounds on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hvpspec.bounds.copies import Sums, no_heavier, single
from hvpspec.bounds.eigenvalues import Exclusion, bracket
from hvpspec.bounds.moment_bounds import bounds_of_rest
from hvpspec.krylov.lanczos import COINCIDING, Krylov, Ritz
from hvpspec.krylov.operator_view import ROUNDOFFS_PER_PRODUCT
from hvpspec.results.density import Density

_ANGLE_OF_KNOWN_VECTOR = 1e-2  # radians; an eigenvalue whose vector is known to this angle is treated as known
_LEAST_STEPS_TO_COMPARE = 6  # with fewer steps
_SHARE_OF_HALF, _SHARE_OF_AVERAGED = 0.65, 1.4  # of the distances to these, that the quadrature's error is taken to be
_COINCIDING_ROUNDOFFS = 200  # of ‖H‖: values of different segments that are closer than this are copies

_Rule = tuple[np.ndarray, np.ndarray]  # nodes and weights


def quadrature_error(density: Density) -> float:
    """How far apart the density's bounds are: what more steps would reduce of the error of its counts."""
    between = np.diff(np.concatenate([density.nodes, [density.support[1]]]))
    sums = np.clip(np.cumsum(density.weights), density.cdf_lower, density.cdf_upper)
    return float(np.maximum(density.cdf_upper - sums, sums - density.cdf_lower) @ np.maximum(between, 0.0))


def _settling(spaces: list[Krylov]) -> float | None:
    """The Wasserstein distance of the quadrature to the distribution that the start has sampled, estimated in two ways.

    It decreases at least like 1/steps (Chen, Trogdon, Ubaru 2021, arXiv:2105.06595, theorem 1): the quadrature of half
    the steps is twice as far from the distribution, so that it is at least as far from that of all steps as the latter
    is from the distribution; in fact about twice as far, as errors of different nodes do not cancel. And Laurie's
    averaged quadrature (1996, doi:10.1090/S0025-5718-96-00713-9), whose error is smaller, is as far from the latter as
    that from the distribution. It misses what half the steps show: clusters that have just been resolved. The larger of
    the two, with margins, held in at least 98 % of 180 cases on each of 39 spectra. All are of the mean over the
    spaces. None where a space has too few steps or has become invariant.
    """
    rules: list[tuple[_Rule, _Rule, _Rule]] = []
    for krylov in spaces:
        known = krylov.of_start
        steps, block = len(known.T), min(known.segments[0][1], len(known.T)) if known.segments else 0
        if len(known.segments) != 1 or steps < _LEAST_STEPS_TO_COMPARE * block or krylov.warm:
            return None
        half = block * (steps // (2 * block))
        rules.append((_gauss(known.T, block), _gauss(known.T[:half, :half], block), _averaged(known.T, block)))
    all_steps, from_half, averaged = (_mean(of_spaces) for of_spaces in zip(*rules, strict=True))
    return max(
        _SHARE_OF_HALF * wasserstein(*all_steps, *from_half), _SHARE_OF_AVERAGED * wasserstein(*all_steps, *averaged)
    )


def _mean(rules: Sequence[_Rule]) -> _Rule:
    nodes, weights = zip(*rules, strict=True)
    return np.concatenate(nodes), np.concatenate(weights) / len(rules)


def _averaged(T: np.ndarray, block: int) -> _Rule:
    """Nodes and weights of the mean of two quadratures: Gauss's of one step less, and the one with the opposite error.

    The latter has the last coupling times √2.
    """
    before = len(T) - block
    opposite = T.copy()
    opposite[before:, :before] *= math.sqrt(2)
    opposite[:before, before:] *= math.sqrt(2)
    nodes, weights = zip(_gauss(T[:before, :before], block), _gauss(opposite, block), strict=True)
    return np.concatenate(nodes), np.concatenate(weights) / 2


def _gauss(T: np.ndarray, block: int) -> _Rule:
    """Nodes and weights of the start vectors' quadrature."""
    nodes, vectors = np.linalg.eigh(T)
    return nodes, (vectors[:block] ** 2).mean(0)


def wasserstein(nodes: np.ndarray, weights: np.ndarray, others: np.ndarray, their_weights: np.ndarray) -> float:
    """∫ |F − G| dx of two discrete distributions."""
    places = np.concatenate([nodes, others])
    order = np.argsort(places, kind="stable")
    difference = np.cumsum(np.concatenate([weights, -their_weights])[order])[:-1]
    return float(np.abs(difference) @ np.diff(places[order]))


def _whole(krylov: Krylov, confidence: float, hvps: int) -> Density:
    """The density if the basis spans the whole space: every eigenvalue is known."""
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
    """One segment: its number of start vectors, and for each node its weight, whether exact, and both bounds' steps.

    errors: how far the eigenvalue of an exact node may be from it. shares: for how many eigenvalues the weight stands
    that was sampled. copies: how many are known at a node that is known accurately, 0 at others. near: within which
    distance nodes of different segments coincide.
    """

    width: int
    nodes: np.ndarray
    weights: np.ndarray
    exact: np.ndarray
    errors: np.ndarray
    below: np.ndarray
    above: np.ndarray
    shares: np.ndarray
    copies: np.ndarray
    near: float


def read_density(
    spaces: list[Krylov], confidence: float, hvps: int, sums: Sums | None = None, *, likely: bool = True
) -> Density:
    """The density that the Krylov spaces, each from its own random start, have sampled. Costs no HVP.

    sums: trace and squared norm, which show which eigenvalues are single; without them, none is known to be. likely:
    where a node probably stands for just the copies that are known, its weight is their number instead of the one that
    was sampled. The bounds do not depend on that.
    """
    for krylov in spaces:
        if krylov.m == krylov.n:
            return _whole(krylov, confidence, hvps)
    known = [(krylov.ritz(), Exclusion.of(krylov)) for krylov in spaces]
    low = max(bracket(ritz, exclusion, -1, confidence).lower for ritz, exclusion in known)
    low = min(low, *(float(ritz.values[0]) for ritz, _ in known))  # which rounding may take below a floor
    high = min(bracket(ritz, exclusion, 1, confidence).upper for ritz, exclusion in known)
    samples = [sample for krylov in spaces for sample in _samples(krylov, low, high, sums, confidence)]
    if likely:  # the bounds remain those of the weights that were sampled
        samples = _with_likely_counts(samples, spaces[0].n)
    count = sum(sample.width for sample in samples)

    def column(name: str, *, shared: bool = True) -> np.ndarray:
        return np.concatenate([getattr(s, name) * (s.width / count if shared else 1) for s in samples])[order]

    order = np.argsort(np.concatenate([sample.nodes for sample in samples]), kind="stable")
    nodes, weights = column("nodes", shared=False), column("weights")
    sure_lower, sure_upper = _interlaced([ritz for ritz, _ in known], nodes, spaces[0].n)
    return Density(
        nodes=nodes,
        weights=weights / weights.sum(),
        exact=column("exact", shared=False).astype(bool),
        node_errors=column("errors", shared=False),
        cdf_lower=np.clip(np.cumsum(column("below")), 0.0, 1.0),
        cdf_upper=np.clip(np.cumsum(column("above")), 0.0, 1.0),
        support=(min(low, float(nodes[0])), max(high, float(nodes[-1]))),
        n=spaces[0].n,
        samples=count,
        confidence=confidence,
        hvps=hvps,
        sure_lower=sure_lower,
        sure_upper=sure_upper,
        quadrature=_settling(spaces),
    )


def _interlaced(known: list[Ritz], nodes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Bounds on the distribution from each node up to the next that hold for certain.

    The i-th smallest eigenvalue is not above the i-th smallest Ritz value, and the i-th largest not below the i-th
    largest.
    """
    after = np.concatenate([nodes[1:], [np.inf]])
    lower, upper = np.zeros(len(nodes)), np.ones(len(nodes))
    for ritz in known:
        lower = np.maximum(lower, np.searchsorted(ritz.values + ritz.noise, nodes, side="right") / n)
        above = len(ritz.values) - np.searchsorted(ritz.values - ritz.noise, after, side="left")
        upper = np.minimum(upper, 1 - above / n)
    return lower, upper


def _with_likely_counts(samples: list[_Sample], n: int) -> list[_Sample]:
    """With the number of copies that are known as the weight of each node that need not stand for more of them.

    Of several segments, all that have sampled an eigenvalue decide together: each alone, one would often count the few
    copies it knows of twenty because its own weight happens to be small.
    """
    places = np.concatenate([sample.nodes for sample in samples])
    order = np.argsort(places, kind="stable")
    places = places[order]
    sampled = [np.where(sample.copies > 0, sample.shares, 0.0) * sample.width for sample in samples]
    known = [sample.copies * sample.width for sample in samples]
    totals = [np.concatenate([[0.0], np.cumsum(np.concatenate(column)[order])]) for column in (sampled, known)]
    found = []
    for sample in samples:
        first = np.searchsorted(places, sample.nodes - sample.near, side="left")
        end = np.searchsorted(places, sample.nodes + sample.near, side="right")
        weights, copies = (total[end] - total[first] for total in totals)
        few = sample.exact | ((sample.copies > 0) & no_heavier(weights, copies))
        counted = np.where(few & ~sample.exact, sample.copies / n, np.where(few, sample.weights, 0.0))
        rest = np.where(few, 0.0, sample.weights)
        if rest.sum() > 0:
            mass = counted + rest * (1 - counted.sum()) / rest.sum()
            sample = replace(sample, weights=mass)
        found.append(sample)
    return found


def _samples(krylov: Krylov, low: float, high: float, sums: Sums | None, confidence: float) -> list[_Sample]:
    """One for each segment; the spectrum lies in [low, high].

    The start of a segment is random in the complement of the earlier segments, whose values are all known exactly. A
    segment that has not ended adds little to one that has, and is left out.
    """
    n, found, before = krylov.n, [], np.zeros(0)
    segments = _segments(krylov)
    for number, segment in enumerate(segments):
        values, copies = segment.values, segment.copies
        left = n - len(before)
        atoms = segment.residuals <= _ANGLE_OF_KNOWN_VECTOR * gaps(values)
        exact = np.zeros(len(values), bool)
        if segment.ended:  # a later segment that has ended as well shows which copies were left
            later = [_shown(values, other) for other in segments[number + 1 :]]
            exact = np.min(later, axis=0) == 0 if later else exact
            copies = copies + np.sum(later, axis=0) if later else copies
            atoms = np.ones(len(values), bool)
        if krylov.undisturbed is not None:
            earlier_copies = (np.abs(before[:, None] - values) <= segment.near).sum(0)
            copies = np.maximum(copies, _found(krylov, values, segment.residuals) - earlier_copies)
        if sums is not None:
            exact |= single(values, left * segment.weights, atoms, copies, before, sums, confidence)
            if not segment.ended:
                hidden = _leak(krylov, values) + segment.radii
                exact[atoms] |= sums.without_copies(values[atoms], hidden[atoms], confidence)
        exact &= copies >= segment.copies + segment.ghosts  # a copy that is about to appear may be one more
        counted = np.where(exact, copies, 0.0) / n
        rest = np.where(exact, 0.0, segment.weights)
        if rest.sum() > 0:
            rest *= (left / n - counted.sum()) / rest.sum()
        exclusion = None if segment.ended else Exclusion.of(krylov)
        rounding = ROUNDOFFS_PER_PRODUCT * krylov.eps * krylov.of_start.norm
        points, below, above = bounds_of_rest(
            values, segment.radii, rest, segment.weights, exact, counted, (low, high), exclusion, n, rounding
        )
        earlier, nothing = np.full(len(before), 1 / n), np.zeros(len(points))
        found.append(
            _Sample(
                segment.width,
                np.concatenate([before, values, points]),
                np.concatenate([earlier, rest + counted, nothing]),
                np.concatenate([np.ones(len(before), bool), exact, nothing.astype(bool)]),
                np.concatenate([0 * earlier, np.where(atoms & (exclusion is not None), segment.radii, 0.0), nothing]),
                np.concatenate([earlier, below]),
                np.concatenate([earlier, above]),
                np.concatenate([0 * earlier, left * segment.weights, nothing]),
                np.concatenate([0 * earlier, np.where(atoms, copies, 0.0), nothing]),
                segment.near,
            )
        )
        before = np.concatenate([before, np.repeat(segment.values, segment.copies.astype(int))])
    return found


@dataclass(frozen=True)
class _Segment:
    """Ritz values of a segment, with those that coincide merged into one of several copies, and their weights.

    ghosts: further copies that are about to appear at each value. radii: how near to each one nothing is known of where
    its weight lies. near: the distance within which values of different segments coincide.
    """

    values: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray
    copies: np.ndarray
    radii: np.ndarray
    ghosts: np.ndarray
    width: int
    ended: bool
    near: float


def _segments(krylov: Krylov) -> list[_Segment]:
    """The segments that have ended, and the first one in any case."""
    known = krylov.of_start
    starts = [first for first, _ in known.segments] + [len(known.T)]
    near = max(COINCIDING, _COINCIDING_ROUNDOFFS * krylov.eps) * known.norm
    found = []
    for number, (first, width) in enumerate(known.segments):
        end, ended = starts[number + 1], number + 1 < len(known.segments)
        if end == first or (number and not ended):
            break
        ritz = known.ritz(krylov.eps, first, end)
        weights = (ritz.coefficients[:width] ** 2).mean(0)
        # No farther apart than their residuals leave them: values that are known better than that are different ones.
        apart = ritz.residuals[1:] + ritz.residuals[:-1] + _COINCIDING_ROUNDOFFS * krylov.eps * known.norm
        merged = _merged(ritz.values, weights, ritz.residuals, np.minimum(apart, COINCIDING * known.norm))
        nodes = _without_ghosts(*merged, krylov.eps, near)
        found.append(_Segment(*nodes, min(width, end - first), ended, near))
    return found


def _shown(values: np.ndarray, segment: _Segment) -> np.ndarray:
    """How many copies of each value the segment has. (Rounding can add a second one, with hardly any weight.)"""
    shown: np.ndarray = segment.copies @ (np.abs(segment.values[:, None] - values) <= segment.near)
    return shown


def _merged(
    values: np.ndarray, weights: np.ndarray, residuals: np.ndarray, near: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ritz values that are closer to the next than `near`, merged.

    Returns their mean, weight, largest residual, how many they are, and within which distance of the mean all are. Each
    counts in the mean as much as the start has of it: next to nothing for the copies of an eigenvalue that rounding has
    brought, some of which are still on their way to it.
    """
    first = np.flatnonzero(np.concatenate([[True], np.diff(values) > near]))
    copies = np.diff(np.concatenate([first, [len(values)]])).astype(float)
    shares = np.maximum(weights, np.finfo(float).tiny)
    means = np.add.reduceat(shares * values, first) / np.add.reduceat(shares, first)
    means = np.where(copies > 1, means, values[first])
    return (
        means,
        np.add.reduceat(weights, first),
        np.maximum.reduceat(residuals, first),
        copies,
        np.maximum.reduceat(np.abs(values - np.repeat(means, copies.astype(int))), first),
    )


def _without_ghosts(
    values: np.ndarray,
    weights: np.ndarray,
    residuals: np.ndarray,
    copies: np.ndarray,
    spread: np.ndarray,
    eps: float,
    near: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The nodes without ghosts: copies of a converged eigenvalue that are about to appear.

    Last, the radii, and how many ghosts each node has.

    Once an eigenvalue has converged, rounding introduces a copy: at first with almost none of the start's weight, and
    no farther from the first than its own residual. As a node it would make the first one appear not to be isolated.
    """
    distances = np.abs(values[:, None] - values)
    ghostly = (distances <= residuals[:, None]) & (residuals <= near) & (weights[:, None] <= eps * weights)
    kept = ~ghostly.any(1)
    ghosts = ghostly.sum(0)
    radii = residuals + spread
    return values[kept], weights[kept], residuals[kept], copies[kept], radii[kept], ghosts[kept]


def _found(krylov: Krylov, values: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """How many eigenvalues the space contains at each value, counting vectors that were added to its start."""
    counts: np.ndarray = _own(krylov, values, residuals).sum(0).astype(float)
    return counts


def _own(krylov: Krylov, values: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """Which Ritz values of the whole basis (rows) are eigenvalues at each of the values (columns)."""
    ritz = krylov.ritz()
    near = np.abs(ritz.values[:, None] - values) <= ritz.residuals[:, None] + residuals + ritz.noise[:, None]
    accurate = ritz.residuals[:, None] <= _ANGLE_OF_KNOWN_VECTOR * gaps(values)
    own: np.ndarray = near & accurate
    return own


def _leak(krylov: Krylov, values: np.ndarray) -> np.ndarray:
    """By how much the component of a further eigenvector u in the complement may fail to be an eigenvector of B.

    With a = Qᵀu, (T − λ) a = −C Fᵀu gives ‖(B − λ) z‖ ≤ ‖Cᵀ (T − λ)⁻¹ C‖ ‖z‖ for that component z. Once an eigenvalue
    has converged, rounding introduces copies into the basis; while these are converging, the bound is large.
    """
    ritz = krylov.ritz()
    own = _own(krylov, values, np.zeros(len(values)))
    with np.errstate(divide="ignore", invalid="ignore"):
        others = ritz.residuals[:, None] ** 2 / np.abs(ritz.values[:, None] - values)
    leak: np.ndarray = np.where(own, ritz.residuals[:, None], others).sum(0)
    return leak


def gaps(values: np.ndarray) -> np.ndarray:
    """The distance from each value to the nearest other one, or its magnitude if it is the only one."""
    steps = np.diff(values)
    gap = np.minimum(np.concatenate([[np.inf], steps]), np.concatenate([steps, [np.inf]]))
    distances: np.ndarray = np.where(np.isfinite(gap), gap, np.abs(values))
    return distances
