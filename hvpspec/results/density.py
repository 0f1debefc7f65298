"""The spectral density as weights on nodes, with bounds on its distribution function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from hvpspec.results.codec import LEFT_OUT, NonFinite, decode, encode
from hvpspec.results.estimate import Estimate

_TINY = 1e-12  # sums of weights are off by rounding


@dataclass(frozen=True, eq=False)
class Density:
    """The distribution of the n eigenvalues, as weights on nodes.

    nodes: shape (m,), rising. weights: shape (m,), sum 1; 0 at nodes that only mark where a bound changes. exact: shape
    (m,), where a node is an eigenvalue that is known and counted (weight 1/n, or as many as were found there); the
    other weights are Gauss quadrature for random vectors (SLQ). cdf_lower, cdf_upper: shape (m,), what the distribution
    function of those vectors lies between from each node up to the next (Chebyshev, Markov, Stieltjes); they take in no
    sampling error. sure_lower, sure_upper: shape (m,), what the distribution function of all eigenvalues lies between
    for certain, as Ritz values interlace with eigenvalues (None in older files). support: an interval that holds all
    eigenvalues with probability ≥ `confidence`. n: eigenvalues. samples: random vectors. hvps: products it cost.
    converged: whether the tolerance asked for was reached.
    """

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]
    exact: NDArray[np.bool_]
    cdf_lower: NDArray[np.float64]
    cdf_upper: NDArray[np.float64]
    support: tuple[Annotated[float, NonFinite(-math.inf)], Annotated[float, NonFinite(math.inf)]]
    n: int
    samples: int
    confidence: float
    hvps: int
    converged: bool = True
    sure_lower: Annotated[NDArray[np.float64] | None, LEFT_OUT] = None
    sure_upper: Annotated[NDArray[np.float64] | None, LEFT_OUT] = None

    json_order: ClassVar = (
        "nodes", "weights", "exact", "cdf_lower", "cdf_upper", "support", "n", "samples", "confidence", "hvps",
        "converged", "error", "sure_lower", "sure_upper",
    )  # fmt: skip

    def cdf(self, x: Any) -> np.ndarray:
        """The share of eigenvalues that are ≤ x; x of any shape."""
        return self._step(np.cumsum(self.weights), x)

    def cdf_bounds(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """What the share of eigenvalues ≤ x lies between at each x (each with probability ≥ `confidence`)."""
        outside = (np.asarray(x, float) < self.support[0]) | (np.asarray(x, float) > self.support[1])
        lower = self._step(self.cdf_lower, x)
        upper = self._step(self.cdf_upper, x)
        whole = self._step(np.cumsum(np.where(self.exact, self.weights, 0.0)), x)
        whole = np.minimum(whole, lower)  # the exact part, in which there is no chance
        lower = whole + self._true_share(lower - whole, -1)
        upper = whole + self._true_share(upper - whole, 1)
        if self.sure_lower is not None and self.sure_upper is not None:
            lower = np.maximum(lower, self._step(self.sure_lower, x))
            upper = np.minimum(upper, self._step(self.sure_upper, x))
        exact = self.cdf(x)
        lower, upper = np.clip(lower - _TINY, 0.0, 1.0), np.clip(upper + _TINY, 0.0, 1.0)
        return np.where(outside, exact, lower), np.where(outside, exact, upper)

    def count(self, a: float, b: float) -> Estimate:
        """The number of eigenvalues in (a, b], with an interval that holds it with probability ≥ `confidence`."""
        (low_a, high_a), (low_b, high_b) = (tuple(map(float, self.cdf_bounds(x))) for x in (a, b))
        value = self.n * float(self.cdf(b) - self.cdf(a))
        most, least = min(self.n * (high_b - low_a), self.n), max(self.n * (low_b - high_a), 0.0)
        return Estimate.between(value, least, most, self.confidence, self.hvps, "slq")

    def grid(self, smoothing: float | None = None, points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
        """The density at evenly spaced x, each node widened to a normal curve.

        smoothing: its standard deviation, in units of the eigenvalues; by default a hundredth of their range.
        Returns x and the density, shape (points,); its integral is 1.
        """
        low, high = float(self.nodes[0]), float(self.nodes[-1])
        width = (high - low) / 100 or max(abs(high), 1.0) / 100 if smoothing is None else float(smoothing)
        if not width > 0 or points < 2:
            raise ValueError("smoothing must be > 0 and points ≥ 2.")
        x = np.linspace(low - 4 * width, high + 4 * width, points)
        curves = np.exp(-(((x[:, None] - self.nodes) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
        return x, curves @ self.weights

    @property
    def error(self) -> float:
        """A bound on the Wasserstein-1 distance to the true distribution, ∫ |cdf − true cdf| dx, at `confidence`."""
        starts = np.concatenate([[self.support[0]], self.nodes])
        ends = np.concatenate([self.nodes, [self.support[1]]])
        lower, upper = self.cdf_bounds(starts)
        value = self.cdf(starts)
        return float(np.maximum(upper - value, value - lower) @ np.maximum(ends - starts, 0.0))

    def _step(self, values: np.ndarray, x: Any) -> np.ndarray:
        """A function that is 0 up to the first node, `values[i]` from node i on, and 1 beyond the support."""
        x = np.asarray(x, float)
        found = np.concatenate([[0.0], values])[np.searchsorted(self.nodes, x, side="right")]
        return np.where(x > self.support[1], 1.0, np.where(x < self.support[0], 0.0, found))

    def _true_share(self, share: np.ndarray, side: int) -> np.ndarray:
        """How small (side −1) or large (side 1) the true share may be, where random vectors have this weight.

        Of eigenvalues whose share is p a random vector holds a Beta(np/2, n(1 − p)/2) variable: p is such that as small
        or large a weight as this has the probability (1 − confidence)/2.
        """
        mass = float(self.weights[~self.exact].sum())
        if mass <= 0:
            return share
        q = np.clip(share / mass, 0.0, 1.0)
        halves = mass * self.n * self.samples / 2
        tail = (1 - self.confidence) / 2 if side > 0 else (1 + self.confidence) / 2
        low, high = (q, np.ones_like(q)) if side > 0 else (np.zeros_like(q), q)
        for _ in range(50):
            p = (low + high) / 2
            below = betainc(np.maximum(halves * p, 1e-12), np.maximum(halves * (1 - p), 1e-12), q) > tail
            low, high = np.where(below, p, low), np.where(below, high, p)
        p = np.where((q <= 0) | (q >= 1), q, (low + high) / 2)
        return mass * p

    def to_dict(self) -> dict[str, Any]:
        """As spectrum.json has it: infinite and undefined numbers become None."""
        return encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Density:
        """Reads what `to_dict` gives."""
        return decode(cls, data)
