"""What a Krylov space from a random start proves of eigenvalues it has not met.

For an eigenpair (λ, u) and x = Qᵀu the relation H Q = Q T + F Cᵀ gives (T − λ) x = −C Fᵀu, so that the part of u in the
start vectors (rows of G: the first rows of x) is at most

    |Gx| ≤ σ_max(G (T − λ)⁻¹ C) / √(1 + σ_min((T − λ)⁻¹ C)²)

For one start vector this is 1/√(Σ_j p_j(λ)²), p_j being the Lanczos polynomials: it falls off steeply away from the
Ritz values. A random start of width b has |Gx|² ~ Beta(b/2, (n − b)/2), whatever u is. So, with a known probability, no
eigenvalue lies where the right-hand side is below the quantile. (Kuczyński and Woźniakowski 1992, doi:10.1137/0613066;
van Dorsselaer, Hochstenbach and van der Vorst 2000, doi:10.1137/S0895479899353323.)

A start s = share · ĝ + a, of a random unit vector ĝ and any a that does not depend on it, has |sᵀu| ≤ share · δ no more
often than |ĝᵀu| ≤ δ: the density of ĝᵀu is even and falls from 0 outwards (n ≥ 3), so that no other interval of that
length has more of it. (Anderson 1955, doi:10.1090/S0002-9939-1955-0069229-1.) So a start may lean towards vectors that
are thought to be near eigenvectors, and what it proves holds wherever they point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.linalg import eigh

from hvpspec.krylov.lanczos import Krylov, Ritz
from hvpspec.results.estimate import Bracket

_UNLUCKY = 3.0  # times less of the start than the extreme Ritz vector has: so much any eigenvector beyond may have
_ISOLATED = 1e-3  # the probability, over all n eigenvalues, that one lies in a gap that is called empty


@dataclass(frozen=True)
class Exclusion:
    """Where eigenvalues are not: `overlap(t)` bounds the start's part in an eigenvector of eigenvalue t."""

    values: np.ndarray
    first_rows: np.ndarray
    coupled: np.ndarray
    width: int
    n: int
    slack: float
    share: float = 1.0

    @classmethod
    def of(cls, krylov: Krylov) -> Exclusion | None:
        """From the first segment, before any restart; None when the space has closed (then there is nothing else)."""
        known = krylov.of_start
        end = known.segments[1][0] if len(known.segments) > 1 else len(known.T)
        if end == 0:
            return None
        values, vectors = eigh(known.T[:end, :end])
        coupled = vectors.T @ known.coupling[:end]
        width = min(known.segments[0][1], end)
        if not np.any(coupled):
            return None
        slack = float(np.linalg.norm(known.defects[:end])) + 50 * krylov.eps * known.norm
        return cls(values, vectors[:width], coupled, width, krylov.n, slack, krylov.share)

    def overlap(self, points: np.ndarray) -> np.ndarray:
        """The bound at each of the points."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            shifted = self.coupled / (self.values - points[:, None])[:, :, None]
            known = np.isfinite(shifted).all((1, 2))
            shifted[~known] = 0.0
            ahead = np.linalg.norm(self.first_rows @ shifted, 2, axis=(1, 2))
            least = np.maximum(np.linalg.eigvalsh(shifted.transpose(0, 2, 1) @ shifted)[:, 0], 0.0)
            return np.where(known, np.minimum(ahead / np.sqrt(1 + least), 1.0), 1.0)

    def least_overlap(self, miss: float) -> float:
        """What the part of a given eigenvector in the start exceeds with probability 1 − miss."""
        if self.n <= self.width:
            return 0.0
        return self.share * math.sqrt(float(stats.beta.ppf(miss, self.width / 2, (self.n - self.width) / 2)))

    def empty_at(self, points: np.ndarray, miss: float) -> bool:
        """Whether none of the points is an eigenvalue, each but with probability `miss`."""
        return bool((self.overlap(points) <= self.least_overlap(miss)).all())

    def beyond(self, miss: float, side: int) -> float:
        """The point past which, above (side 1) or below (side −1), no eigenvalue lies, but with probability `miss`."""
        level = self.least_overlap(miss)
        edge = self.values[-1] if side > 0 else self.values[0]
        step = max(float(self.values[-1] - self.values[0]), float(np.abs(self.coupled).max()), self.slack)
        distances = step * 2.0 ** np.arange(-40, 60)
        # There is an eigenvalue at the extreme Ritz value or beyond. A start that has less of that Ritz vector than is
        # likely of an eigenvector must not be taken for a proof that there is none further out.
        level = min(level, float(np.linalg.norm(self.first_rows[:, -1 if side > 0 else 0])) / _UNLUCKY)
        for _ in range(4):  # the bound falls all the way outwards: look where it has, ever more closely
            small = np.flatnonzero(self.overlap(edge + side * distances) <= level)
            if not small.size:
                return side * math.inf
            near = distances[small[0] - 1] if small[0] else 0.0
            far = float(distances[small[0]])
            distances = np.linspace(near, far, 33)[1:]
        return float(edge + side * (far + self.slack))

    def edge(self, value: float, towards: float) -> float | None:
        """The first point from a Ritz value towards the next one from which on there is nothing up to that."""
        level = self.least_overlap(_ISOLATED / self.n)
        points = value + (towards - value) * np.concatenate(
            [np.geomspace(1e-3, 0.5, 20), 1 - np.geomspace(0.5, 1e-6, 20)]
        )
        empty = points[self.overlap(points) < level]
        return float(empty[0]) if empty.size else None

    def empty_beside(self, value: float, edge: float) -> float:
        """The width of the gap from a Ritz value towards the next one, `edge`: where other eigenvalues can begin.

        0 when the gap is not shown to be empty anywhere.
        """
        level = self.least_overlap(_ISOLATED / self.n)
        points = value + (edge - value) * np.concatenate([np.geomspace(1e-6, 0.5, 25), 1 - np.geomspace(0.5, 1e-6, 25)])
        empty = points[self.overlap(points) < level]
        return max(abs(float(empty[-1]) - value) - self.slack, 0.0) if empty.size else 0.0


def bracket(ritz: Ritz, exclusion: Exclusion | None, side: int, confidence: float) -> Bracket:
    """Bounds on λ_max (side 1) or λ_min (side −1), the outer one holding with probability `confidence`.

    The inner bound is the Ritz value less rounding, as no Ritz value lies outside the spectrum. Costs no HVP.
    """
    extreme = int(np.argmax(side * ritz.values))
    inside = float(ritz.values[extreme]) - side * float(ritz.noise[extreme])
    if exclusion is None:
        outside = float(ritz.values[extreme]) + side * float(ritz.noise[extreme])
    else:
        outside = side * max(side * exclusion.beyond(1 - confidence, side), side * inside)
    lower, upper = sorted((inside, outside))
    return Bracket(lower, upper, confidence)


def isolated_errors(
    exclusion: Exclusion | None, values: np.ndarray, residuals: np.ndarray, ritz_values: np.ndarray
) -> np.ndarray:
    """For each value ‖r‖²/gap where the gap is shown to be empty, ‖r‖ elsewhere.

    (Kato 1949, Temple 1928; see Parlett, The Symmetric Eigenvalue Problem, doi:10.1137/1.9781611971163, section 11.7.)
    """
    errors = residuals.copy()
    if exclusion is None:
        return errors
    far = max(float(np.ptp(ritz_values)), float(np.abs(exclusion.coupled).max()))
    for i, (value, residual) in enumerate(zip(values, residuals, strict=True)):
        above = ritz_values[ritz_values > value]
        below = ritz_values[ritz_values < value]
        gap = min(
            exclusion.empty_beside(value, float(above.min()) if above.size else value + far),
            exclusion.empty_beside(value, float(below.max()) if below.size else value - far),
        )
        if gap > residual > 0:
            errors[i] = min(residual, residual**2 / gap)
    return errors
