"""PreconditionedOperator against explicit matrices, and as estimators use it."""

import copy

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch
from torch import nn
from zoo import explicit_hessian, mlp

import hvpspec
from hvpspec.errors import InputError
from hvpspec.krylov.operator_view import as_symmetric


@pytest.fixture
def problem():
    """An operator, its explicit matrix, and a scale that is not a power of two."""
    torch.manual_seed(0)
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    scale = torch.exp(torch.randn(H.shape[0], dtype=torch.float64))
    return H, explicit_hessian(case), scale


def dense(D, scale, shift=0.0):
    return scale.numpy()[:, None] * (D + shift * np.eye(len(D))) * scale.numpy()


def test_products_of_arrays_and_tensors(problem):
    H, D, scale = problem
    P = hvpspec.PreconditionedOperator(H, scale, 0.3)
    expected = dense(D, scale, 0.3)
    eye = np.eye(len(D))
    np.testing.assert_allclose(P @ eye, expected, rtol=1e-10, atol=1e-12 * np.abs(expected).max())
    np.testing.assert_allclose((P @ torch.from_numpy(eye)).numpy(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(P @ eye[0], expected[0], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(P.T @ eye[0], expected[0], rtol=1e-10, atol=1e-10)
    top = sla.eigsh(P, 1, which="LA", return_eigenvectors=False)[0]
    assert top == pytest.approx(np.linalg.eigvalsh(expected)[-1], rel=1e-9)
    assert repr(P) == f"<{len(D)}x{len(D)} PreconditionedOperator with dtype=float64>"


@pytest.mark.parametrize("form", ["vector", "array", "names", "scale by name and shift by name"])
def test_forms_of_a_scale(problem, form):
    H, D, scale = problem
    space, shift = H.parameters, 0.0
    given = {"vector": scale, "array": scale.numpy()}.get(form, space.unflatten(scale))
    if "shift by" in form:
        shift = dict.fromkeys(space.names, 0.5)
    P = hvpspec.PreconditionedOperator(H, given, shift)
    x = torch.randn(len(D), dtype=torch.float64)
    expected = dense(D, scale, 0.5 if shift else 0.0) @ x.numpy()
    np.testing.assert_allclose((P @ x).numpy(), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("A", [hvpspec.GGNOperator, hvpspec.EmpiricalFisherOperator])
def test_other_matrices(A):
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    data = [(torch.randn(4, 3).double(), torch.randn(4, 2).double()) for _ in range(2)]
    inner = A(model, "mse", data)
    scale = torch.rand(inner.shape[0], dtype=torch.float64) + 0.5
    P = hvpspec.PreconditionedOperator(inner, scale)
    eye = torch.eye(len(scale), dtype=torch.float64)
    torch.testing.assert_close(P @ eye, scale[:, None] * (inner @ eye) * scale, rtol=1e-12, atol=1e-12)
    found = hvpspec.spectrum(P, k=1, only="eigenvalues")
    assert (found.matrix, found.matrix_name.split()[0]) == (A.matrix, "preconditioned")


@pytest.mark.parametrize("kind", ["array", "tensor", "sparse", "operator"])
def test_matrices_without_data(kind):
    array = np.diag([1.0, 4.0, -2.0])
    A = {
        "array": array, "tensor": torch.from_numpy(array), "sparse": sla.aslinearoperator(array).A,
        "operator": sla.aslinearoperator(array),
    }[kind]  # fmt: skip
    P = hvpspec.PreconditionedOperator(A, np.array([1.0, 0.5, 2.0]), np.array([0.0, 4.0, 1.0]))
    found = hvpspec.spectrum(P, k=3)
    np.testing.assert_allclose(np.sort(found.eigenpairs.values), [-4.0, 1.0, 2.0], atol=1e-12)


def test_a_spectrum_with_blocks_of_a_preconditioned_hessian(problem):
    H, D, scale = problem
    expected = dense(D, scale)
    P = hvpspec.PreconditionedOperator(H, scale)
    name = H.parameters.names[0]
    found = hvpspec.spectrum(P, k=3, blocks=[name], rtol=0.05)
    values = np.linalg.eigvalsh(expected)
    top = values[np.argsort(-abs(values))][:3]
    np.testing.assert_allclose(found.eigenpairs.values, top, rtol=1e-3)
    assert abs(found.trace.value - np.trace(expected)) <= 1.5 * found.trace.error + 1e-9
    rows = H.parameters.slice(name)
    assert found.blocks[name].lambda_max.lower <= np.linalg.eigvalsh(expected[rows, rows])[-1] * (1 + 1e-9)
    assert found.preconditioned == hvpspec.Preconditioned()
    again = hvpspec.Spectrum.from_dict(found.to_dict())
    assert again.preconditioned == found.preconditioned
    assert "preconditioned" not in hvpspec.spectrum(H, k=1, only="eigenvalues").to_dict()


def test_folds_of_the_data_add_up(problem):
    H, D, scale = problem
    P = as_symmetric(hvpspec.PreconditionedOperator(H, scale, 0.7))
    assert P.folds == as_symmetric(H).folds > 1
    X = torch.randn(len(D), 2, dtype=torch.float64)
    product, folds = P.by_folds(X, lambda fold: (fold.clone(),))
    np.testing.assert_allclose(product.numpy(), dense(D, scale, 0.7) @ X.numpy(), rtol=1e-9, atol=1e-9)
    whole = sum(fold.weight * fold.parts[0] for fold in folds) / sum(fold.weight for fold in folds)
    np.testing.assert_allclose(whole, product.numpy(), rtol=1e-9, atol=1e-9)


def test_products_with_other_rounding(problem):
    H, D, scale = problem
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, dtype="float32")
    P = hvpspec.PreconditionedOperator(H, scale)
    X = torch.randn(len(D), 1)
    again, how = P.recompute(X)
    assert how == "float64"
    expected = dense(explicit_hessian(case), scale) @ X.double().numpy()
    np.testing.assert_allclose(again.numpy(), expected, rtol=1e-4, atol=1e-5 * float(abs(expected).max()))
    np.testing.assert_allclose(P.fresh(X).numpy(), (P @ X).numpy(), rtol=1e-3, atol=1e-5 * float(abs(expected).max()))
    assert P.torch_dtype == torch.float32


def test_a_journal_tells_scales_apart(problem):
    H, _, scale = problem
    prints = [
        hvpspec.PreconditionedOperator(H, by, shift).fingerprint()
        for by, shift in ((scale, 0.0), (2 * scale, 0.0), (scale, 1.0))
    ]
    assert len({one["preconditioner"] for one in prints}) == 3
    assert prints[0] == hvpspec.PreconditionedOperator(H, scale.clone()).fingerprint()


def test_copies(problem):
    H, D, scale = problem
    x = np.ones(len(D))
    for A in (H, D):
        P = hvpspec.PreconditionedOperator(A, scale)
        np.testing.assert_array_equal(copy.copy(P) @ x, P @ x)


def test_bad_scales(problem):
    H, D, scale = problem
    by_name = H.parameters.unflatten(scale)
    first = H.parameters.names[0]
    without = {name: value for name, value in by_name.items() if name != first}
    cases = [
        (without, f"missing: {first}"),
        ({**by_name, "other": scale}, "not among the operator's parameters: other"),
        ({**by_name, first: scale}, f"'{first}' has shape"),
        (scale[1:], "vector of length"),
        (scale.log(), "must be positive"),
        (0 * scale, "must be positive"),
        (scale / 0, "NaN or Inf"),
    ]
    for given, message in cases:
        with pytest.raises(InputError, match=message):
            hvpspec.PreconditionedOperator(H, given)
    with pytest.raises(InputError, match="no parameters by name"):
        hvpspec.PreconditionedOperator(D, by_name)
    with pytest.raises(InputError, match="must be square"):
        hvpspec.PreconditionedOperator(D[:2], scale)


def test_an_optimizers_preconditioner_brings_its_names_and_its_shift():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double()
    adam = torch.optim.Adam(model.parameters(), weight_decay=0.1)
    data = [(torch.randn(4, 2).double(), torch.randn(4, 1).double())]
    nn.functional.mse_loss(model(data[0][0]), data[0][1]).backward()
    adam.step()
    found = hvpspec.adam_preconditioner(adam, model)
    H = hvpspec.HessianOperator(model, "mse", data, parameters="1")
    P = hvpspec.PreconditionedOperator(H, found)
    scale = torch.cat([found.scale[name].reshape(-1) for name in ("1.weight", "1.bias")])
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(P @ eye, scale[:, None] * (H @ eye + 0.1 * eye) * scale, rtol=1e-12, atol=1e-9)
    assert P.preconditioned == hvpspec.Preconditioned("Adam", 1, 1e-3, found.threshold)
    with pytest.raises(InputError, match="leave shift out"):
        hvpspec.PreconditionedOperator(H, found, 0.1)
    with pytest.raises(InputError, match=r"no scale for 0\.weight"):
        hvpspec.PreconditionedOperator(
            hvpspec.HessianOperator(model, "mse", data), hvpspec.adam_preconditioner(adam, model, parameters="1")
        )


def test_a_run_goes_on_from_its_journal_with_the_same_scale_only(problem, tmp_path):
    H, _, scale = problem
    P = hvpspec.PreconditionedOperator(H, scale)
    options = {"k": 2, "only": "eigenvalues", "journal": tmp_path}

    def stop(progress):
        if progress.hvps >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hvpspec.spectrum(P, callback=stop, **options)
    with pytest.raises(InputError, match="preconditioner"):
        hvpspec.spectrum(hvpspec.PreconditionedOperator(H, 2 * scale), **options)
    before = H.hvps
    found = hvpspec.spectrum(P, **options)
    assert H.hvps - before < found.hvps
    fresh = hvpspec.spectrum(P, k=2, only="eigenvalues")
    np.testing.assert_array_equal(found.eigenpairs.values, fresh.eigenpairs.values)
