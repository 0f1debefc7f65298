"""What the estimators return: frozen dataclasses that know their error and turn into plain dictionaries."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import betainc

from hvpspec.results.estimate import Bracket, Estimate, finite

if TYPE_CHECKING:
    from hvpspec.results.condition import Blocks, Condition

FIGURES = ("eigenvalues", "trace", "frobenius_norm", "density")
_TINY = 1e-12  # sums of weights are off by rounding
_SURE = ("sure_lower", "sure_upper")


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Approximate eigenpairs.

    values: shape (k,), float64. vectors: shape (n, k), unit columns in the operator's dtype; None while under way or
    when read from a file. residuals: shape (k,), ‖A v − θ v‖₂. error: shape (k,); an eigenvalue lies within `error` of
    each value: ‖r‖²/gap where the value is shown to be isolated, the residual ‖r‖ elsewhere, and in both cases what
    rounding in the products adds. converged: whether every residual is within the tolerance asked for. hvps: products
    it cost. verified: whether the residuals were measured with products of their own. largest, smallest: brackets of
    λ_max and λ_min over the whole spectrum, whatever was asked for. data_error: shape (k,), the standard error of each
    value as an estimate for the population that the data are a sample of; None where there are too few batches.
    """

    values: np.ndarray
    vectors: np.ndarray | None = field(repr=False)
    residuals: np.ndarray
    error: np.ndarray
    converged: bool
    hvps: int
    verified: bool = False
    largest: Bracket | None = None
    smallest: Bracket | None = None
    data_error: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the vectors."""
        columns = {"value": self.values, "error": self.error, "residual": self.residuals}
        if self.data_error is not None:
            columns["data_error"] = self.data_error
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return {
            "eigenvalues": [dict(zip(columns, map(finite, row), strict=True)) for row in rows],
            "converged": self.converged,
            "hvps": self.hvps,
            "verified": self.verified,
            "largest": None if self.largest is None else self.largest.to_dict(),
            "smallest": None if self.smallest is None else self.smallest.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Eigenpairs:
        def column(key: str, missing: float) -> np.ndarray:
            entries = [row.get(key) for row in data["eigenvalues"]]
            return np.array([missing if entry is None else entry for entry in entries], float)

        def bracket(key: str) -> Bracket | None:
            return None if data.get(key) is None else Bracket.from_dict(data[key])

        spread = column("data_error", math.nan)
        return cls(
            values=column("value", math.nan),
            vectors=None,
            residuals=column("residual", math.inf),
            error=column("error", math.inf),
            converged=data["converged"],
            hvps=data["hvps"],
            verified=data.get("verified", False),
            largest=bracket("largest"),
            smallest=bracket("smallest"),
            data_error=None if np.isnan(spread).all() else spread,
        )


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

    nodes: np.ndarray
    weights: np.ndarray
    exact: np.ndarray
    cdf_lower: np.ndarray
    cdf_upper: np.ndarray
    support: tuple[float, float]
    n: int
    samples: int
    confidence: float
    hvps: int
    converged: bool = True
    sure_lower: np.ndarray | None = None
    sure_upper: np.ndarray | None = None

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
        return {
            "nodes": self.nodes.tolist(),
            "weights": self.weights.tolist(),
            "exact": self.exact.tolist(),
            "cdf_lower": self.cdf_lower.tolist(),
            "cdf_upper": self.cdf_upper.tolist(),
            "support": [finite(end) for end in self.support],
            "n": self.n,
            "samples": self.samples,
            "confidence": self.confidence,
            "hvps": self.hvps,
            "converged": self.converged,
            "error": finite(self.error),
            **{name: array.tolist() for name in _SURE if (array := getattr(self, name)) is not None},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Density:
        there = ("nodes", "weights", "exact", "cdf_lower", "cdf_upper", *(name for name in _SURE if name in data))
        arrays: dict[str, Any] = {name: np.array(data[name]) for name in there}
        low, high = data["support"]
        support = (-math.inf if low is None else low, math.inf if high is None else high)
        rest = {name: data[name] for name in ("n", "samples", "confidence", "hvps", "converged")}
        return cls(**arrays, support=support, **rest)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """All figures of one operator.

    parameters: n. eigenpairs: largest magnitude first. complete: False while under way or after an interruption; a
    figure not reached by then, or not asked for, is None. hvps, seconds: what it cost in all. asked: the figures asked
    for. predicted: the products that were foreseen before the first one was made (None: not known). condition: what the
    same products tell of the conditioning. blocks: the figures of each group of parameters, where they were asked for.
    """

    parameters: int
    eigenpairs: Eigenpairs | None
    trace: Estimate | None
    frobenius_norm: Estimate | None
    hvps: int
    seconds: float
    complete: bool
    density: Density | None = None
    asked: tuple[str, ...] = FIGURES[:3]
    predicted: int | None = None
    condition: Condition | None = None
    blocks: Blocks | None = None

    @property
    def converged(self) -> bool:
        """Whether every figure asked for is there and within its tolerance, the refinement near zero among them.

        The figures of blocks come along as far as they will, each with a flag of its own.
        """
        refined = self.condition is None or (
            "refined" not in self.condition.reasons
            and (self.condition.refined is None or self.condition.refined.converged)
        )
        figures = self._figures().values()
        return self.complete and refined and all(figure is not None and figure.converged for figure in figures)

    def _figures(self) -> dict[str, Eigenpairs | Estimate | Density | None]:
        figures = (self.eigenpairs, self.trace, self.frobenius_norm, self.density)
        return {name: figure for name, figure in zip(FIGURES, figures, strict=True) if name in self.asked}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the figures as spectrum.json has them."""
        pairs = {} if self.eigenpairs is None else self.eigenpairs.to_dict()
        return {
            "complete": self.complete,
            "converged": self.converged,
            "parameters": self.parameters,
            "asked": list(self.asked),
            "eigenvalues": pairs.pop("eigenvalues", []),
            **{f"eigenvalues_{name}": entry for name, entry in pairs.items()},
            "trace": None if self.trace is None else self.trace.to_dict(),
            "frobenius_norm": None if self.frobenius_norm is None else self.frobenius_norm.to_dict(),
            "density": None if self.density is None else self.density.to_dict(),
            "condition": None if self.condition is None else self.condition.to_dict(),
            "blocks": None if self.blocks is None else self.blocks.to_dict(),
            "hvps": self.hvps,
            "predicted_hvps": self.predicted,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Spectrum:
        """Reads what `to_dict` gives, and spectrum.json, of this version or an older one."""
        from hvpspec.results.condition import Blocks, Condition  # it builds upon this file

        pairs = None
        if data["eigenvalues"]:
            rest = {name.removeprefix("eigenvalues_"): entry for name, entry in data.items()}
            pairs = Eigenpairs.from_dict(
                {**rest, "converged": data["eigenvalues_converged"], "hvps": data["eigenvalues_hvps"]}
            )
        return cls(
            parameters=data["parameters"],
            eigenpairs=pairs,
            trace=None if data["trace"] is None else Estimate.from_dict(data["trace"]),
            frobenius_norm=None if data["frobenius_norm"] is None else Estimate.from_dict(data["frobenius_norm"]),
            hvps=data["hvps"],
            seconds=data["seconds"],
            complete=data["complete"],
            density=None if data.get("density") is None else Density.from_dict(data["density"]),
            asked=tuple(data.get("asked", FIGURES[:3])),
            predicted=data.get("predicted_hvps"),
            condition=None if data.get("condition") is None else Condition.from_dict(data["condition"]),
            blocks=None if data.get("blocks") is None else Blocks.from_dict(data["blocks"]),
        )


@dataclass(frozen=True)
class Progress:
    """What a callback is told while `spectrum` works.

    stage: what is being done. hvps: products made so far. expected: products that the whole run will have made, as far
    as can be foreseen; the first Progress, before any product, has the prediction. spectrum: what is known so far.
    """

    stage: str
    hvps: int
    expected: int | None
    spectrum: Spectrum
