"""Rademacher probes: one pass of products serves the trace (ωᵀAω) and the Frobenius norm (‖Aω‖²).

Probes go in blocks of 8. Within a block the products with *other* probes come free: (ω_iᵀ A ω_j)² and (z_iᵀ z_j)²
for i ≠ j have expectations ‖A‖_F² and ‖A²‖_F². They give the variances of the samples far more reliably than the
spread of few samples does, which for a spectrum with one large eigenvalue (samples like χ²₁) is too small too often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from hvpspec.estimators.symmetric import Symmetric, refuse_asymmetric
from hvpspec.estimators.vectors import column_inner, inner, rademacher

BLOCK = 8


@dataclass
class ProbeSums:
    """What the probes so far have shown of a symmetric A (n × n); the vectors themselves are not kept.

    quadratic: ωᵀAω of each probe; squares: ‖Aω‖² of each. pairs, pair_count: Σ (z_iᵀz_j)² over pairs in blocks, and
    how many. exact_diagonal, exact_squares: set once A was multiplied by every unit vector; then the sums are exact.
    """

    n: int
    eps: float
    quadratic: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    pairs: float = 0.0
    pair_count: int = 0
    exact_trace: float | None = None
    exact_norm: float | None = None

    @property
    def count(self) -> int:
        return len(self.quadratic)

    def add(self, probes: Tensor, products: Tensor) -> None:
        """Takes in a block: probes ω and z = Aω, both (n, b). Raises InputError when ω_iᵀz_j and ω_jᵀz_i differ."""
        cross = inner(probes, products)
        self.quadratic += cross.diagonal().tolist()
        gram = inner(products, products)
        self.squares += gram.diagonal().tolist()
        self.pairs += float((gram**2).sum() - (gram.diagonal() ** 2).sum())
        self.pair_count += len(gram) * (len(gram) - 1)
        refuse_asymmetric(float((cross - cross.T).norm()), math.sqrt((len(gram) - 1) * float(gram.trace())))

    # --- the trace ----------------------------------------------------------------------------------------------

    def trace(self, confidence: float) -> tuple[float, float]:
        """The trace and its half-width at `confidence`."""
        if self.exact_trace is not None:
            return self.exact_trace, self._rounding(math.sqrt(self.n) * (self.exact_norm or 0.0))
        mean = float(np.mean(self.quadratic))
        norm = math.sqrt(float(np.mean(self.squares)))
        if self.count < 2:
            return mean, math.inf
        # Var ωᵀAω = 2 (‖A‖_F² − Σ A_ii²) ≤ 2 (‖A‖_F² − tr²/n) = 2 ‖A − cI‖_F² with c = tr/n. The bound is nearly the
        # variance itself unless A is close to diagonal; there the spread of the samples, taken at its 99 % upper
        # limit, is smaller.
        centred = max(norm**2 - mean**2 / self.n, 0.0)
        freedom = self.count - 1
        spread = np.var(self.quadratic, ddof=1) * freedom / stats.chi2.ppf(0.01, freedom)
        variance = min(2 * centred, float(spread))
        half = _quantile(confidence, freedom) * math.sqrt(variance / self.count)
        return mean, half + self._rounding(norm)

    # --- the Frobenius norm -------------------------------------------------------------------------------------

    def frobenius_norm(self, confidence: float) -> tuple[float, float]:
        """The Frobenius norm and its half-width at `confidence`."""
        if self.exact_norm is not None:
            return self.exact_norm, self._rounding(self.exact_norm)
        mean = float(np.mean(self.squares))
        if mean == 0:  # every product was zero: A ω = 0 for a random ω only if A = 0 (almost surely)
            return 0.0, 0.0
        norm = math.sqrt(mean)
        if self.count < 2:
            return norm, math.inf
        # Var ‖Aω‖² = 2 (‖A²‖_F² − Σ (A²)_ii²) ≤ 2 (‖A²‖_F² − ‖A‖_F⁴/n), from the pairs; or the spread of the samples
        # where that is larger. The samples are skewed and the norm is a square root, so the interval is set on the
        # logarithm, and its longer, upper side is reported.
        bound = 2 * max(self.pairs / self.pair_count - mean**2 / self.n, 0.0) if self.pair_count else 0.0
        variance = max(bound, float(np.var(self.squares, ddof=1)))
        relative = _quantile(confidence, self.count - 1) * math.sqrt(variance / self.count) / (2 * mean)
        half = norm * math.expm1(relative) if relative < 100 else math.inf
        return norm, half + self._rounding(norm)

    def _rounding(self, scale: float) -> float:
        return 16 * self.eps * scale


def _quantile(confidence: float, freedom: int) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, freedom))


def probe_steps(
    A: Symmetric, *, seed: int, max_hvps: int | None, wanted: Callable[[ProbeSums], float]
) -> Iterator[ProbeSums]:
    """Adds blocks of probes, yielding the (same) sums after each, until the budget is spent.

    `wanted(sums)` foretells how many probes the tolerance needs in all. When that comes to more than n further
    products, and the budget allows them, A is multiplied by the n unit vectors instead: then the sums are exact.
    Products in that stretch are yielded too, with the sums unchanged until its end.
    """
    sums = ProbeSums(A.n, A.eps)
    left = math.inf if max_hvps is None else max_hvps
    if A.n <= min(BLOCK, left):
        yield from _exactly(A, sums)
        return
    while left > 0:
        if sums.count and wanted(sums) - sums.count >= A.n and left >= A.n:
            yield from _exactly(A, sums)
            return
        numbers = range(sums.count, sums.count + int(min(BLOCK, left)))
        probes = rademacher(A.n, numbers, seed=seed, dtype=A.dtype, device=A.device)
        sums.add(probes, A @ probes)
        left -= len(numbers)
        yield sums


def _exactly(A: Symmetric, sums: ProbeSums) -> Iterator[ProbeSums]:
    trace = squares = 0.0
    for start in range(0, A.n, BLOCK):
        width = min(BLOCK, A.n - start)
        block = torch.zeros(A.n, width, dtype=A.dtype, device=A.device)
        block[range(start, start + width), range(width)] = 1
        product = A @ block
        trace += float(product[start : start + width].diagonal().double().sum())
        squares += float(column_inner(product, product).sum())
        if start + width == A.n:
            sums.exact_trace, sums.exact_norm = trace, math.sqrt(squares)
        if sums.count or start + width == A.n:
            yield sums
