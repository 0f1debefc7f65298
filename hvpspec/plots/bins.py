"""A density as counts in bins, for a picture: bins of one width on an axis that is linear near zero and
logarithmic far from it (asinh), so that bulk and outliers both show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hvpspec.results.density import Density


@dataclass(frozen=True, eq=False)
class Bins:
    """edges: shape (b + 1,), rising, in the eigenvalues' unit; zero is one of them. counts: shape (b,), eigenvalues
    expected in each, whose sum is n. scale: where the axis turns from linear to logarithmic."""

    edges: np.ndarray
    counts: np.ndarray
    scale: float


def binned(density: Density, count: int = 60) -> Bins:
    """Known eigenvalues count where they are. The weight of a quadrature node stands for its surroundings: half of it
    is spread evenly (on this axis) up to each of the neighbouring nodes, as far as zero or the end of the nodes."""
    nodes, weights, exact = density.nodes, density.weights * density.n, density.exact
    scale = _scale(nodes, weights, exact)
    u = np.arcsinh(nodes / scale)
    low, high = min(float(u[0]), 0.0), max(float(u[-1]), 0.0)
    width = (high - low) / count or 1.0
    first, last = int(np.floor(low / width)), int(np.ceil(high / width))
    first, last = min(first, -1), max(last, 1)  # both sides of zero
    edges = np.arange(first, last + 1) * width
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


def _scale(nodes: np.ndarray, weights: np.ndarray, exact: np.ndarray) -> float:
    """The bulk's root mean square, between a millionth of the largest magnitude and all of it."""
    largest = float(np.abs(nodes).max()) or 1.0
    bulk = ~exact & (weights > 0)
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
    return np.maximum(parts, 0.0) / (end - start)
