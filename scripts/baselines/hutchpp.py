"""Hutch++ (Meyer, Musco, Musco, Woodruff 2020, arXiv:2010.09649), for the trace and for tr H² = ‖H‖_F².

A third of the products sketch the range, Q = orth(H S); a third give H Q; a third go to probes g on the complement:

    tr H ≈ tr QᵀHQ + mean gᵀ(I − P) H (I − P) g,    ‖H‖_F² ≈ ‖H Q‖_F² + mean ‖H (I − P) g‖²

Here the three grow together, so that it can stop at a tolerance: the products with older probes are brought up to date
with those of the new basis vectors, H (I − P') g = H (I − P) g − (H X) Xᵀg.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from hvpspec.kernels.random_vectors import rademacher
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.krylov.vectors import column_inner, inner

_BLOCK = 4  # sketch vectors, and probes, that are added together


class HutchPlusPlus:
    """The state after some rounds: basis Q, its products, probes (projected) and theirs."""

    def __init__(self, A: Symmetric, seed: int) -> None:
        self._A, self._seed = A, seed
        nothing = torch.empty(A.n, 0, dtype=A.dtype, device=A.device)
        self._basis = self._images = self._probes = self._products = nothing
        self._drawn = 0

    def add(self, left: float) -> int:
        """One round within `left` products; how many it made (0: it cannot go on)."""
        size = int(min(_BLOCK, left // 3, self._A.n - self._basis.shape[1]))
        if size:
            X = orthonormal(self._A @ self._draw(size), self._basis)
            HX = self._A @ X
            along = inner(X, self._probes).to(X.dtype)
            self._probes = self._probes - X @ along
            self._products = self._products - HX @ along
            self._basis, self._images = torch.cat([self._basis, X], 1), torch.cat([self._images, HX], 1)
        count = size or int(min(left, 2))
        if count == 0:
            return 0
        g = self._draw(count)
        for _ in range(2):
            g = g - self._basis @ inner(self._basis, g).to(g.dtype)
        self._probes, self._products = torch.cat([self._probes, g], 1), torch.cat([self._products, self._A @ g], 1)
        return 2 * size + count

    def trace(self, confidence: float) -> tuple[float, float]:
        """The trace and the half-width of the textbook interval (Student t over the probes)."""
        known = float(column_inner(self._basis, self._images).sum())
        return _with_error(known, column_inner(self._probes, self._products).cpu().numpy(), confidence)

    def frobenius_norm(self, confidence: float) -> tuple[float, float]:
        known = float(column_inner(self._images, self._images).sum())
        samples = column_inner(self._products, self._products).cpu().numpy()
        return root(*_with_error(known, samples, confidence))

    def _draw(self, count: int) -> Tensor:
        numbers = range(self._drawn, self._drawn + count)
        self._drawn += count
        return rademacher(self._A.n, numbers, seed=self._seed, dtype=self._A.dtype, device=self._A.device)


def orthonormal(X: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis of what the columns of X (n, b) add to those of `basis` (n, m): shape (n, b).

    Once the basis holds the range of a matrix, what is left of its products is rounding, and orthogonal to the basis
    only after a few passes.
    """
    for _ in range(4):
        X = torch.linalg.qr(X - basis @ inner(basis, X).to(X.dtype)).Q
    return X


def _with_error(known: float, samples: np.ndarray, confidence: float) -> tuple[float, float]:
    return known + float(samples.mean()), mean_error(samples, confidence)


def mean_error(samples: np.ndarray, confidence: float) -> float:
    """The half-width of Student's interval for a mean; infinite with fewer than two samples."""
    count = len(samples)
    if count < 2:
        return math.inf
    return float(stats.t.ppf((1 + confidence) / 2, count - 1) * samples.std(ddof=1) / math.sqrt(count))


def root(square: float, error: float) -> tuple[float, float]:
    """A norm and its half-width (the longer side) from those of its square."""
    square = max(square, 0.0)
    norm = math.sqrt(square)
    below = norm - math.sqrt(max(square - error, 0.0)) if math.isfinite(error) else math.inf
    return norm, below
