import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as sla
import torch
from estimators.spectra import eigenvalues, matrix
from zoo import explicit_hessian, mlp

import hvpspec
from hvpspec.errors import InputError
from hvpspec.estimators.krylov import lanczos
from hvpspec.estimators.symmetric import as_symmetric


def rotated(values, seed=0):
    values = np.asarray(values, float)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))[0]
    return (Q * values) @ Q.T


def pick(values, k, which):
    falling = np.sort(values)[::-1]
    return {
        "LM": lambda: falling[np.argsort(-np.abs(falling), kind="stable")[:k]],
        "LA": lambda: falling[:k],
        "SA": lambda: falling[::-1][:k],
        "BE": lambda: np.r_[falling[: (k + 1) // 2], falling[len(falling) - k // 2 :]],
    }[which]()


class TestKrylov:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_identity_itself(self, dtype):
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

    def test_no_ghosts_in_float32(self):
        values = np.r_[np.linspace(5, 10, 6), np.linspace(-0.1, 0.1, 500)]
        A = torch.from_numpy(rotated(values)).float()
        *_, krylov = lanczos(as_symmetric(A), seed=0, max_steps=200)
        assert (krylov.ritz().values > 1).sum() == 6


@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
@pytest.mark.parametrize("name", ["flat", "polynomial", "exponential, slow", "step", "indefinite with outliers"])
def test_known_spectra(name, which):
    A, values = matrix(name), eigenvalues(name)
    found = hvpspec.eigsh(A, 5, which, tol=1e-4, seed=1)
    assert found.converged
    true_residuals = np.linalg.norm(A @ found.vectors - found.vectors * found.values, axis=0)
    np.testing.assert_allclose(found.residuals, true_residuals, rtol=1e-3, atol=1e-13)
    assert (true_residuals <= 1e-4 * np.abs(found.values) + 1e-13).all()
    assert (np.abs(values[:, None] - found.values).min(0) <= found.error).all()
    expected = pick(values, 5, which)
    if which == "LM" or name != "polynomial":  # its small eigenvalues lie closer than any tolerance tells apart
        np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=2e-7)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(5), atol=1e-8)


def test_a_neural_network():
    case = mlp()
    D = explicit_hessian(case)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    for which in ("LM", "LA", "SA", "BE"):
        found = hvpspec.eigsh(H, 3, which, tol=1e-6)
        np.testing.assert_allclose(found.values, pick(np.linalg.eigvalsh(D), 3, which), rtol=1e-9)
    assert H.hvps > 0


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(60),
        np.full(60, -2.0),
        np.r_[5, 5, 5, np.ones(57)],
        np.r_[5, -5, 5, -5, np.linspace(-1, 1, 56)],
        np.r_[3, 2, 1, np.zeros(57)],
        [1.5],
        [2.0, 2.0],
        np.r_[np.ones(30), -np.ones(30)],
    ],
    ids=["zero", "multiple of I", "multiple", "both ends multiple", "low rank", "n = 1", "n = 2", "signs"],
)
@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_breakdown_ends_with_exact_answers(values, which, k):
    A = rotated(values)
    found = hvpspec.eigsh(A, k, which, tol=1e-8)
    expected = pick(np.asarray(values, float), min(k, len(A)), which)
    if which == "LM":
        found_values, expected = np.sort(np.abs(found.values)), np.sort(np.abs(expected))
    else:
        found_values = found.values
    np.testing.assert_allclose(found_values, expected, atol=1e-12)
    assert found.converged
    assert np.linalg.norm(A @ found.vectors - found.vectors * found.values, axis=0).max() < 1e-7
    assert found.hvps <= len(A)


def test_the_budget_is_kept_and_said():
    found = hvpspec.eigsh(matrix("flat"), 4, tol=1e-10, max_hvps=12)
    assert not found.converged
    assert found.hvps == 12
    true = np.linalg.norm(matrix("flat") @ found.vectors - found.vectors * found.values, axis=0)
    np.testing.assert_allclose(found.residuals, true, rtol=1e-6)
    few = hvpspec.eigsh(matrix("flat"), 4, max_hvps=2)
    assert len(few.values) == 2
    assert not few.converged


def test_float32_errors_hold():
    A = matrix("indefinite with outliers")
    for seed in range(5):
        found = hvpspec.eigsh(torch.from_numpy(A).float(), 8, tol=1e-6, seed=seed)
        assert found.vectors.dtype == np.float32
        assert (np.abs(eigenvalues("indefinite with outliers")[:, None] - found.values).min(0) <= found.error).all()
        assert (found.error < 1e-4).all()


@pytest.mark.parametrize(
    "convert",
    [
        lambda A: A,
        torch.from_numpy,
        sp.csr_array,
        sp.coo_matrix,
        sla.aslinearoperator,
        lambda A: torch.from_numpy(A).to_sparse(),
        lambda A: A.tolist(),
        lambda A: sla.LinearOperator(A.shape, matvec=lambda x: A @ x),
    ],
    ids=["array", "tensor", "sparse array", "sparse matrix", "operator", "sparse tensor", "list", "matvec only"],
)
def test_any_symmetric_operator_will_do(convert):
    values = np.r_[10, -8, np.linspace(-1, 1, 48)]
    found = hvpspec.eigsh(convert(rotated(values)), 2)
    np.testing.assert_allclose(found.values, [10, -8], rtol=1e-5)
    trace = hvpspec.trace(convert(rotated(values)), atol=0.5)
    assert abs(trace.value - 2) <= trace.error <= 0.5
    norm = hvpspec.frobenius_norm(convert(rotated(values)), rtol=1e-6)
    assert norm.value == pytest.approx(np.linalg.norm(values), rel=1e-12)


@pytest.mark.parametrize(
    ("A", "message"),
    [
        (np.ones((2, 3)), r"square matrix or operator; got shape \(2, 3\)"),
        (np.ones(3), "square"),
        (np.zeros((0, 0)), "square"),
        (np.array([[0.0, 1], [2, 0]]), "not symmetric: entries differ from their mirror image by up to 1"),
        (sp.csr_array(np.array([[0.0, 1], [2, 0]])), "not symmetric"),
        (np.eye(2) * 1j, "complex"),
        (torch.eye(2) * 1j, "complex"),
        (np.full((2, 2), np.nan), "NaN"),
        ("matrix", "got str"),
        (None, "got NoneType"),
        (sla.aslinearoperator(np.triu(np.ones((5, 5)))), "the operator is not symmetric, or gives different products"),
        (sla.aslinearoperator(np.full((5, 5), np.inf)), "NaN or Inf"),
    ],
)
def test_what_is_no_symmetric_operator(A, message):
    with pytest.raises(InputError, match=message):
        hvpspec.eigsh(A)


def test_random_products_are_found_out():
    generator = np.random.default_rng(0)
    A = matrix("indefinite with outliers")
    noisy = sla.LinearOperator(A.shape, matvec=lambda x: A @ x + 0.1 * generator.standard_normal(x.shape))
    with pytest.raises(InputError, match="gives different products for the same vector"):
        hvpspec.eigsh(noisy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a whole number ≥ 1; got 0"),
        ({"k": 2.5}, "k must be"),
        ({"which": "SM"}, 'which must be one of "LM"'),
        ({"tol": -1}, "tol must be"),
        ({"tol": float("nan")}, "tol must be"),
        ({"seed": -1}, "seed must be"),
        ({"max_hvps": 0}, "max_hvps must be"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        hvpspec.eigsh(np.eye(3), **options)


def test_seeds_and_callbacks():
    A = matrix("polynomial")
    seen = []
    first = hvpspec.eigsh(A, 3, seed=7, callback=seen.append)
    again = hvpspec.eigsh(A, 3, seed=7)
    np.testing.assert_array_equal(first.values, again.values)
    assert not np.array_equal(first.residuals, hvpspec.eigsh(A, 3, seed=8).residuals)
    assert [pairs.hvps for pairs in seen] == list(range(1, first.hvps))
    assert all(pairs.vectors is None for pairs in seen)
