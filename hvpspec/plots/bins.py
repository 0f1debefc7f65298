"""A density as counts in bins, on an axis that is linear near zero and logarithmic far from it (asinh).

Bins are of one width on that axis, so that the bulk and the outliers can both be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hvpspec.results.density import Density

LEAST_COUNT = 0.3  # eigenvalues in a bin below which its bar is left out: the logarithmic axis starts there
_BINS = 60
_BINS_PER_WINDOW = 3  # of densities that are compared: the width that each node is spread over


@dataclass(frozen=True, eq=False)
class Bins:
    """edges: shape (b + 1,), rising, in the eigenvalues' unit; zero is one of them. counts: shape (b,), eigenvalues
    expected in each, whose sum is n. scale: where the axis turns from linear to logarithmic."""

    edges: np.ndarray
    counts: np.ndarray
    scale: float


def binned(density: Density) -> Bins:
    """One density.

    Known eigenvalues count where they are. The weight of a quadrature node stands for its surroundings: half of it is
    spread evenly (on this axis) up to each of the neighbouring nodes, but not across zero or beyond the last node.
    """
    weights, exact = density.weights * density.n, density.exact
    scale = _scale(density)
    u = np.arcsinh(density.nodes / scale)
    edges = _edges(u, _BINS)
    counts = np.zeros(len(edges) - 1)
    for place, weight in zip(u[exact], weights[exact], strict=True):
        counts[np.clip(np.searchsorted(edges, place, side="right") - 1, 0, len(counts) - 1)] += weight
    spread, shares = u[~exact & (weights > 0)], weights[~exact & (weights > 0)]
    for i, (place, weight) in enumerate(zip(spread, shares, strict=True)):
        left = spread[i - 1] if i else place
        right = spread[i + 1] if i + 1 < len(spread) else place
        if left < 0 < place:  # what is positive is not shown as negative
            left = 0.0
        if place < 0 < right:
            right = 0.0
        for start, end in (((place + left) / 2, place), (place, (place + right) / 2)):
            counts += weight / 2 * _overlap(edges, start, end)
    return Bins(scale * np.sinh(edges), counts, scale)


def binned_alike(densities: Sequence[Density]) -> list[Bins]:
    """Several densities in the same bins and with the same smoothing, so that they can be laid over each other.

    Every node, whether a known eigenvalue or one of the quadrature, is spread evenly over a window of one width. The
    window is as wide as the nodes of the coarsest density are apart, so that no density looks rougher for having fewer
    nodes. Windows reach across zero: on which side of it the nodes of a bulk lie is a matter of chance.
    """
    scale = min(map(_scale, densities))  # the narrowest bulk can be seen, too
    places = [np.arcsinh(density.nodes / scale) for density in densities]
    whole = np.concatenate(places)
    span = max(float(whole.max()), 0.0) - min(float(whole.min()), 0.0)
    gap = max(_typical_gap(u[density.weights > 0]) for u, density in zip(places, densities, strict=True))
    bins = int(np.clip(_BINS_PER_WINDOW * span / gap, 8, _BINS)) if gap > 0 else _BINS
    edges = _edges(whole, bins)
    half = _BINS_PER_WINDOW / 2 * (edges[1] - edges[0])
    found = []
    for u, density in zip(places, densities, strict=True):
        counts = np.zeros(len(edges) - 1)
        for place, weight in zip(u, density.weights * density.n, strict=True):
            counts += weight * _overlap(edges, max(place - half, edges[0]), min(place + half, edges[-1]))
        found.append(Bins(scale * np.sinh(edges), counts, scale))
    return found


def _edges(u: np.ndarray, count: int) -> np.ndarray:
    """About `count` bins of one width that hold all of u; zero is one of the edges, with a bin on either side."""
    low, high = min(float(u.min()), 0.0), max(float(u.max()), 0.0)
    width = (high - low) / count or 1.0
    first, last = min(int(np.floor(low / width)), -1), max(int(np.ceil(high / width)), 1)
    return np.arange(first, last + 1, dtype=float) * width


def _typical_gap(u: np.ndarray) -> float:
    """Between neighbouring nodes: three quarters of the gaps are narrower."""
    return float(np.quantile(np.diff(u), 0.75)) if len(u) > 1 else 0.0


def _scale(density: Density) -> float:
    """The bulk's root mean square, between a millionth of the largest magnitude and all of it."""
    nodes, weights = density.nodes, density.weights
    largest = float(np.abs(nodes).max()) or 1.0
    bulk = ~density.exact & (weights > 0)
    if not bulk.any():
        return largest / 10
    square = float((weights[bulk] * nodes[bulk] ** 2).sum() / weights[bulk].sum())
    return float(np.clip(np.sqrt(square), largest * 1e-6, largest))


def _overlap(edges: np.ndarray, start: float, end: float) -> np.ndarray:
    """The part of [start, end] in each bin; all in one where the interval is a point."""
    if end - start <= 1e-9 * (edges[1] - edges[0]):
        whole = np.zeros(len(edges) - 1)
        place = np.searchsorted(edges, start, side="left" if start < 0 else "right")
        whole[np.clip(place - 1, 0, len(whole) - 1)] = 1.0
        return whole
    parts = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
    shares: np.ndarray = np.maximum(parts, 0.0) / (end - start)
    return shares
