"""Estimates of trace and squared norm, with intervals, from the small matrices of the probes.

Notation: D is the dimension of the complement, B (D × D) the remainder, c = tr B / D, B_c = B − c I. A sample of the
trace is wᵀy, one of the squared norm is ‖y‖². Deflated probes differ in length; the part of a sample that is
proportional to ‖w‖², whose mean D is known, is subtracted with a factor estimated from the *other* probes, which leaves
no bias.

The coverage depends on how well the variance is known. The spread of a few samples is too small too often if one
eigenvalue dominates (the samples are then like χ²₁). Products of *different* probes are far more informative: for i ≠
j, E (y_iᵀy_j)² = ‖B²‖_F².
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import special

from hvpspec.krylov.probes import Grams
from hvpspec.results.estimate import Estimate


@dataclass(frozen=True)
class Remainder:
    """What the probes show of B. count: probes. dimension: D."""

    blocks: tuple[Grams, ...]
    dimension: int

    @cached_property
    def count(self) -> int:
        return sum(block.count for block in self.blocks)

    @cached_property
    def _lengths(self) -> np.ndarray:
        return self._diagonals("ww")

    @cached_property
    def _quadratic(self) -> np.ndarray:
        return self._diagonals("wy")

    @cached_property
    def _squares(self) -> np.ndarray:
        return self._diagonals("yy")

    def _diagonals(self, name: str) -> np.ndarray:
        return np.concatenate([np.diag(getattr(block, name)) for block in self.blocks])

    @cached_property
    def centre(self) -> float:
        """c, the mean eigenvalue of B."""
        return float(self._quadratic.sum() / self._lengths.sum()) if self._lengths.any() else 0.0

    @cached_property
    def traces(self) -> np.ndarray:
        """Samples with mean tr B."""
        return self._with_known_length(self._quadratic)

    @cached_property
    def squared_norms(self) -> np.ndarray:
        """Samples with mean ‖B‖_F²."""
        return self._with_known_length(self._squares)

    def _with_known_length(self, samples: np.ndarray) -> np.ndarray:
        lengths = self._lengths
        if self.count < 2 or not lengths.any():
            return samples
        others = (samples.sum() - samples) / np.maximum(lengths.sum() - lengths, np.finfo(float).tiny)
        corrected: np.ndarray = samples - others * (lengths - self.dimension)
        return corrected

    @cached_property
    def variation(self) -> float:
        """‖B_c‖_F²; a trace sample's variance is at most twice that."""
        c = self.centre
        return float(np.mean(self._squares - 2 * c * self._quadratic + c**2 * self._lengths))

    @cached_property
    def fourth(self) -> float:
        """‖B_c²‖_F², from pairs of probes; 0 if there are none."""
        c = self.centre
        return self._pairs([b.yy - c * (b.wy + b.wy.T) + c**2 * b.ww for b in self.blocks])

    def _pairs(self, grams: list[np.ndarray]) -> float:
        count = sum(len(gram) * (len(gram) - 1) for gram in grams)
        total = sum(float((gram**2).sum() - (np.diag(gram) ** 2).sum()) for gram in grams)
        return total / count if count else 0.0

    # --- intervals ----------------------------------------------------------------------------------------------

    def trace(self, confidence: float) -> tuple[float, float]:
        """tr B and the half-width of its interval; infinite with a single probe."""
        mean = float(self.traces.mean())
        if self.count < 2:
            return mean, math.inf
        # Var wᵀBw = 2 ‖B_c‖_F² for normal probes, whatever the eigenvectors are.
        variance = max(2 * self.variation, 0.0)
        return mean, student(confidence, self._freedom) * math.sqrt(variance / self.count)

    def squared_norm(self, confidence: float) -> tuple[float, float]:
        """‖B‖_F², and the factor by which its interval extends above and below (on a logarithmic scale)."""
        mean = float(self.squared_norms.mean())
        if mean <= 0:
            return 0.0, 1.0
        if self.count < 2:
            return mean, math.inf
        # Var ‖Bw‖² ≤ 2 (‖B²‖_F² − ‖B‖_F⁴ / D), from the pairs; or the spread of the samples where that is larger.
        fourth = max(self._pairs([b.yy for b in self.blocks]) - mean**2 / self.dimension, 0.0)
        variance = max(2 * fourth, float(np.var(self.squared_norms, ddof=1)))
        # How accurate this variance is depends on the effective rank of B², which a few probes do not show.
        relative = student(confidence, self.count - 1) * math.sqrt(variance / self.count) / mean
        # At worst a single eigenvalue dominates. Probes that have little of its vector then underestimate the mean and
        # the variance together: both by the share χ²_N / N of its square.
        share = chi_squared((1 - confidence) / 2, self.count) / self.count
        dominated = math.log1p(math.sqrt(fourth) * (1 / share - 1) / mean) if 0 < share < 1 else math.inf
        return mean, math.exp(min(max(relative, dominated), 300.0))

    @property
    def _freedom(self) -> float:
        """The number of normal samples from which the variance would be known as accurately.

        ‖y‖² varies like a sum of r squares, where r = ‖B_c‖_F⁴ / ‖B_c²‖_F² is the effective rank. As r is itself an
        estimate, it is divided by 4.
        """
        rank = self.variation**2 / self.fourth if self.fourth > 0 else 1.0
        return max(self.count - 1, self.count * min(rank, self.dimension) / 4)


def not_below(found: Estimate, least: float) -> Estimate:
    """The estimate of a number that is certain not to be below `least`: then neither is the interval, nor the value."""
    if math.isnan(found.value) or found.interval[0] >= least:
        return found
    value, upper = max(found.value, least), max(found.interval[1], least)
    return replace(found, value=value, error=max(upper - value, value - least), lower=least, upper=upper)


def student(confidence: float, freedom: float) -> float:
    """The quantile of Student's t, widened by 1 + 2/freedom.

    A run that stops as soon as it is within tolerance stops where its error is underestimated; with few samples that
    matters.
    """
    return float(special.stdtrit(freedom, (1 + confidence) / 2)) * (1 + 2 / freedom)


def chi_squared(chance: float, freedom: float) -> float:
    """The quantile of χ². scipy.stats, which has it too, takes about as long to import as torch."""
    return 2 * float(special.gammaincinv(freedom / 2, chance))
