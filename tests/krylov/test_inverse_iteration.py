"""Eigenvalues nearest to a point inside the spectrum, compared with dense ones."""

import numpy as np
import pytest
import torch
from estimators.spectra import rotated

from hvpspec.krylov.inverse_iteration import nearest, orthonormal
from hvpspec.krylov.operator_view import as_symmetric

VALUES = np.concatenate([[0.51, 0.48], np.linspace(1, 5, 100), -np.linspace(0.1, 3, 98)])
OPTIONS = {"tol": 1e-3, "norm": 5.0, "seed": 0, "drawn": 0}


@pytest.mark.parametrize("k", [1, 2, 3])
def test_they_come_nearest_first_with_their_errors(k):
    A, rounds = rotated(VALUES), []
    operator = as_symmetric(A)
    found = nearest(operator, k, 0.5, budget=5000, report=lambda: rounds.append(operator.hvps), **OPTIONS)
    true = VALUES[np.argsort(np.abs(VALUES - 0.5))][:k]
    assert found.converged
    assert found.verified
    np.testing.assert_allclose(found.values, true, atol=found.error.max())
    assert (np.abs(found.values[:, None] - VALUES).min(1) <= found.error).all()
    true_residuals = np.linalg.norm(A @ found.vectors - found.vectors * found.values, axis=0)
    np.testing.assert_allclose(found.residuals, true_residuals, atol=1e-12)
    assert found.hvps == operator.hvps == rounds[-1]
    assert rounds == sorted(rounds)


def test_the_budget_is_kept():
    for budget in (1, 30, 100):
        operator = as_symmetric(rotated(VALUES))
        found = nearest(operator, 2, 0.5, budget=budget, **OPTIONS)
        assert operator.hvps <= budget
        assert found is None or (found.hvps <= budget and not found.converged)


def test_accurate_first_vectors_cost_nothing():
    A = rotated(VALUES)
    values, vectors = np.linalg.eigh(A)
    chosen = np.argsort(np.abs(values - 0.5))[:2]
    X = vectors[:, chosen] @ np.array([[0.6, -0.8], [0.8, 0.6]])
    operator = as_symmetric(A)
    first = torch.from_numpy(X), torch.from_numpy(A @ X - 0.5 * X)
    found = nearest(operator, 2, 0.5, budget=100, first=first, **OPTIONS)
    assert found.converged
    assert operator.hvps == found.hvps == 0
    np.testing.assert_allclose(found.values, values[chosen])


@pytest.mark.parametrize("k", [1, 3, 5])
def test_float32_products_give_what_they_can(k):
    A = torch.from_numpy(rotated(VALUES)).float()
    found = nearest(as_symmetric((A + A.T) / 2), k, 0.5, budget=5000, **OPTIONS)
    assert found.converged
    assert found.vectors.shape == (200, k)
    true = VALUES[np.argsort(np.abs(VALUES - 0.5))][:k]
    np.testing.assert_allclose(found.values, true, atol=found.error.max())


def test_directions_that_are_left_over_save_rounds():
    """50 rounds were not enough for three of these eigenvalues without them."""
    for seed in range(3):
        found = nearest(as_symmetric(rotated(VALUES)), 3, 0.5, budget=5000, **OPTIONS | {"seed": seed})
        assert found.converged
        assert found.hvps < 1300


@pytest.mark.parametrize("copies", [0, 1])
def test_columns_that_depend_on_others_add_nothing(copies):
    """N B = V with orthonormal N, compared with a QR decomposition; graded columns keep all their digits."""
    rng = np.random.default_rng(0)
    V = rng.standard_normal((80, 4)) * [1, 1e-9, 1e9, 1e-6]
    V[:, 3] += V[:, 0]  # once would not be enough
    V = np.hstack([V, V[:, :copies] * 2])
    N, B = orthonormal(torch.from_numpy(V), 1e-12)
    assert N.shape[1] == len(B) == 4
    np.testing.assert_allclose(N.T @ N, np.eye(4), atol=1e-13)
    np.testing.assert_allclose(N.numpy() @ B, V, atol=1e-13 * np.abs(V).max(0).max(), rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.diag(B)), np.abs(np.diag(np.linalg.qr(V[:, :4])[1])), rtol=1e-9)


def test_long_vectors_stay_where_they_are(monkeypatch):
    """On the operator's device, until the eigenvectors are returned."""
    A = torch.from_numpy(rotated(VALUES))
    first = orthonormal(torch.randn(200, 2, dtype=torch.float64))[0]
    converted = []
    for name in ("cpu", "numpy", "tolist"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda v, plain=plain: converted.append(v.shape) or plain(v))
    found = nearest(as_symmetric(A), 2, 0.5, budget=5000, first=(first, A @ first - 0.5 * first), **OPTIONS)
    assert found.converged
    assert [shape for shape in converted if 200 in shape] == [(200, 2)] * 2  # to the CPU, and to NumPy


@pytest.mark.gpu
def test_on_a_gpu():
    A = torch.from_numpy(rotated(VALUES)).cuda()
    found = nearest(as_symmetric(A), 2, 0.5, budget=5000, **OPTIONS)
    assert found.converged
    np.testing.assert_allclose(found.values, [0.51, 0.48], atol=found.error.max())
