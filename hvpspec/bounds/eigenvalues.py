"""What a Krylov space from a random start proves about eigenvalues that it does not contain.

For an eigenpair (λ, u) and x = Qᵀu the relation H Q = Q T + F Cᵀ gives (T − λ) x = −C Fᵀu. Hence the component of u in
the start vectors (with G selecting the first rows of x) is at most

    |Gx| ≤ σ_max(G (T − λ)⁻¹ C) / √(1 + σ_min((T − λ)⁻¹ C)²)

For one start vector this is 1/√(Σ_j p_j(λ)²), where p_j are the Lanczos polynomials; it falls off steeply away from the
Ritz values. For a random start of width b, |Gx|² has the distribution Beta(b/2, (n − b)/2), whatever u is. So, with a
known probability, there is no eigenvalue where the right-hand side is below the quantile. (Kuczyński and Woźniakowski
1992, doi:10.1137/0613066; van Dorsselaer, Hochstenbach and van der Vorst 2000, doi:10.1137/S0895479899353323.)

A warm start s = share · ĝ + a, with a random unit vector ĝ and any a that does not depend on it, has |sᵀu| ≤ share · δ
with no greater probability than |ĝᵀu| ≤ δ: the density of ĝᵀu is even and decreases from 0 outwards (n ≥ 3), so that no
other interval of that length has a greater probability. (Anderson 1955, doi:10.1090/S0002-9939-1955-0069229-1.) The
conclusions therefore hold whatever vectors a start is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special
from scipy.linalg import eigh

from hvpspec.krylov.lanczos import Krylov, Ritz
from hvpspec.results.estimate import Bracket

_EXTREME_COMPONENT_RATIO = 3.0  # of the start's components: extreme Ritz vector to any eigenvector beyond it, at most
WAYS = np.array(
    [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
)  # from one Ritz value to the next, where eigenvalues are counted
_PROBABILITY_OF_FALSE_GAP = 1e-3  # that any of the n eigenvalues lies in a gap that is taken to be empty


@dataclass(frozen=True)
class Count:
    """How many eigenvalues H has beyond t: above for side 1, below for side −1."""

    side: int
    t: float
    number: int


@dataclass(frozen=True)
class Exclusion:
    """Where there are no eigenvalues: `overlap(t)` bounds the component of the start in an eigenvector of eigenvalue t.

    values: Ritz values of the first segment. first_rows: G times their coefficients. coupled: Cᵀ times them,
    transposed. width: start vectors. slack: the error of the products. share: the random part of the start. floor:
    below which there are no eigenvalues in any case.
    """

    values: np.ndarray
    first_rows: np.ndarray
    coupled: np.ndarray
    width: int
    n: int
    slack: float
    share: float = 1.0
    floor: float = -math.inf

    @classmethod
    def of(cls, krylov: Krylov) -> Exclusion | None:
        """From the first segment, before any restart; None if the space is invariant (there is nothing to exclude)."""
        known = krylov.of_start
        end = known.segments[1][0] if len(known.segments) > 1 else len(known.T)
        if end == 0:
            return None
        values, vectors = eigh(known.T[:end, :end])
        coupled = vectors.T @ known.coupling[:end]
        width = min(known.segments[0][1], end)
        if not np.any(coupled):
            return None
        slack = known.product_error(krylov.eps, end)
        merged = _without_rounding_copies(values, vectors[:width], coupled, slack)
        return cls(*merged, width, krylov.n, slack, krylov.share, krylov.floor(values, slack))

    def rounded(self, rounding: float) -> Exclusion:
        """The same, with Ritz vectors whose residuals are no more than `rounding` taken for eigenvectors."""
        small = np.linalg.norm(self.coupled, axis=1) <= rounding
        return replace(self, coupled=np.where(small[:, None], 0.0, self.coupled))

    def overlap(self, points: np.ndarray) -> np.ndarray:
        """The bound at each of the points."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            shifted = self.coupled / (self.values - points[:, None])[:, :, None]
            known = np.isfinite(shifted).all((1, 2))
            shifted[~known] = 0.0
            ahead, squares = self.first_rows @ shifted, shifted.transpose(0, 2, 1) @ shifted
            if len(self.first_rows) == self.coupled.shape[1] == 1:  # one start vector, as nearly always
                ahead, least = np.abs(ahead[:, 0, 0]), squares[:, 0, 0]
            else:
                ahead = np.linalg.norm(ahead, 2, axis=(1, 2))
                least = np.maximum(np.linalg.eigvalsh(squares)[:, 0], 0.0)
            bound = np.where(known, np.minimum(ahead / np.sqrt(1 + least), 1.0), 1.0)
            return np.where(points < self.floor - self.slack, 0.0, bound)

    def without(self, left_out: np.ndarray) -> Exclusion:
        """The same for eigenvectors that are orthogonal to these Ritz vectors, whose terms are then zero."""
        kept = ~left_out
        return replace(self, values=self.values[kept], first_rows=self.first_rows[:, kept], coupled=self.coupled[kept])

    def least_overlap(self, miss: float) -> float:
        """What the component of the start in a given eigenvector exceeds with probability 1 − miss."""
        if self.n <= self.width:
            return 0.0
        return self.share * math.sqrt(float(special.betaincinv(self.width / 2, (self.n - self.width) / 2, miss)))

    def empty_at(self, points: np.ndarray, miss: float) -> bool:
        """Whether none of the points is an eigenvalue; for each, this is wrong with probability `miss`."""
        return bool((self.overlap(points) <= self.least_overlap(miss)).all())

    def beyond(self, miss: float, side: int) -> float:
        """The point above which (side 1) or below which (side −1) there is no eigenvalue.

        This is wrong with probability `miss`.
        """
        level = self.least_overlap(miss)
        edge = self.values[-1] if side > 0 else self.values[0]
        step = max(float(self.values[-1] - self.values[0]), float(np.abs(self.coupled).max()), self.slack)
        distances = step * 2.0 ** np.arange(-40, 60)
        # There is an eigenvalue at the extreme Ritz value or beyond it. If the start has an unusually small component
        # in that Ritz vector, this must not be taken for a proof that there is no eigenvalue further out.
        level = min(level, float(np.linalg.norm(self.first_rows[:, -1 if side > 0 else 0])) / _EXTREME_COMPONENT_RATIO)
        for _ in range(4):  # the bound decreases outwards: refine the point where it falls below the level
            small = np.flatnonzero(self.overlap(edge + side * distances) <= level)
            if not small.size:
                return max(side * math.inf, self.floor)
            near = distances[small[0] - 1] if small[0] else 0.0
            far = float(distances[small[0]])
            distances = np.linspace(near, far, 33)[1:]
        return max(float(edge + side * (far + self.slack)), self.floor)

    def edge(self, value: float, towards: float) -> float | None:
        """The first point from a Ritz value towards the next one at which there is shown to be no eigenvalue."""
        level = self.least_overlap(_PROBABILITY_OF_FALSE_GAP / self.n)
        points = value + (towards - value) * np.concatenate(
            [np.geomspace(1e-3, 0.5, 20), 1 - np.geomspace(0.5, 1e-6, 20)]
        )
        empty = points[self.overlap(points) < level]
        return float(empty[0]) if empty.size else None

    def gap(self, value: float, neighbour: float) -> float:
        """The width of the gap from a Ritz value, towards its neighbour, to where other eigenvalues may begin.

        0 if the interval is not shown to be empty anywhere.
        """
        level = self.least_overlap(_PROBABILITY_OF_FALSE_GAP / self.n)
        points = value + (neighbour - value) * np.concatenate(
            [np.geomspace(1e-6, 0.5, 25), 1 - np.geomspace(0.5, 1e-6, 25)]
        )
        empty = points[self.overlap(points) < level]
        return max(abs(float(empty[-1]) - value) - self.slack, 0.0) if empty.size else 0.0


def _without_rounding_copies(
    values: np.ndarray, first_rows: np.ndarray, coupled: np.ndarray, slack: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The Ritz values with each group that only rounding separates (`slack`) reduced to as many as the start is wide.

    Rounding adds copies of eigenvalues that have converged, of which the start has next to nothing. In a group any
    rotation of the Ritz vectors is as good; that which gives the start's components to the first few leaves nothing to
    the others, and leaving these out makes the bound only larger.
    """
    width = len(first_rows)
    begins = np.flatnonzero(np.concatenate([[True], np.diff(values) > slack]))
    groups = np.split(np.arange(len(values)), begins[1:])
    if all(len(group) <= width for group in groups):
        return values, first_rows, coupled
    kept_values, kept_rows, kept_coupled = [], [], []
    for group in groups:
        turn = np.eye(len(group))
        if len(group) > width:
            turn = np.linalg.svd(first_rows[:, group], full_matrices=False)[2].T
        kept_values.append((turn**2).T @ values[group])
        kept_rows.append(first_rows[:, group] @ turn)
        kept_coupled.append(turn.T @ coupled[group])
    return np.concatenate(kept_values), np.hstack(kept_rows), np.vstack(kept_coupled)


def bracket(ritz: Ritz, exclusion: Exclusion | None, side: int, confidence: float) -> Bracket:
    """Bounds on λ_max (side 1) or λ_min (side −1); the outer one holds with probability `confidence`.

    The inner bound is the Ritz value, less rounding: no Ritz value lies outside the spectrum. Neither is below the
    floor. Costs no HVP.
    """
    extreme = int(np.argmax(side * ritz.values))
    inside = float(ritz.values[extreme]) - side * float(ritz.noise[extreme])
    if exclusion is None:
        outside = float(ritz.values[extreme]) + side * float(ritz.noise[extreme])
    else:
        outside = side * max(side * exclusion.beyond(1 - confidence, side), side * inside)
    lower, upper = (max(end, ritz.floor) for end in sorted((inside, outside)))
    return Bracket(lower, upper, confidence)


def counted_within(ritz: Ritz, coupling: np.ndarray, chosen: np.ndarray, rest: tuple[float, float]) -> np.ndarray:
    """For which chosen Ritz values H has no more eigenvalues beyond θ ∓ ‖r‖ than T; B's spectrum lies in `rest`.

    H − t has as many positive eigenvalues as T − t and B − Cᵀ(T − t)⁻¹C − t together. The latter has none if the upper
    end of B, raised by the largest eigenvalue of −Cᵀ(T − t)⁻¹C, is below t; likewise at the lower end.
    """
    coupled = coupling.T @ ritz.coefficients
    counted = np.zeros(len(chosen), bool)
    for number, i in enumerate(chosen):
        for side, end in ((1, rest[1]), (-1, rest[0])):
            t = float(ritz.values[i] - side * ritz.residuals[i])
            counted[number] |= none_beyond(ritz, coupled, t, side, end)
    return counted


def none_beyond(ritz: Ritz, coupled: np.ndarray, t: float, side: int, end: float) -> bool:
    """Whether H has no more eigenvalues beyond t than T, where B has none beyond `end`. coupled: Cᵀ S, (p, m)."""
    distances = side * (ritz.values - t)
    if not side * (t - end) > 0 or not distances.all():
        return False
    raised = float(np.linalg.eigvalsh(-(coupled / distances) @ coupled.T)[-1]) if len(coupled) else 0.0
    return side * (t - end) > max(raised, 0.0)


def proven_gaps(
    exclusion: Exclusion | None,
    ritz: Ritz,
    coupling: np.ndarray,
    chosen: np.ndarray,
    rest: tuple[float, float],
    counts: Sequence[Count] = (),
) -> np.ndarray:
    """How far below and above each chosen Ritz value there is shown to be no eigenvalue but those at the value itself,
    (k, 2); 0 where none of it is shown.

    exclusion: None where the Ritz values are all eigenvalues. rest: where the spectrum of B lies. counts: of H's
    eigenvalues.
    """
    values = ritz.values
    gaps = np.zeros((len(values), 2))
    if exclusion is None:
        apart = np.diff(values, prepend=-math.inf, append=math.inf)
        gaps[:, 0], gaps[:, 1] = apart[:-1], apart[1:]
        chosen_gaps: np.ndarray = gaps[chosen]
        return chosen_gaps
    far = max(float(np.ptp(values)), float(np.abs(exclusion.coupled).max()))
    ends = np.concatenate([[values[0] - far], values, [values[-1] + far]])
    for i in chosen:
        gaps[i] = [exclusion.gap(float(values[i]), float(ends[i])), exclusion.gap(float(values[i]), float(ends[i + 2]))]
    for side in (1, -1):
        gaps = np.maximum(gaps, _counted_gaps(ritz, coupling.T @ ritz.coefficients, chosen, side, rest, counts))
    chosen_gaps = gaps[chosen]
    return chosen_gaps


def _counted_gaps(
    ritz: Ritz, coupled: np.ndarray, chosen: np.ndarray, side: int, rest: tuple[float, float], counts: Sequence[Count]
) -> np.ndarray:
    """The same by numbers of eigenvalues.

    Where H has as many eigenvalues beyond t as T, none of these lies nearer to t than the Ritz values do: each of T's
    values is exceeded by one of H's (Cauchy). Where that is so on both sides of a Ritz value, the one eigenvalue
    between is within its residual.
    """
    values, gaps = side * ritz.values[::side], np.zeros((len(ritz.values), 2))
    wanted = {int(i) if side > 0 else len(values) - 1 - int(i) for i in chosen}
    end, known = rest[1] if side > 0 else rest[0], {(c.number, c.t) for c in counts if c.side == side}
    for i in range(len(values) - 1):
        low, high, beyond = float(values[i]), float(values[i + 1]), len(values) - 1 - i
        if not {i, i + 1} & wanted:
            continue
        points = sorted([*(low + (high - low) * WAYS), *(side * t for number, t in known if number == beyond)])
        for t in points:
            if low < t < high and ((beyond, side * t) in known or none_beyond(ritz, coupled, side * t, side, end)):
                gaps[i + 1, 0], gaps[i, 1] = high - t, high - low
                break
    gaps[-1, 1] = math.inf
    counted, off = gaps[:, 0] > 0, (ritz.residuals + ritz.noise)[::side]
    for i in range(1, len(values)):  # values that are equal, as far as is known, are between the same two counts
        counted[i] |= counted[i - 1] and values[i] - values[i - 1] <= off[i] + off[i - 1]
    gaps[~counted, 1] = 0.0
    shown: np.ndarray = np.maximum(gaps - ritz.noise[::side, None], 0.0)
    return shown if side > 0 else shown[::-1, ::-1]


def isolated_errors(
    exclusion: Exclusion | None,
    values: np.ndarray,
    residuals: np.ndarray,
    ritz_values: np.ndarray,
    counted: np.ndarray,
) -> np.ndarray:
    """For each value ‖r‖²/gap where the value is shown to be isolated and single, and ‖r‖ otherwise.

    counted: for which values it is shown that there are no more eigenvalues than values in their part of the spectrum.
    Without that, one Ritz value may stand for several eigenvalues too close to be resolved: the residual of v = Σ c_i
    u_i is then as large as their distances, and nothing smaller bounds how far the nearest one is. With it, each value
    whose interval [θ − ‖r‖, θ + ‖r‖] meets no other one has a single eigenvalue there.

    (Kato 1949, Temple 1928; see Parlett, The Symmetric Eigenvalue Problem, doi:10.1137/1.9781611971163, section 11.7.)
    """
    errors = residuals.copy()
    if exclusion is None:
        return errors
    far = max(float(np.ptp(ritz_values)), float(np.abs(exclusion.coupled).max()))
    for i, (value, residual) in enumerate(zip(values, residuals, strict=True)):
        others = np.delete(np.arange(len(values)), i)
        if not counted[i] or (np.abs(values[others] - value) <= residuals[others] + residual).any():
            continue
        above = ritz_values[ritz_values > value]
        below = ritz_values[ritz_values < value]
        gap = min(
            exclusion.gap(value, float(above.min()) if above.size else value + far),
            exclusion.gap(value, float(below.max()) if below.size else value - far),
        )
        if gap > residual > 0:
            errors[i] = min(residual, residual**2 / gap)
    return errors
