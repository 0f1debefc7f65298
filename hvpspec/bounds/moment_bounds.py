"""Bounds on a distribution function of which the first moments are known, between its Gauss nodes as well as at them.

The start g of a Krylov space has weights |gᵀu|² on the eigenvalues; G(x), the sum of the Gauss weights up to x, differs
from their distribution function F(x) by no more than the largest weight that a distribution with these moments can have
at x (Chebyshev, Markov and Stieltjes; Akhiezer, The Classical Moment Problem, 1965, theorem 2.5.4):

    |F(x) − G(x)| ≤ 1 / Σ_j p_j(x)²

with the Lanczos polynomials p_j. That is the square of `Exclusion.overlap(x)`. It falls off like (r/(x − θ))² with the
distance from a Ritz value θ of residual r. So the weight of a node lies there only to within some residuals: a null
space whose Ritz value is 1e-9, with the residual 1e-5, may as well be an eigenvalue of −1e-7.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from hvpspec.bounds.eigenvalues import Exclusion

_NEAREST_POINT = 4.0  # residuals from a node: closer to it, the bound is hardly less than its weight
_POINTS_PER_SIDE = 8  # of a gap, at most
_CHANCE_OF_MORE_HIDDEN = 0.01  # eigenvalues than are allowed for
_LEAST_CHANGE = 1e-4  # of an eigenvalue: a point at which the bounds change by less is left out


def bounds_of_rest(
    values: np.ndarray,
    radii: np.ndarray,
    rest: np.ndarray,
    weights: np.ndarray,
    exact: np.ndarray,
    counted: np.ndarray,
    ends: tuple[float, float],
    exclusion: Exclusion | None,
    n: int,
    rounding: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Further points, and the steps at all nodes and these points of the lower and of the upper bound.

    values, weights: the Gauss rule. exact: nodes that are known eigenvalues, with the share `counted` of all; `rest`
    are the shares of the others. radii: how near to a node nothing is known of where its weight lies. ends: of the
    spectrum. Without an exclusion the space is invariant, and both bounds are the weights. rounding: Ritz vectors with
    no larger residuals are taken for eigenvectors, and there are points as near to their nodes as that.
    """
    if exclusion is None:
        return np.zeros(0), rest + counted, rest + counted
    points = _points(values, radii, np.where(radii <= rounding, rounding, _NEAREST_POINT * radii), ends)
    reach = exclusion.rounded(rounding).overlap(points) ** 2
    scale = float(rest.sum()) / max(float(weights[~exact].sum()), np.finfo(float).tiny)
    least = _least_reach(values, points, reach)
    blur = scale * _beside(least, exact) + _hidden(least, exact, n) / n
    sums = np.concatenate([[0.0], np.cumsum(rest)])
    gauss = sums[np.searchsorted(values, points, side="right")]
    lower = np.concatenate(
        [np.where(exact, -math.inf, sums[:-1] - blur), gauss - scale * reach - blur, [0.0, sums[-1]]]
    )
    upper = np.concatenate(
        [np.where(exact, math.inf, sums[1:] + blur), gauss + scale * reach + blur, [math.inf, sums[-1]]]
    )
    places = np.concatenate([values, points, ends])
    order = np.argsort(places, kind="stable")
    lower = np.clip(np.maximum.accumulate(lower[order]), 0.0, sums[-1])
    # From each place up to the next, F is not below the lower bound at the first, nor above the upper one at the other.
    upper = np.clip(np.minimum.accumulate(upper[order][::-1])[::-1], 0.0, sums[-1])
    upper = np.concatenate([upper[1:], [sums[-1]]])
    kept = _worth_keeping(order < len(values), lower, upper, _LEAST_CHANGE / n)
    below, above = np.diff(lower[kept], prepend=0.0), np.diff(upper[kept], prepend=0.0)
    order = order[kept]
    nodes = np.argsort(order, kind="stable")
    below, above = below[nodes], above[nodes]
    below[: len(values)] += counted
    above[: len(values)] += counted
    return places[np.sort(order)][len(values) :], below, above


def _points(values: np.ndarray, radii: np.ndarray, nearest: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Points in the gaps between nodes and up to the ends, more closely spaced near nodes that are known accurately.

    nearest: the distance of the first points to each node.
    """
    far = float(np.abs(values).max()) or 1.0
    first, last = (end if math.isfinite(end) else value for end, value in zip(ends, (-far, far), strict=True))
    edges = np.concatenate([[min(first, values[0])], values, [max(last, values[-1])]])
    near = np.concatenate([[math.inf], nearest, [math.inf]])
    found: list[np.ndarray] = []
    for left, right, after, before in zip(edges[:-1], edges[1:], near[:-1], near[1:], strict=True):
        half = (right - left) / 2
        found += [left + _distances(after, half), right - _distances(before, half), np.array([left + half])]
    points = np.unique(np.concatenate(found))
    within = (np.abs(points[:, None] - values) <= radii).any(1)  # of a node: on which side of it is not known
    between: np.ndarray = points[(points > ends[0]) & (points < ends[1]) & ~within]
    return between


def _distances(first: float, last: float) -> np.ndarray:
    """From `first` up to less than `last`, each ten or more times the one before."""
    if not 0 < first < last:
        return np.zeros(0)
    count = min(math.ceil(math.log10(last / first)), _POINTS_PER_SIDE)
    return np.geomspace(first, last, count + 1)[:-1]


def _least_reach(values: np.ndarray, points: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """The least bound in each gap: before the first node, between nodes, and after the last one."""
    best = np.ones(len(values) + 1)
    np.minimum.at(best, np.searchsorted(values, points), reach)
    best[[0, -1]] = np.where(best[[0, -1]] < 1, best[[0, -1]], 0.0)  # there is nothing beyond the ends
    return best


def _beside(best: np.ndarray, exact: np.ndarray) -> float:
    """By how much the weights of the exact nodes may differ from their Gauss weights: the bounds on either side."""
    return float((best[:-1] + best[1:])[exact].sum())


def _hidden(best: np.ndarray, exact: np.ndarray, n: int) -> int:
    """How many eigenvalues between exact nodes the start may have next to nothing of; more have a chance of 1 %.

    These are not among the exact ones just because their weights are small: they are no random sample, and where little
    else is left, the others would be counted for them. Of m eigenvalues, the number with weights that the gaps could
    hide is binomial.
    """
    between = best[1:-1][exact[:-1] & exact[1:]]
    if not between.size:
        return 0
    chance, found, hidden = float(special.gammainc(0.5, n * between.max() / 2)), int(exact.sum()), 0
    while special.bdtrc(hidden, found + hidden, chance) > _CHANCE_OF_MORE_HIDDEN and found + hidden < n:
        hidden += 1
    return hidden


def _worth_keeping(node: np.ndarray, lower: np.ndarray, upper: np.ndarray, least: float) -> np.ndarray:
    """Which places to keep, in rising order: nodes, both ends, and those at which a bound changes by `least` or more.

    Without a place, the bounds from the place before hold up to the next: the upper one must then be that of the next.
    """
    kept = node.copy()
    kept[[0, -1]] = True
    last = 0
    for i in range(1, len(node)):
        if kept[i] or lower[i] - lower[last] >= least or upper[i] - upper[last] >= least:
            kept[i] = True
            last = i
    # An interval that has lost its inner places is bounded from above by the last of their upper bounds.
    places = np.flatnonzero(kept)
    for first, end in zip(places, np.append(places[1:], len(node)), strict=True):
        upper[first] = upper[end - 1]
    return kept
