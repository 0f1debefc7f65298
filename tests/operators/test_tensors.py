"""Sums, multiples, products and powers of a HessianOperator: tensors for tensors, arrays for arrays."""

import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

import hvpspec


@pytest.fixture(scope="module")
def H():
    torch.manual_seed(0)
    data = [(torch.randn(16, 3, dtype=torch.float64), torch.randn(16, 2, dtype=torch.float64))]
    return hvpspec.HessianOperator(nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double(), "mse", data)


MADE = {
    "2H": (lambda H: 2 * H, lambda D: 2 * D),
    "H/2": (lambda H: H / 2, lambda D: D / 2),
    "tensor of one number": (lambda H: torch.tensor(3.0) * H, lambda D: 3 * D),
    "-H": (lambda H: -H, lambda D: -D),
    "H+H": (lambda H: H + H, lambda D: 2 * D),
    "2H-H": (lambda H: 2 * H - H, lambda D: D),
    "H+I": (lambda H: H + scipy.sparse.eye_array(8), lambda D: D + np.eye(8)),
    "H+tensor": (lambda H: H + torch.eye(8), lambda D: D + np.eye(8)),
    "HH": (lambda H: H @ H, lambda D: D @ D),
    "H(H+H)": (lambda H: H * (H + H), lambda D: 2 * D @ D),
    "H^3": (lambda H: H**3, lambda D: D @ D @ D),
    "transpose": (lambda H: (2 * H @ (H + H)).T, lambda D: 4 * D @ D),
}


@pytest.mark.parametrize("name", MADE)
def test_arithmetic(H, name):
    make, dense = MADE[name]
    A, D = make(H), dense(H @ np.eye(8))
    X = np.random.default_rng(0).standard_normal((8, 3))
    for given in (X, X[:, 0], X[:, :1]):
        tensor = torch.from_numpy(given)
        for product, expected in (
            (lambda x: A @ x, D @ given),
            (lambda x: A * x, D @ given),
            (A.matvec if given.shape != X.shape else A.matmat, D @ given),
            (A.rmatvec if given.shape != X.shape else A.rmatmat, D.T @ given),
            (lambda x: x.T @ A if x.ndim == 2 else x @ A, given.T @ D),
        ):
            for x, kind in ((given, np.ndarray), (tensor, torch.Tensor)):
                found = product(x)
                assert type(found) is kind
                np.testing.assert_allclose(np.asarray(found), expected, atol=1e-12)


def test_pickled_with_an_engine_that_has_recorded():
    torch.manual_seed(0)
    data = [(torch.randn(8, 3), torch.randn(8, 2))]
    for engine in ("autograd", "linearized", "auto", "finite-difference"):
        H = hvpspec.HessianOperator(nn.Linear(3, 2), "mse", data, engine=engine)
        before = pickle.loads(pickle.dumps(H))
        product = H @ torch.ones(8)
        after = pickle.loads(pickle.dumps(H))
        for copy in (before, after):
            torch.testing.assert_close(copy @ torch.ones(8), product)
            assert copy.engine == H.engine
        assert 2 * after.hvps == 4  # its own, and the one made before


def test_a_sum_can_be_pickled(H):
    A = pickle.loads(pickle.dumps(H + 2 * H))
    x = torch.ones(8, dtype=torch.float64)
    torch.testing.assert_close(A @ x, 3 * (H @ x))
