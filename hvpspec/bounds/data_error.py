"""How far the figures would differ on other data: the spread, over folds of the batches, of the products made anyway.

With H = Σ_g w_g H_g / Σ_g w_g, the part of fold g in a figure is to first order vᵀH_g v (an eigenvalue with
eigenvector v), tr H_g, or ⟨H, H_g⟩ / ‖H‖_F. The folds being a sample from a population, the standard error of their
weighted mean f is √(G/(G − 1) Σ_g (w_g / Σ w)² (f_g − f)²). (Cochran, Sampling Techniques, 3rd ed., section 6.3.)

All of it follows from Qᵀ H_g Q and wᵀ H_g w over the basis Q and the probes w, gathered as the products are made.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hvpspec.krylov.lanczos import Krylov, Step
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.krylov.probes import Pool


class BatchSpread:
    """The small matrices of each fold: on the basis (G, m, m) and on the probes (G, N, N)."""

    def __init__(self, A: Symmetric, krylov: Krylov, pool: Pool) -> None:
        self._A, self._krylov, self._pool = A, krylov, pool
        self._folds = A.folds if A.folds > 1 else 0
        self._weights = np.zeros(self._folds)
        self._basis = np.zeros((self._folds, 0, 0))
        self._probes = np.zeros((self._folds, 0, 0))
        self._seen = np.zeros((0, 0, 0))

    def multiply(self, block: Tensor) -> Tensor:
        """H @ block; on the way it takes down [Q, probes, block]ᵀ H_g block for each fold g."""
        if not self._folds:
            return self._A @ block
        basis, probes = self._krylov.basis, self._pool.probes
        self._seen = np.zeros((self._folds, basis.m + probes.shape[1] + block.shape[1], block.shape[1]))

        def receive(fold: int, weight: float, product: Tensor) -> None:
            self._weights[fold] = weight
            parts = [basis.rough_inner(product), probes.T @ product, block.T @ product]
            self._seen[fold] = torch.cat(parts).double().cpu().numpy()

        return self._A.by_folds(block, receive)

    def extended(self, step: Step) -> None:
        """Takes in what `multiply` saw of a Krylov step; before the pool follows it."""
        if not self._folds:
            return
        m, width = step.before, step.vectors.shape[1]
        above, across, block = np.split(self._seen, [m, self._seen.shape[1] - width], axis=1)
        grown = np.zeros((self._folds, m + width, m + width))
        grown[:, :m, :m] = self._basis
        grown[:, :m, m:], grown[:, m:, :m] = above, above.transpose(0, 2, 1)
        grown[:, m:, m:] = (block + block.transpose(0, 2, 1)) / 2
        self._basis = grown
        if across.shape[1]:  # the probes w become w − X a
            a = (step.vectors.T @ self._pool.probes).double().cpu().numpy()
            cross = across @ a
            self._probes = self._probes - cross - cross.transpose(0, 2, 1) + a.T @ grown[:, m:, m:] @ a

    def probed(self, count: int) -> None:
        """Takes in what `multiply` saw of `count` new probes; before the pool adds them."""
        if not self._folds or self._pool.full(count):
            return
        m = self._krylov.m
        _, across, block = np.split(self._seen, [m, self._seen.shape[1] - count], axis=1)
        self._probes = np.block([[self._probes, across], [across.transpose(0, 2, 1), block]])

    def restarted(self, coefficients: np.ndarray) -> None:
        """The basis has become Q S, and the probes are gone."""
        if not self._folds:
            return
        self._basis = coefficients.T @ self._basis @ coefficients
        self._probes = self._probes[:, :0, :0]

    # --- standard errors ----------------------------------------------------------------------------------------

    def eigenvalues(self, coefficients: np.ndarray) -> np.ndarray | None:
        """Of the Ritz values with these coefficients in the basis (columns)."""
        if not self._weights.any():
            return None
        parts = np.einsum("ij,gik,kj->gj", coefficients, self._basis, coefficients)
        return np.array([self._standard_error(part, None) for part in parts.T])

    def trace(self) -> float | None:
        if not self._weights.any():
            return None
        samples = np.diagonal(self._probes, axis1=1, axis2=2)
        return self._standard_error(np.trace(self._basis, axis1=1, axis2=2), samples)

    def frobenius_norm(self, norm: float) -> float | None:
        """To first order, from ⟨H, H_g⟩ on the basis and over pairs of probes; the norm itself is given."""
        if not self._weights.any() or norm == 0:
            return None
        basis = np.einsum("ij,gij->g", self._mean(self._basis), self._basis)
        products = self._mean(self._probes) * self._probes
        count = products.shape[1]
        samples = None
        if count > 1:
            samples = (products.sum(2) - np.diagonal(products, axis1=1, axis2=2)) / (count - 1)
        return self._standard_error(basis / norm, None if samples is None else samples / norm)

    def _mean(self, parts: np.ndarray) -> np.ndarray:
        return np.tensordot(self._weights / self._weights.sum(), parts, 1)

    def _standard_error(self, known: np.ndarray, samples: np.ndarray | None) -> float:
        """Of the weighted mean of each fold's `known` (G,) plus the mean of its `samples` (G, N).

        A mean of samples scatters by itself; the variance of that is taken off, unless nothing would be left.
        """
        share = self._weights / self._weights.sum()
        folds = int((self._weights > 0).sum())
        deviation = known - share @ known
        chance = np.zeros(len(share))
        if samples is not None and samples.shape[1] > 1:
            differing = samples - share @ samples
            deviation = deviation + differing.mean(1)
            chance = differing.var(1, ddof=1) / samples.shape[1]
        if folds < 2:
            return float("nan")
        scale = folds / (folds - 1)
        squared, excess = share**2 @ deviation**2, share**2 @ chance
        return float(np.sqrt(scale * (squared - excess if squared > excess else squared)))
