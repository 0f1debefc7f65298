"""The Krylov relation itself, in both precisions, with blocks, restarts, added vectors, and the basis anywhere."""

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch
from estimators.spectra import matrix, rotated

import hvpspec
from hvpspec.errors import InputError
from hvpspec.krylov.lanczos import add_random, extend, favour, restart, start
from hvpspec.krylov.operator_view import as_symmetric


def relation_errors(A, krylov):
    """The largest entries of A Q − Q T − F Cᵀ, of QᵀQ − I, and of QᵀF."""
    Q, F = krylov.basis.matrix.double().numpy(), krylov.frontier.double().numpy()
    both = np.hstack([Q, F]).astype(np.longdouble)  # as BLAS's own sums are off by as much as the vectors may be
    relation = A.double().numpy() @ Q - Q @ krylov.projection.T - F @ krylov.projection.coupling.T
    return np.abs(relation).max(), np.abs(both.T @ both - np.eye(both.shape[1])).max()


def best(count):
    return lambda values: np.argsort(-np.abs(values))[:count]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", ["device", "cpu", "disk"])
@pytest.mark.parametrize("block", [1, 3])
def test_the_identity_itself(dtype, place, block):
    """A Q = Q T + F Cᵀ with orthonormal [Q F], through steps of all kinds."""
    A = torch.from_numpy(matrix("indefinite with outliers")).to(dtype)
    krylov = start(as_symmetric(A), seed=0, block=block, place=place)
    eps = torch.finfo(dtype).eps
    multiply = as_symmetric(A).__matmul__

    def check():
        relation, orthogonality = relation_errors(A, krylov)
        assert relation < 300 * eps
        assert orthogonality < 20 * eps
        # defects say what the relation is off by, along the basis
        assert krylov.projection.defects.max() < 300 * eps

    while krylov.m < 45:
        extend(krylov, multiply)
    check()
    S = restart(krylov, best(12))
    assert krylov.m == 12
    assert S.shape[1] == 12
    check()
    add_random(krylov)
    for _ in range(5):
        extend(krylov, multiply, 1)
    favour(krylov, krylov.ritz().coefficients[:, -1])
    extend(krylov, multiply, 1)
    check()
    ritz = krylov.ritz()
    vectors = krylov.vectors(ritz.coefficients).double()
    true = np.linalg.norm((A.double() @ vectors).numpy() - vectors.numpy() * ritz.values, axis=0)
    assert np.abs(ritz.residuals - true).max() < 300 * eps


def test_restarts_change_nothing_but_the_memory():
    A = matrix("polynomial")
    free = hvpspec.eigsh(A, 4, tol=1e-8)
    tight = hvpspec.eigsh(A, 4, tol=1e-8, basis_memory=10 * A.shape[0] * 8)
    assert tight.converged
    assert tight.hvps >= free.hvps
    np.testing.assert_allclose(tight.values, free.values, atol=1e-8)
    true = np.linalg.norm(A @ tight.vectors - tight.vectors * tight.values, axis=0)
    assert (true <= 1e-8 * np.abs(tight.values) + 1e-14).all()


@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
def test_every_end_survives_restarts(which):
    A = matrix("indefinite with outliers")
    free = hvpspec.eigsh(A, 5, which, tol=1e-6)
    tight = hvpspec.eigsh(A, 5, which, tol=1e-6, basis_memory="104 kB", basis_on="cpu")
    assert tight.converged
    np.testing.assert_allclose(tight.values, free.values, rtol=1e-9)


def test_no_ghosts_in_float32():
    """After 200 steps there are as many Ritz values above the bulk as eigenvalues."""
    values = np.r_[np.linspace(5, 10, 6), np.linspace(-0.1, 0.1, 500)]
    A = torch.from_numpy(rotated(values)).float()
    krylov = start(as_symmetric(A), seed=0)
    for _ in range(200):
        extend(krylov, as_symmetric(A).__matmul__)
    assert (krylov.ritz().values > 1).sum() == 6


def test_unit_lengths_hold_for_long_float32_vectors():
    """Float32 sums over a million entries would be off by 1e-5 or so."""
    n = 1_000_000
    diagonal = np.linspace(1, 2, n, dtype=np.float32)[:, None]
    operator = sla.LinearOperator(
        (n, n), matvec=lambda x: diagonal[:, 0] * x.reshape(-1), matmat=lambda X: diagonal * X, dtype=np.float32
    )
    krylov = start(as_symmetric(operator), seed=0)
    for _ in range(4):
        extend(krylov, as_symmetric(operator).__matmul__)
    Q = krylov.basis.matrix.double().numpy()
    assert np.abs(Q.T @ Q - np.eye(4)).max() < 5e-7
    lengths = np.linalg.norm(krylov.vectors(np.eye(4)).double().numpy(), axis=0)
    assert np.abs(lengths - 1).max() < 5e-7


@pytest.mark.parametrize("block", [1, 2, 5])
@pytest.mark.parametrize(
    "values",
    [np.zeros(20), np.full(20, 3.0), np.r_[4, 4, 4, np.ones(17)], np.r_[2, 1, np.zeros(18)], [1.5], [2.0, -1.0]],
    ids=["zero", "multiple of I", "multiple", "low rank", "n = 1", "n = 2"],
)
def test_breakdown_runs_on_to_the_whole_space(values, block):
    """Invariant subspaces end a segment; with n vectors, T has all eigenvalues and the frontier is empty."""
    A = torch.from_numpy(rotated(values))
    krylov = start(as_symmetric(A), seed=1, block=block)
    products = 0
    while krylov.m < krylov.n:
        products += extend(krylov, as_symmetric(A).__matmul__).vectors.shape[1]
    assert products == krylov.n
    assert krylov.frontier.shape[1] == 0
    np.testing.assert_allclose(krylov.ritz().values, np.sort(values), atol=1e-13)
    assert relation_errors(A, krylov)[0] < 1e-13


def test_a_block_shows_copies_that_a_single_vector_cannot():
    A = rotated(np.r_[5, 5, 5, 4, 3, np.linspace(-1, 1, 300)])
    np.testing.assert_allclose(hvpspec.eigsh(A, 3).values, [5, 4, 3], rtol=1e-6)
    np.testing.assert_allclose(hvpspec.eigsh(A, 3, block_size=3).values, 5, rtol=1e-6)


def test_an_asymmetric_operator_is_found_out():
    A = np.triu(np.ones((30, 30)))
    operator = sla.LinearOperator(A.shape, matvec=lambda x: A @ x, dtype=float)
    for call in (hvpspec.eigsh, hvpspec.trace, hvpspec.spectrum, hvpspec.spectral_density):
        with pytest.raises(InputError, match="not symmetric"):
            call(operator)
