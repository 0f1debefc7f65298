"""The spectral density as weights on nodes, with bounds on its distribution function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc

from hvpspec.entries import AtLeast, Count, NonFinite, Share, Size
from hvpspec.errors import InputError
from hvpspec.results.codec import LEFT_OUT, Stored
from hvpspec.results.estimate import Estimate
from hvpspec.wording import counted

_ROUNDING = 1e-12  # of sums of weights
_ROUNDING_OF_A_FILE = 1e-6  # likewise, where other programs may have written the weights
_MOST_NODES = 100_000  # in a file; a basis of so many vectors does not fit into any memory
_SIMULATIONS = 1000  # of the weights of random vectors, for the quantile of their distance


@dataclass(frozen=True, eq=False, repr=False)
class Density(Stored):
    """The distribution of the n eigenvalues, as weights on nodes.

    Attributes
    ----------
    nodes : ndarray of float64, shape (m,)
        Rising, in the unit of the eigenvalues.
    weights : ndarray of float64, shape (m,)
        The share of eigenvalues that each node stands for; their sum is 1. 0 at nodes that only mark where a bound
        changes.
    exact : ndarray of bool, shape (m,)
        Whether a node is an eigenvalue that was found and counted: its weight is 1/n, or as many times that as copies
        were found. The other weights are Gauss quadrature for random vectors (stochastic Lanczos quadrature).
    cdf_lower, cdf_upper : ndarray of float64, shape (m,)
        Bounds on the distribution function of those random vectors, from each node up to the next (Chebyshev, Markov,
        Stieltjes). They do not include the sampling error; `cdf_bounds` does.
    support : tuple of float
        An interval that holds all eigenvalues with probability ≥ `confidence`.
    n : int
        Number of eigenvalues.
    samples : int
        Number of random vectors.
    confidence : float
        Between 0 and 1.
    hvps : int
        Matrix-vector products that it cost.
    converged : bool
        Whether the tolerance asked for was reached.
    node_errors : ndarray of float64, shape (m,), or None
        How far the eigenvalues of an isolated node may be from it; 0 at other nodes. None in files of older versions.
    sure_lower, sure_upper : ndarray of float64, shape (m,), or None
        Bounds on the distribution function of all eigenvalues that hold for certain, since Ritz values interlace with
        eigenvalues. None in files of older versions.
    quadrature : float or None
        By how much more steps are expected to move the distribution of these random vectors, at most, in Wasserstein-1
        distance. None where only `cdf_lower` and `cdf_upper` say something about that.

    Notes
    -----
    The method: Chen, Trogdon and Ubaru 2021, arXiv:2105.06595.

    Examples
    --------
    >>> import hvpspec, numpy as np
    >>> found = hvpspec.spectral_density(np.diag(np.arange(1.0, 9.0)))
    >>> float(found.cdf(4.5).round(9))
    0.5
    >>> round(found.count(2.5, 4.5).value, 9)
    2.0
    """

    nodes: NDArray[np.float64]
    weights: Annotated[NDArray[np.float64], AtLeast(0)]
    exact: NDArray[np.bool_]
    cdf_lower: NDArray[np.float64]
    cdf_upper: NDArray[np.float64]
    support: tuple[Annotated[float, NonFinite(-math.inf)], Annotated[float, NonFinite(math.inf)]]
    n: Annotated[int, AtLeast(1)]
    samples: Annotated[int, AtLeast(1)]
    confidence: Share
    hvps: Count
    converged: bool = True
    node_errors: Annotated[NDArray[np.float64] | None, AtLeast(0), LEFT_OUT] = None
    sure_lower: Annotated[NDArray[np.float64] | None, LEFT_OUT] = None
    sure_upper: Annotated[NDArray[np.float64] | None, LEFT_OUT] = None
    quadrature: Annotated[Size | None, LEFT_OUT] = None

    json_order: ClassVar = (
        "nodes", "weights", "exact", "cdf_lower", "cdf_upper", "support", "n", "samples", "confidence", "hvps",
        "converged", "error", "node_errors", "sure_lower", "sure_upper", "quadrature",
    )  # fmt: skip

    def contradiction(self) -> tuple[str, str] | None:
        """See `hvpspec.results.codec`."""
        many = len(self.nodes)
        if not 0 < many <= _MOST_NODES:
            return "nodes", f"expected from 1 to {_MOST_NODES:,} numbers; got {many:,}"
        if (np.diff(self.nodes) < 0).any():
            return "nodes", "expected rising numbers"
        for name in ("weights", "exact", "cdf_lower", "cdf_upper", "node_errors", "sure_lower", "sure_upper"):
            column = getattr(self, name)
            if column is not None and len(column) != many:
                return name, f"expected {many:,} entries, as many as there are nodes; got {len(column):,}"
        if not abs(float(self.weights.sum()) - 1) <= _ROUNDING_OF_A_FILE:
            return "weights", f"expected numbers whose sum is 1; got {self.weights.sum():g}"
        for name in ("cdf_lower", "cdf_upper", "sure_lower", "sure_upper"):
            column = getattr(self, name)
            if column is not None and not ((abs(column - 0.5) <= 0.5 + _ROUNDING_OF_A_FILE).all()):
                return name, "expected numbers from 0 to 1"
        low, high = self.support
        return ("support", "expected the smaller end first") if low > high else None

    def cdf(self, x: ArrayLike) -> NDArray[np.float64]:
        """The share of eigenvalues that are ≤ x.

        Parameters
        ----------
        x : array_like
            In the unit of the eigenvalues, of any shape.

        Returns
        -------
        ndarray of float64
            Of the shape of x, between 0 and 1.
        """
        return self._step(np.cumsum(self.weights), x)

    def cdf_bounds(self, x: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bounds on the share of eigenvalues that are ≤ x.

        Parameters
        ----------
        x : array_like
            In the unit of the eigenvalues, of any shape.

        Returns
        -------
        lower, upper : ndarray of float64
            Of the shape of x. At each x they hold with probability ≥ `confidence`.
        """
        x = np.asarray(x, float)
        outside = (x < self.support[0]) | (x > self.support[1]) | np.isnan(x)
        lower = self._step(self.cdf_lower, x)
        upper = self._step(self.cdf_upper, x)
        sure = np.where(self.exact, self.weights, 0.0)  # the exact part, in which nothing is random
        whole = np.minimum(self._step(np.cumsum(sure), x), lower)
        errors = np.zeros(len(sure)) if self.node_errors is None else np.where(self.exact, self.node_errors, 0.0)
        below, above = (_sums_up_to(x, self.nodes + side * errors, sure) for side in (1, -1))
        lower = below + self._true_share(lower - whole, -1)
        upper = above + self._true_share(upper - whole, 1)
        if self.sure_lower is not None and self.sure_upper is not None:
            # Weights say nothing against what is certain: a single eigenvalue may have got next to none.
            least, most = self._step(self.sure_lower, x), self._step(self.sure_upper, x)
            lower, upper = np.clip(lower, least, most), np.clip(upper, least, most)
        exact = self.cdf(x)
        lower, upper = np.clip(lower - _ROUNDING, 0.0, 1.0), np.clip(upper + _ROUNDING, 0.0, 1.0)
        return np.where(outside, exact, lower), np.where(outside, exact, upper)

    def count(self, a: float, b: float) -> Estimate:
        """The number of eigenvalues in (a, b].

        Parameters
        ----------
        a, b : float
            In the unit of the eigenvalues.

        Returns
        -------
        Estimate
            Its `interval` holds the number with probability ≥ `confidence`.

        Raises
        ------
        InputError
            Unless a ≤ b; both may be infinite.
        """
        if not a <= b:
            raise InputError(f"expected an interval from a to b with a ≤ b; got {a!r} and {b!r}.")
        (low_a, high_a), (low_b, high_b) = (tuple(map(float, self.cdf_bounds(x))) for x in (a, b))
        value = self.n * float(self.cdf(b) - self.cdf(a))
        within, beyond = self._known(a, b)
        most = min(self.n * (high_b - low_a), self.n - beyond)
        least = min(max(self.n * (low_b - high_a), within), most)
        value = min(max(value, least), most)
        return Estimate.between(value, least, most, self.confidence, self.hvps, "slq")

    def _known(self, a: float, b: float) -> tuple[float, float]:
        """How many of the eigenvalues that are known one by one lie in (a, b], and how many beyond it."""
        errors = 0.0 if self.node_errors is None else self.node_errors
        low, high = self.nodes - errors, self.nodes + errors
        within, beyond = (low > a) & (high <= b), (high <= a) | (low > b)
        known = np.where(self.exact, self.n * self.weights, 0.0)
        return float(known[within].sum()), float(known[beyond].sum())

    def grid(
        self, smoothing: float | None = None, points: int = 1000, limits: tuple[float, float] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The density as a smooth curve, at evenly spaced x: each node becomes a normal curve of its weight.

        Parameters
        ----------
        smoothing : float, optional
            Standard deviation of the normal curves, in the unit of the eigenvalues. By default a hundredth of the width
            of `limits`, or without those of the range of the nodes.
        points : int
            Number of x, at least 2.
        limits : tuple of float, optional
            First and last x. By default the range of the nodes, and 4 standard deviations more on either side; the
            integral over that is 1.

        Returns
        -------
        x, density : ndarray of float64, shape (points,)

        Raises
        ------
        InputError
            For a smoothing that is not positive, fewer than 2 points, or limits that do not rise.

        Notes
        -----
        Without `limits`, x and smoothing follow the range of this density. To draw two densities over one another, give
        both the same limits: they then share x and smoothing.

        Examples
        --------
        >>> import hvpspec, numpy as np
        >>> before, after = (hvpspec.spectral_density(np.diag([1.0, 2.0, top])) for top in (4.0, 8.0))
        >>> limits = (min(before.nodes[0], after.nodes[0]) - 1, max(before.nodes[-1], after.nodes[-1]) + 1)
        >>> x, first = before.grid(limits=limits)
        >>> _, second = after.grid(limits=limits)
        >>> round(float(x[0]), 9), round(float(x[-1]), 9), round(float(first.sum() * (x[1] - x[0])), 4)
        (0.0, 9.0, 1.0)
        """
        low, high = limits or (float(self.nodes[0]), float(self.nodes[-1]))
        if limits is not None and not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(f"limits must be two numbers, the smaller one first; got {limits!r}.")
        width = (high - low) / 100 or max(abs(high), 1.0) / 100 if smoothing is None else float(smoothing)
        if not width > 0 or points < 2:
            raise InputError("smoothing must be > 0 and points ≥ 2.")
        margin = 4 * width if limits is None else 0.0
        x = np.linspace(low - margin, high + margin, points)
        curves = np.exp(-(((x[:, None] - self.nodes) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi))
        return x, curves @ self.weights

    @property
    def weighted_nodes(self) -> int:
        """How many nodes stand for eigenvalues. The others mark where a bound changes."""
        return int(np.count_nonzero(self.weights))

    @cached_property
    def error(self) -> Annotated[float, NonFinite(math.inf), AtLeast(0)]:
        """A bound on the Wasserstein-1 distance to the true distribution, ∫ |cdf − true cdf| dx, at `confidence`.

        In the unit of the eigenvalues.
        """
        starts = np.concatenate([[self.support[0]], self.nodes])
        ends = np.concatenate([self.nodes, [self.support[1]]])
        lower, upper = self.cdf_bounds(starts)
        value = self.cdf(starts)
        lengths = np.maximum(ends - starts, 0.0)
        moved = 0.0 if self.node_errors is None else float(self.weights[self.exact] @ self.node_errors[self.exact])
        within_bounds = float(np.maximum(upper - value, value - lower) @ lengths) + moved
        if self.quadrature is None:
            return within_bounds
        beyond = float(lengths[0] + lengths[-1]) / self.n  # an eigenvalue that no node stands for
        # The error of the quadrature changes sign from node to node, and that of the sampling does not follow it.
        apart = math.hypot(self.quadrature_distance, self._sampling_error())
        return min(within_bounds, apart + beyond + _ROUNDING * float(lengths.sum()))

    @property
    def quadrature_distance(self) -> float:
        """The part of `error` that more Lanczos steps would reduce."""
        between = np.diff(np.concatenate([self.nodes, [self.support[1]]]))
        sums = np.clip(np.cumsum(self.weights), self.cdf_lower, self.cdf_upper)
        bound = float(np.maximum(self.cdf_upper - sums, sums - self.cdf_lower) @ np.maximum(between, 0.0))
        return bound if self.quadrature is None else min(bound, self.quadrature)

    def _sampling_error(self) -> float:
        """The part of `error` that more random vectors would reduce.

        The quantile of ∫ |cdf of random weights − cdf| dx, simulated for eigenvalues at the nodes. A random vector has
        Dirichlet-distributed weights there. A node of one vector stands for at least one eigenvalue, though its weight
        may be less by chance; this difference is added to the random ones. The quantile is one that the simulations
        leave no doubt of.
        """
        random = ~self.exact & (self.weights > 0)
        between = np.diff(self.nodes)
        mass = float(self.weights[random].sum())
        if mass <= 0 or not len(between):
            return 0.0
        counts = np.maximum(self.weights[random] * self.n, 1 / self.samples)
        shares = mass * counts / counts.sum()
        drawn = np.random.default_rng(0).standard_gamma(
            counts * mass * self.n * self.samples / (2 * counts.sum()), (_SIMULATIONS, len(counts))
        )
        difference = np.zeros((_SIMULATIONS, len(self.nodes)))
        difference[:, random] = mass * drawn / drawn.sum(1, keepdims=True) - shares + (self.weights[random] - shares)
        distances = np.abs(np.cumsum(difference, 1)[:, :-1]) @ between
        level = self.confidence + 2 * math.sqrt(self.confidence * (1 - self.confidence) / _SIMULATIONS)
        return float(np.quantile(distances, min(level, 1.0)))

    def __repr__(self) -> str:
        state = "converged" if self.converged else "not converged"
        nodes = f"{counted(self.weighted_nodes, 'node')} from {self.nodes[0]:.5g} to {self.nodes[-1]:.5g}"
        error = f"error {self.error:.2g} ({self.confidence:g})"
        return f"<Density of {self.n:,} eigenvalues: {nodes}, {error}, {state}, {counted(self.hvps, 'HVP')}>"

    def _step(self, values: NDArray[np.float64], x: ArrayLike) -> NDArray[np.float64]:
        """A function that is 0 up to the first node, `values[i]` from node i on, and 1 beyond the support."""
        x = np.asarray(x, float)
        found = np.concatenate([[0.0], values])[np.searchsorted(self.nodes, x, side="right")]
        found = np.where(x > self.support[1], 1.0, np.where(x < self.support[0], 0.0, found))
        return np.where(np.isnan(x), np.nan, found)

    def _true_share(self, share: NDArray[np.float64], side: int) -> NDArray[np.float64]:
        """How small (side −1) or large (side 1) the true share may be, where random vectors have this weight.

        The weight of a random vector on eigenvalues whose share is p is a Beta(np/2, n(1 − p)/2) variable. p is chosen
        so that a weight as small or as large as this one has the probability (1 − confidence)/2.
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


def _sums_up_to(
    x: NDArray[np.float64], places: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The sum of the weights whose places are ≤ x, at each x."""
    order = np.argsort(places, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(weights[order])])
    found: NDArray[np.float64] = sums[np.searchsorted(places[order], x, side="right")]
    return found
