"""What the estimators accept as a symmetric operator, and what they refuse."""

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as sla
import torch
from estimators.spectra import matrix, rotated

import hvpspec
from hvpspec.errors import InputError
from hvpspec.krylov.operator_view import as_symmetric

IDENTITY = sla.LinearOperator((6, 6), matvec=lambda x: x, matmat=lambda X: X, dtype=float)


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
        (np.array([[0.0, 1], [2, 0]]), "not symmetric: entries differ from those of the transpose by up to 1"),
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
    for estimate in (hvpspec.eigsh, hvpspec.trace, hvpspec.frobenius_norm, hvpspec.spectrum):
        with pytest.raises(InputError, match="gives different products for the same vector"):
            estimate(noisy)


def test_the_product_of_the_identity_is_not_the_vectors_themselves():
    """Estimators write to products."""
    read_only = np.broadcast_to(2.0, (6, 1))
    for operator in (IDENTITY, sla.LinearOperator((6, 6), lambda x: x, matmat=lambda X: read_only, dtype=float)):
        X = torch.ones(6, 1, dtype=torch.float64)
        product = as_symmetric(operator) @ X
        product += 1
        assert X.tolist() == 6 * [[1.0]]
    assert hvpspec.eigsh(IDENTITY, 2).values.tolist() == pytest.approx([1, 1])
