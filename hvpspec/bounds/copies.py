"""Which converged Ritz values are single eigenvalues: those of which a copy would have been visible in the probes.

A random start vector has one component in the whole eigenspace of a multiple eigenvalue. Its weight (χ² with as many
degrees of freedom as there are copies) hardly shows how many copies there are. Probes on the complement of the basis
show the other copies in two ways.

One at a time: the image of a probe ω has the component λ ωᵀu in the eigenvector u of a copy, and over N probes the sum
of (ωᵀu)² is a χ² variable with N degrees of freedom. So σ² (λ − c)² ≤ λ_max(YᵀY), where Y are the images less c times
the probes and σ² is below the quantile of that χ².

All together: let c be any number, λ_j the known eigenvalues and x_j the numbers of their further copies, r the number
of other eigenvalues and s the mean of (λ − c)² over those. Then

    Σ x_j ((λ_j − c)² − s) = tr (H − cI)² − Σ (λ_j − c)² − r s

The first term on the right comes from the probes, s from the random vector. With the errors of both added, the
right-hand side is an upper bound on what copies can contribute. An eigenvalue of which one copy would contribute more
is single. As the probes may have underestimated it, the square of a copy is counted with a low quantile of a χ² with N
degrees of freedom, divided by N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from hvpspec.bounds.probe_intervals import chi_squared, student
from hvpspec.krylov.probes import Grams

_PROBABILITY_OF_LESS = 0.999  # that the weight of the copies known is less: a node with more may have further ones
_LEAST_FREEDOM = 10.0  # degrees of freedom of a variance that counts at least one eigenvalue a node


@dataclass(frozen=True)
class Sums:
    """tr H and tr H², each with the half-width of its interval; the number of probes and the largest of their Grams."""

    trace: float
    trace_error: float
    squares: float
    squares_error: float
    probes: int = 0
    grams: Grams | None = None

    def least_share(self, confidence: float, count: int) -> float:
        """The share of a copy's square that the mean over the probes contains at least, for any of `count` copies."""
        return chi_squared((1 - confidence) / max(count, 1), self.probes) / self.probes if self.probes else 0.0

    def without_copies(self, values: np.ndarray, leak: np.ndarray, confidence: float) -> np.ndarray:
        """Which of the values have no further eigenvector.

        leak: by how much the basis may hide such a vector from the complement, see `quadrature`, and how far from the
        value its eigenvalue may be.
        """
        grams = self.grams
        if grams is None or not grams.ww.any():
            return np.zeros(len(values), bool)
        centre = grams.centre
        images = grams.yy - centre * (grams.wy + grams.wy.T) + centre**2 * grams.ww
        least = chi_squared((1 - confidence) / max(len(values), 1), grams.count)
        largest = max(float(np.linalg.eigvalsh(images)[-1]), 0.0)
        visible: np.ndarray = np.maximum(np.abs(values - centre) - leak, 0.0) ** 2 * least > largest
        return visible


def no_heavier(shares: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Which nodes have no more weight than a random vector may have on just so many eigenvalues.

    shares: as for `single`. The weight of c eigenvalues has a χ² distribution with c degrees of freedom, whose quantile
    grows like c: six copies found of sixty are not all.
    """
    few: np.ndarray = shares <= 2 * special.gammaincinv(copies / 2, _PROBABILITY_OF_LESS)
    return few


def single(
    values: np.ndarray,
    shares: np.ndarray,
    converged: np.ndarray,
    copies: np.ndarray,
    others: np.ndarray,
    sums: Sums,
    confidence: float,
) -> np.ndarray:
    """Which nodes stand for exactly `copies` eigenvalues.

    shares: the weight of a node times the number of eigenvalues that the random vector has components in; `others` are
    known eigenvalues that are not among these. sums: with intervals at `confidence`.
    """
    chosen: np.ndarray = converged & no_heavier(shares, copies)
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
        chosen &= away > 0  # a copy closer to the others than their own spread would not be visible
    variance, freedom = sampled_variance(squares, share, rest)
    known = float(copies[chosen] @ (values[chosen] - centre) ** 2) + float(((others - centre) ** 2).sum())
    n = float(shares.sum()) + len(others)
    room = sums.squares - 2 * centre * sums.trace + n * centre**2 - known - rest * mean
    room += sums.squares_error + 2 * abs(centre) * sums.trace_error + student(confidence, freedom) * math.sqrt(variance)
    return chosen & (away * sums.least_share(confidence, int(chosen.sum())) > max(room, 0.0))


def sampled_variance(values: np.ndarray, share: np.ndarray, rest: float, *, each: float = 1.0) -> tuple[float, float]:
    """The variance of a sum over `rest` eigenvalues of a function, as one random vector estimates it.

    Returns it with the number of samples from which it would be known as accurately. values: of the function at the
    nodes. share: the weights of the nodes, with sum 1.

    An eigenvalue with m copies contributes 2m times its square, for which the vector has a χ² with m degrees of freedom
    instead of m. But each node stands for at least one eigenvalue (`each`): with no less than that,
    (χ² − m) / √(2 max(χ², 1)) stays within the quantiles of Student's t with ten degrees of freedom, whatever m is.
    """
    squares = (values - share @ values) ** 2
    counts = np.maximum(rest * share, each)
    spread, fourth = float(counts @ squares), float(counts @ squares**2)
    rank = spread**2 / fourth if fourth > 0 else math.inf
    return 2 * rest / (rest + 2) * spread, max(rank / 4, _LEAST_FREEDOM if each else 1.0)
