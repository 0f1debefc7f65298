import numpy as np
import pytest
import torch
from estimators.spectra import eigenvalues, matrix, rotated
from torch import nn
from zoo import explicit_hessian, mlp

import hvpspec
from hvpspec.errors import InputError
from hvpspec.oracle.retained import RetainedGraphs


def pick(values, k, which):
    falling = np.sort(values)[::-1]
    return {
        "LM": lambda: falling[np.argsort(-np.abs(falling), kind="stable")[:k]],
        "LA": lambda: falling[:k],
        "SA": lambda: falling[::-1][:k],
        "BE": lambda: np.r_[falling[: (k + 1) // 2], falling[len(falling) - k // 2 :]],
    }[which]()


@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
@pytest.mark.parametrize("name", ["flat", "polynomial", "exponential, slow", "step", "indefinite with outliers"])
def test_known_spectra(name, which):
    A, values = matrix(name), eigenvalues(name)
    found = hvpspec.eigsh(A, 5, which, tol=1e-4, seed=1)
    assert found.converged
    true_residuals = np.linalg.norm(A @ found.vectors - found.vectors * found.values, axis=0)
    np.testing.assert_allclose(found.residuals, true_residuals, rtol=1e-3, atol=1e-13)
    assert (true_residuals <= 1e-4 * np.abs(found.values) + 1e-13).all()
    # the matrix has these eigenvalues up to the rounding errors it was made with
    assert (np.abs(values[:, None] - found.values).min(0) <= found.error + 1e-13).all()
    expected = pick(values, 5, which)
    if which == "LM" or name != "polynomial":  # its small eigenvalues are closer than any tolerance
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
    ("options", "message"),
    [
        ({"k": 0}, "k must be a whole number ≥ 1; got 0"),
        ({"k": 2.5}, "k must be"),
        ({"which": "XM"}, 'which must be one of "LM"'),
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


def test_gradient_graphs_are_made_once(monkeypatch):
    """The first product keeps them, as others are sure to follow."""
    made, new = [], RetainedGraphs._new
    monkeypatch.setattr(
        RetainedGraphs, "_new", lambda graphs, index, *rest: made.append(index) or new(graphs, index, *rest)
    )
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    data = [(torch.randn(20, 5), torch.randn(20, 2)) for _ in range(2)]
    H = hvpspec.HessianOperator(model, "mse", data, engine="autograd")
    assert hvpspec.eigsh(H, 1).hvps > 5
    assert made == [0, 1]
