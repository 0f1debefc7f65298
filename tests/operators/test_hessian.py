"""HessianOperator as SciPy and torch users meet it."""

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg as sla
import torch
from torch import nn
from zoo import explicit_hessian, mlp

import hvpspec
from hvpspec.errors import InputError


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    case = mlp()
    D = explicit_hessian(case)
    return hvpspec.HessianOperator(case.model, case.loss, case.data), D, np.linalg.eigvalsh(D)


def identity(n):
    return sla.aslinearoperator(scipy.sparse.eye_array(n))


class TestSciPySolvers:
    @pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
    def test_eigsh(self, problem, which):
        H, D, _ = problem
        found = sla.eigsh(H, 4, which=which, return_eigenvectors=False)
        expected = sla.eigsh(D, 4, which=which, return_eigenvectors=False)
        np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-9)

    def test_lobpcg(self, problem):
        H, _, values = problem
        X = np.random.default_rng(0).standard_normal((H.shape[0], 3))
        found, _ = sla.lobpcg(H, X, largest=True, maxiter=200, tol=1e-8)
        np.testing.assert_allclose(np.sort(found), values[-3:], rtol=1e-8)

    @pytest.mark.parametrize("solver", [sla.cg, sla.minres])
    def test_solvers(self, problem, solver):
        H, D, values = problem
        shift = 2 * abs(values[0])
        b = np.random.default_rng(1).standard_normal(H.shape[0])
        x, info = solver(H + shift * identity(H.shape[0]), b, rtol=1e-12, maxiter=2000)
        assert info == 0
        np.testing.assert_allclose(x, np.linalg.solve(D + shift * np.eye(len(b)), b), rtol=1e-7)

    def test_svds(self, problem):
        H, _, values = problem
        found = sla.svds(H, 3, return_singular_vectors=False)
        np.testing.assert_allclose(np.sort(found), np.sort(np.abs(values))[-3:], rtol=1e-9)


class TestAlgebra:
    def test_transpose_and_adjoint_are_itself(self, problem):
        H, *_ = problem
        assert H.T is H
        assert H.H is H

    def test_sums_scalings_and_products(self, problem):
        H, D, _ = problem
        n = len(D)
        x = np.random.default_rng(2).standard_normal(n)
        for operator, matrix in [
            (H + 0.3 * identity(n), D + 0.3 * np.eye(n)),
            (H + 0.3 * scipy.sparse.eye_array(n), D + 0.3 * np.eye(n)),
            (H + np.diag(x), D + np.diag(x)),
            (H - H, 0 * D),
            (2 * H, 2 * D),
            (-H / 4, -D / 4),
            (H @ H, D @ D),
            (H**2, D @ D),
        ]:
            np.testing.assert_allclose(operator @ x, matrix @ x, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(x @ H, x @ D, rtol=1e-10)
        np.testing.assert_allclose(H(x), D @ x, rtol=1e-10)

    @pytest.mark.parametrize("shape", [(0,), (1,), (3,), ()])
    def test_shapes_go_through(self, problem, shape):
        H, D, _ = problem
        X = np.random.default_rng(3).standard_normal((len(D), *shape))
        found = H @ X
        assert found.shape == X.shape
        np.testing.assert_allclose(found, D @ X, rtol=1e-10)
        tensor = H @ torch.from_numpy(X)
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor.numpy(), found)

    def test_all_ways_to_multiply_take_tensors(self, problem):
        H, D, _ = problem
        v = torch.randn(len(D), 2).double()
        for product in (H @ v, H * v, H.dot(v), H.matmat(v), H(v)):
            np.testing.assert_allclose(product.numpy(), D @ v.numpy(), rtol=1e-10)
        assert H.matvec(v[:, 0]).shape == (len(D),)

    def test_integers_and_lower_precision_arrays_are_converted(self, problem):
        H, D, _ = problem
        for x in (np.arange(len(D)), np.ones(len(D), np.float32), [1.0] * len(D), np.ones(len(D), bool)):
            np.testing.assert_allclose(H @ x, D @ np.asarray(x, float), rtol=1e-10)

    def test_a_float32_operator_gives_float32(self):
        case = mlp()
        H = hvpspec.HessianOperator(case.model.float(), case.loss, case.data)
        assert (H @ np.ones(H.shape[0])).dtype == np.float32 == H.dtype
        np.testing.assert_allclose(
            sla.eigsh(H, 2, which="LA", return_eigenvectors=False),
            hvpspec.eigsh(H, 2, "LA").values[::-1],
            rtol=1e-3,
        )


class TestErrors:
    @pytest.mark.parametrize("shape", [(3,), (3, 2), (33, 2, 2), (1, 33), ()])
    def test_wrong_shapes(self, problem, shape):
        H, D, _ = problem
        message = rf"the Hessian is {len(D)} × {len(D)}: expected shape \({len(D)},\) or \({len(D)}, b\), got"
        for x in (np.ones(shape), torch.ones(shape).double()):
            with pytest.raises(InputError, match=message):
                H.matvec(x) if len(shape) < 2 else H.matmat(x)
            if shape:
                with pytest.raises(ValueError, match=r"shape|ndarray|array or matrix"):
                    H @ x

    def test_wrong_dtypes(self, problem):
        H, D, _ = problem
        with pytest.raises(TypeError, match=r"computes in torch.float64 and the tensor is torch.float32; convert"):
            H @ torch.ones(len(D))
        for x in (np.ones(len(D), complex), np.array(["a"] * len(D))):
            with pytest.raises(TypeError, match="expected a real vector"):
                H @ x
        with pytest.raises(TypeError):
            H @ torch.ones(len(D), dtype=torch.complex128)

    @pytest.mark.parametrize("dtype", ["float16", torch.int32, "fast", complex])
    def test_operator_dtypes(self, dtype):
        case = mlp()
        with pytest.raises(InputError, match="dtype must be float32 or float64"):
            hvpspec.HessianOperator(case.model, case.loss, case.data, dtype=dtype)

    @pytest.mark.parametrize("dtype", ["float32", torch.float32, np.float32, np.dtype("float32")])
    def test_dtype_spellings(self, dtype):
        case = mlp()
        assert hvpspec.HessianOperator(case.model, case.loss, case.data, dtype=dtype).dtype == np.float32


def test_products_are_counted():
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    n = H.shape[0]
    assert H.hvps == 0
    H @ np.ones(n)
    H @ np.ones((n, 5))
    H @ torch.ones(n, 2).double()
    H.loss()
    assert H.hvps == 8


def test_linear_operator_it_is(problem):
    H, *_ = problem
    assert isinstance(H, sla.LinearOperator)
    assert sla.aslinearoperator(H) is H
    assert "HessianOperator" in repr(H)


@pytest.mark.gpu
def test_cuda_products_stay_where_they_belong():
    case = mlp()
    H = hvpspec.HessianOperator(nn.Sequential(*case.model).cuda(), case.loss, case.data)
    v = torch.ones(H.shape[0]).double()
    assert (H @ v).device.type == "cpu"
    assert (H @ v.cuda()).device.type == "cuda"
    np.testing.assert_allclose(H @ v.numpy(), (H @ v).numpy())
    pairs = hvpspec.eigsh(H, 2)
    np.testing.assert_allclose(pairs.values, sla.eigsh(H, 2)[0][::-1], rtol=1e-3)
