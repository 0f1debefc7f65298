"""Eigenvalues nearest to a point inside the spectrum, compared with dense ones."""

import numpy as np
import pytest
from estimators.spectra import rotated

from hvpspec.krylov.inverse_iteration import BudgetSpent, ShiftedProducts, nearest
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
    product = ShiftedProducts(as_symmetric(rotated(VALUES)), 0.5, 3)
    product(np.ones((200, 3)))
    with pytest.raises(BudgetSpent):
        product(np.ones(200))


def test_accurate_first_vectors_cost_nothing():
    A = rotated(VALUES)
    values, vectors = np.linalg.eigh(A)
    chosen = np.argsort(np.abs(values - 0.5))[:2]
    X = vectors[:, chosen] @ np.array([[0.6, -0.8], [0.8, 0.6]])
    operator = as_symmetric(A)
    found = nearest(operator, 2, 0.5, budget=100, first=(X, A @ X - 0.5 * X), **OPTIONS)
    assert found.converged
    assert operator.hvps == found.hvps == 0
    np.testing.assert_allclose(found.values, values[chosen])


def test_products_are_shifted_and_measured():
    A = rotated(VALUES)
    product = ShiftedProducts(as_symmetric(A), 0.5, 100)
    X = np.random.default_rng(0).standard_normal((200, 2))
    np.testing.assert_allclose(product(X), A @ X - 0.5 * X, atol=1e-12)
    np.testing.assert_allclose(product.operator() @ X[:, 0], A @ X[:, 0] - 0.5 * X[:, 0], atol=1e-12)
    assert product.made == 3
    lengths = np.linalg.norm(A @ X - 0.5 * X, axis=0) / np.linalg.norm(X, axis=0)
    assert product.norm == pytest.approx(lengths.max())
