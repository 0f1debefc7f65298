"""The Lanczos relation itself, in both precisions."""

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch
from estimators.spectra import matrix, rotated

from hvpspec.estimators.krylov import lanczos
from hvpspec.estimators.symmetric import as_symmetric


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_identity_itself(dtype):
    """A Q = Q T + β q eᵀ and QᵀQ = I, to rounding, at every step."""
    A = torch.from_numpy(matrix("indefinite with outliers")).to(dtype)
    *_, krylov = lanczos(as_symmetric(A), seed=0, max_steps=80)
    Q = krylov.basis
    T = np.diag(krylov.alphas) + np.diag(krylov.betas[:-1], 1) + np.diag(krylov.betas[:-1], -1)
    eps = torch.finfo(dtype).eps
    gram = (Q.double().T @ Q.double()).numpy()
    assert np.abs(gram - np.eye(80)).max() < 20 * eps
    remainder = (A.double() @ Q.double()).numpy() - Q.double().numpy() @ T
    assert np.abs(remainder[:, :-1]).max() < 1e3 * eps
    assert abs(np.linalg.norm(remainder[:, -1]) - krylov.betas[-1]) < 1e3 * eps
    assert max(krylov.defects) < 1e3 * eps


def test_no_ghosts_in_float32():
    values = np.r_[np.linspace(5, 10, 6), np.linspace(-0.1, 0.1, 500)]
    A = torch.from_numpy(rotated(values)).float()
    *_, krylov = lanczos(as_symmetric(A), seed=0, max_steps=200)
    assert (krylov.ritz().values > 1).sum() == 6


def test_unit_lengths_hold_for_long_float32_vectors():
    """Float32 sums over a million entries would be off by 1e-5 or so."""
    n = 1_000_000
    diagonal = np.linspace(1, 2, n, dtype=np.float32)[:, None]
    operator = sla.LinearOperator(
        (n, n), matvec=lambda x: diagonal[:, 0] * x.reshape(-1), matmat=lambda X: diagonal * X, dtype=np.float32
    )
    *_, krylov = lanczos(as_symmetric(operator), seed=0, max_steps=4)
    Q = krylov.basis.double().numpy()
    assert np.abs(Q.T @ Q - np.eye(4)).max() < 5e-7
    lengths = np.linalg.norm(krylov.vectors(np.eye(4)).double().numpy(), axis=0)
    assert np.abs(lengths - 1).max() < 5e-7
