"""Which converged Ritz values are single eigenvalues: those of which a copy would have shown in the probes.

A random vector meets all copies of an eigenvalue as one vector, whose weight (χ² with as many degrees of freedom as
there are copies) hardly tells how many they are. Probes on the complement of the basis see the others, in two ways.

Each by itself: the image of a probe ω has the part λ ωᵀu in a copy's eigenvector u, and over N probes (ωᵀu)² adds up to
a χ² with N degrees of freedom. So σ² (λ − c)² ≤ λ_max(YᵀY), Y being the images less c times the probes and σ² below the
quantile of that χ².

All together: with c any number, λ_j the eigenvalues known and x_j their further copies, r the others and s the mean of
(λ − c)² over those,

    Σ x_j ((λ_j − c)² − s) = tr (H − cI)² − Σ (λ_j − c)² − r s

The first term on the right comes from the probes, s from the random vector; the errors of both added, the right-hand
side is the room that there is for copies. What takes more than that is single, where of a copy's square no more is
counted than the probes have seen for sure: again a χ² with N degrees of freedom, over N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hvpspec.bounds.probe_intervals import student
from hvpspec.krylov.probes import Grams

_FREEDOM = 10.0
ONE = 11.0  # χ²₁ is below that but for 1 in 1000: what weighs more is no candidate


@dataclass(frozen=True)
class Sums:
    """tr H and tr H², each with the half-width of its interval; of the probes, as many as there are pairs of."""

    trace: float
    trace_error: float
    squares: float
    squares_error: float
    probes: int = 0
    grams: Grams | None = None

    def seen(self, confidence: float, count: int) -> float:
        """Of the square of a copy of any of `count` eigenvalues the probes' mean has this share at least."""
        return (
            float(stats.chi2.ppf((1 - confidence) / max(count, 1), self.probes)) / self.probes if self.probes else 0.0
        )

    def without_copies(self, values: np.ndarray, leak: np.ndarray, confidence: float) -> np.ndarray:
        """Which of the values have no further eigenvector; leak: how far such a one is none of the complement's."""
        grams = self.grams
        if grams is None or not grams.ww.any():
            return np.zeros(len(values), bool)
        centre = float(np.trace(grams.wy) / np.trace(grams.ww))
        images = grams.yy - centre * (grams.wy + grams.wy.T) + centre**2 * grams.ww
        least = float(stats.chi2.ppf((1 - confidence) / max(len(values), 1), grams.count))
        return np.maximum(np.abs(values - centre) - leak, 0.0) ** 2 * least > max(
            float(np.linalg.eigvalsh(images)[-1]), 0.0
        )


def single(
    values: np.ndarray,
    shares: np.ndarray,
    converged: np.ndarray,
    copies: np.ndarray,
    others: np.ndarray,
    sums: Sums,
    confidence: float,
) -> np.ndarray:
    """Which nodes stand for `copies` eigenvalues and no more.

    shares: a node's weight times the number of eigenvalues that the random vector can meet, of which the `others`
    (known ones besides) are none. sums: with their intervals at `confidence`.
    """
    chosen = converged & (shares <= ONE * copies)
    while True:
        rest = float(shares.sum()) - float(copies[chosen].sum())
        bulk = ~chosen & (shares > 0)
        if not chosen.any() or not bulk.any() or rest <= 0:
            return np.zeros(len(values), bool)
        share = shares[bulk] / shares[bulk].sum()
        centre = float(share @ values[bulk])
        squares = (values[bulk] - centre) ** 2
        mean = float(share @ squares)
        away = (values - centre) ** 2 - mean
        if (away[chosen] > 0).all():
            break
        chosen &= away > 0  # among the rest a copy would not show
    variance, freedom = sampled_variance(squares, share, rest)
    known = float(copies[chosen] @ (values[chosen] - centre) ** 2) + float(((others - centre) ** 2).sum())
    n = float(shares.sum()) + len(others)
    room = sums.squares - 2 * centre * sums.trace + n * centre**2 - known - rest * mean
    room += sums.squares_error + 2 * abs(centre) * sums.trace_error + student(confidence, freedom) * math.sqrt(variance)
    return chosen & (away * sums.seen(confidence, int(chosen.sum())) > max(room, 0.0))


def sampled_variance(values: np.ndarray, share: np.ndarray, rest: float, *, each: float = 1.0) -> tuple[float, float]:
    """Of the sum over `rest` eigenvalues of a function, as one random vector has it, and as of how many samples that
    variance is known; values: of the function at the nodes, share: their weights, sum 1.

    An eigenvalue of m copies adds 2m times its square, of which the vector has a χ² with m degrees of freedom, not m.
    But each node stands for one eigenvalue at least (`each`): with no less than that, (χ² − m) / √(2 max(χ², 1)) stays
    within the quantiles of Student's t with ten degrees of freedom, whatever m is.
    """
    squares = (values - share @ values) ** 2
    counts = np.maximum(rest * share, each)
    spread, fourth = float(counts @ squares), float(counts @ squares**2)
    rank = spread**2 / fourth if fourth > 0 else math.inf
    return 2 * rest / (rest + 2) * spread, max(rank / 4, _FREEDOM if each else 1.0)
