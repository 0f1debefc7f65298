"""XTrace with resphering and its leave-one-out error (Epperly, Tropp, Webber 2023, arXiv:2301.07825).

Half of the products are Y = H Ω with k test vectors, half are H Q with Q R = Y. Each test vector serves as the probe of
the basis that the others span: Q_(i), whose projector is Q Qᵀ − (Q s_i)(Q s_i)ᵀ with s_i ∝ R⁻ᵀ e_i. The estimates are

    tr_i = tr Q_(i)ᵀ H Q_(i) + (n − k + 1) ω_iᵀ(I − P_i) H (I − P_i) ω_i / ‖(I − P_i) ω_i‖²

and, by the same exchange for ‖H‖_F² = ‖H P_i‖_F² + ‖(I − P_i) H‖_F² (leave-one-out: arXiv:2207.06342),

    f_i = ‖H Q_(i)‖_F² + ‖(I − P_i) H ω_i‖²
"""

from __future__ import annotations

import numpy as np
import torch

from baselines.hutchpp import mean_error, orthonormal, root
from hvpspec.kernels.random_vectors import gaussian
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.krylov.vectors import column_inner, inner

_BLOCK = 4  # test vectors that are added together


class XTrace:
    """The state after some rounds: test vectors, an orthonormal basis of their products, and its products."""

    def __init__(self, A: Symmetric, seed: int) -> None:
        self._A, self._seed = A, seed
        nothing = torch.empty(A.n, 0, dtype=A.dtype, device=A.device)
        self._tests = self._sketch = self._basis = self._images = nothing

    def add(self, left: float) -> int:
        """One round within `left` products; how many it made (0: it cannot go on)."""
        A, k = self._A, self._basis.shape[1]
        size = int(min(_BLOCK, left // 2, A.n - k))
        if size == 0:
            return 0
        new = [gaussian(A.n, k + j, seed=self._seed, dtype=A.dtype, device=A.device) for j in range(size)]
        tests = torch.cat(new, 1)
        tests = tests * (A.n / column_inner(tests, tests)).sqrt().to(tests.dtype)  # uniform on a sphere
        sketch = A @ tests
        X = orthonormal(sketch, self._basis)
        self._tests, self._sketch = torch.cat([self._tests, tests], 1), torch.cat([self._sketch, sketch], 1)
        self._basis, self._images = torch.cat([self._basis, X], 1), torch.cat([self._images, A @ X], 1)
        return 2 * size

    def trace(self, confidence: float) -> tuple[float, float]:
        """The trace and the half-width of Student's interval over the leave-one-out estimates."""
        H, W, S, R = self._small()
        n, k = self._A.n, H.shape[0]
        T = inner(self._images, self._tests).cpu().numpy()
        along = (S * W).sum(0)
        X = W - S * along  # Q_(i)ᵀ ω_i in terms of Q
        lengths = n - (W**2).sum(0) + along**2
        # (I − P_i) H ω_i = q_i (s_iᵀ R e_i) with q_i = Q s_i, as H ω_i is in the span of Q; H P_i ω_i = H Q X_i.
        quadratic = along * (S * R).sum(0) - (T * X).sum(0) + (X * (H @ X)).sum(0)
        samples = np.trace(H) - (S * (H @ S)).sum(0) + (n - k + 1) * quadratic / lengths
        return float(samples.mean()), mean_error(samples, confidence)

    def frobenius_norm(self, confidence: float) -> tuple[float, float]:
        _, _, S, R = self._small()
        gram = inner(self._images, self._images).cpu().numpy()
        samples = np.trace(gram) - (S * (gram @ S)).sum(0) + (S * R).sum(0) ** 2
        return root(float(samples.mean()), mean_error(samples, confidence))

    def _small(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """QᵀHQ, QᵀΩ, the s_i as columns, and R = QᵀY."""
        H = inner(self._basis, self._images).cpu().numpy()
        W = inner(self._basis, self._tests).cpu().numpy()
        R = inner(self._basis, self._sketch).cpu().numpy()
        if np.linalg.matrix_rank(R) < len(R):  # the others span the same space without any one of the vectors
            return H, W, np.zeros_like(R), R
        S = np.linalg.inv(R).T
        return H, W, S / np.linalg.norm(S, axis=0), R
