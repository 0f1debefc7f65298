"""The products that the solvers are given."""

import numpy as np
import pytest
import torch
from estimators.spectra import rotated

from hvpspec.errors import InputError
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.krylov.solvers.shifted import BudgetSpent, ShiftedProducts

A = rotated(np.concatenate([[0.51, 0.48], np.linspace(1, 5, 100), -np.linspace(0.1, 3, 98)]))
X = np.random.default_rng(0).standard_normal((200, 2))


@pytest.mark.parametrize("shift", [0.0, 0.5, -3.0])
def test_they_are_shifted_counted_and_measured(shift):
    product = ShiftedProducts(as_symmetric(A), shift, 100)
    found = product(torch.from_numpy(X))
    np.testing.assert_allclose(found.numpy(), A @ X - shift * X, atol=1e-12)
    assert product.made == 2
    lengths = np.linalg.norm(A @ X - shift * X, axis=0) / np.linalg.norm(X, axis=0)
    assert product.norm == pytest.approx(lengths.max())


def test_they_have_the_dtype_of_the_vectors():
    """Products are in float32, and the shift is in float64."""
    product = ShiftedProducts(as_symmetric(A.astype(np.float32)), 0.5, 100)
    found = product(torch.from_numpy(X))
    assert found.dtype == torch.float64
    expected = (A.astype(np.float32) @ X.astype(np.float32)).astype(float) - 0.5 * X
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    exact = found.numpy() + 0.5 * X
    assert (np.abs(exact - exact.astype(np.float32)) < 1e-14).all()


def test_the_budget_is_kept():
    product = ShiftedProducts(as_symmetric(A), 0.5, 3)
    product(torch.ones(200, 2, dtype=torch.float64))
    with product.keeping(1), pytest.raises(BudgetSpent):
        product(torch.ones(200, 1, dtype=torch.float64))
    product(torch.ones(200, 1, dtype=torch.float64))
    with pytest.raises(BudgetSpent):
        product(torch.ones(200, 1, dtype=torch.float64))
    assert product.A.hvps == 3


def test_the_memory_is_the_callers():
    """Also where an operator returns the vectors that it was given."""
    product = ShiftedProducts(as_symmetric(torch.eye(4, dtype=torch.float64)), 0.0, 10)
    product.A.multiply = lambda V: V
    V = torch.ones(4, 1, dtype=torch.float64)
    product(V).zero_()
    assert bool((V == 1).all())


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_products_that_contradict_symmetry_are_refused(scale):
    rng = np.random.default_rng(0)
    product = ShiftedProducts(as_symmetric(torch.eye(50, dtype=torch.float64)), 0.0, 100)
    crooked = scale * torch.from_numpy(rng.standard_normal((50, 50)) / 7)
    product.A.multiply = crooked.__matmul__
    product(torch.from_numpy(rng.standard_normal((50, 1))))
    with pytest.raises(InputError, match="not symmetric"):
        product(torch.from_numpy(rng.standard_normal((50, 4))))
    zero = ShiftedProducts(as_symmetric(torch.eye(3, dtype=torch.float64)), 1.0, 10)
    assert not zero(torch.zeros(3, 1, dtype=torch.float64)).any()
