"""Rows that are exactly zero are found by the first product; rank, signs and condition number are of the rest."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from estimators.spectra import rotated
from scipy.sparse.linalg import LinearOperator
from torch import nn

import hvpspec
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.report.rows.condition import condition_notes
from hvpspec.runs.replay import compared_products


def with_zero_rows(values, n, seed=0):
    A, rows = np.zeros((n, n)), np.random.default_rng(seed).permutation(n)[: len(values)]
    A[np.ix_(rows, rows)] = rotated(values)
    return A


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_they_are_left_out_and_counted(dtype, damping):
    values = np.linspace(1, 9, 60)
    A = with_zero_rows(values, 200).astype(dtype)
    found = hvpspec.spectrum(A, seed=1, damping=damping, rtol=1e-6)
    known, slack = found.condition, 1e-4 if dtype == np.float32 else 1e-9
    assert (known.zero_rows, known.parameters, found.density.n) == (140, 200, 200)
    assert known.rank.interval == pytest.approx((60, 60))
    assert known.negative.interval == pytest.approx((0, 0))
    assert known.definite == "positive"
    least = damping if damping else 1.0
    assert known.nearest_zero.value == pytest.approx(least, rel=slack)
    assert known.kappa.upper == pytest.approx((9 + damping) / least, rel=slack)
    assert known.smallest.upper == 0
    assert known.effective_dimension.value == pytest.approx((values / (values + damping)).sum(), rel=slack)
    logs = np.log(values + damping).sum() + (140 * np.log(damping) if damping else 0)
    assert known.log_determinant.value == pytest.approx(logs, rel=slack)
    assert found.trace.value == pytest.approx(values.sum(), rel=slack)
    assert found.frobenius_norm.value == pytest.approx(np.linalg.norm(values), rel=slack)
    assert found.density.count(-1e-3, 1e-3).value == pytest.approx(140)
    assert found.hvps <= 60 + 8
    assert "140 of the 200 rows of H are exactly zero" in " ".join(condition_notes(known))


def test_the_density_of_a_short_run_holds_with_them():
    """Most of it is random then, and only the share of the zero rows is known."""
    values, x = np.linspace(1, 9, 300), np.array([-0.5, 0.5, 3.0, 5.0, 7.0, 9.5])
    true = (np.r_[values, np.zeros(100)] <= x[:, None]).mean(1)
    for seed in range(3):
        density = hvpspec.spectrum(with_zero_rows(values, 400), seed=seed, max_hvps=40).density
        lower, upper = density.cdf_bounds(x)
        assert not density.exact[density.weights > 0].all()
        assert (lower <= true + 1e-9).all()
        assert (true <= upper + 1e-9).all()
        assert (density.cdf_lower <= density.cdf_upper).all()
        assert lower[1] >= 0.25 - 1e-9
        assert upper[-1] - lower[-1] <= 1e-9


@pytest.mark.parametrize(
    ("which", "k", "wanted"),
    [
        ("LM", 2, [3, -2]),
        ("LM", 5, [3, -2, 1, 0, 0]),
        ("LA", 4, [3, 1, 0, 0]),
        ("SA", 3, [-2, 0, 0]),
        ("BE", 4, [3, 1, 0, -2]),
        ("LM", 9, [3, -2, 1, 0, 0, 0]),
    ],
)
def test_pairs_of_zero_rows_are_among_those_asked_for(which, k, wanted):
    A = np.diag([3.0, 0, -2, 0, 0, 1])
    pairs = hvpspec.spectrum(A, k, which=which).eigenpairs
    assert pairs.values == pytest.approx(np.array(wanted, float), abs=1e-12)
    assert pairs.converged
    np.testing.assert_allclose(A @ pairs.vectors, pairs.vectors * pairs.values, atol=1e-12)
    np.testing.assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(len(wanted)), atol=1e-12)
    assert len(pairs.error) == len(pairs.residuals) == len(wanted)


def test_dead_inputs_of_a_layer():
    torch.manual_seed(0)
    X, Y = torch.randn(90, 100), torch.randn(90, 1)
    X[:, 25:] = 0
    found = hvpspec.spectrum(hvpspec.HessianOperator(nn.Linear(100, 1), "mse", [(X, Y)])).condition
    assert found.zero_rows == 75
    assert found.rank.interval == pytest.approx((26, 26), abs=1e-3)
    assert found.definite == "positive"
    Z = torch.cat([X[:, :25], torch.ones(90, 1)], 1).double()
    values = np.linalg.eigvalsh((2 * Z.T @ Z / 90).numpy())
    assert found.kappa.lower * (1 - 1e-3) <= values[-1] / values[0] <= found.kappa.upper * (1 + 1e-3)


def test_rows_of_an_embedding_that_no_batch_uses_and_a_data_error_by_batches():
    """The standard errors over batches are those of the same model without the unused rows."""
    torch.manual_seed(0)
    tokens, target = torch.randint(0, 6, (4, 40)), torch.randint(0, 3, (4, 40))
    found = []
    for rows in (6, 30):
        model = nn.Embedding(rows, 3)
        with torch.no_grad():
            model.weight[:6] = torch.linspace(-1, 1, 18).reshape(6, 3)
        data = list(zip(tokens, target, strict=True))
        H = hvpspec.HessianOperator(model, "cross_entropy", data, dtype="float64")
        found.append(hvpspec.spectrum(H, 3, rtol=1e-9))
    small, large = found
    assert (small.condition.zero_rows, large.condition.zero_rows) == (0, 72)
    np.testing.assert_allclose(large.eigenpairs.values, small.eigenpairs.values, rtol=1e-9)
    np.testing.assert_allclose(large.eigenpairs.data_error, small.eigenpairs.data_error, rtol=1e-6)
    assert large.trace.data_error == pytest.approx(small.trace.data_error, rel=1e-6)


def test_a_row_that_is_zero_by_rounding_alone_is_found_out():
    A, calls = rotated(np.linspace(1, 3, 40)), []

    def multiply(X):
        product = A @ X
        if not calls:
            product[7] = 0.0
        calls.append(X.shape[1])
        return product

    found = hvpspec.spectrum(LinearOperator(A.shape, matvec=multiply, matmat=multiply, dtype=float), 3)
    assert found.condition.zero_rows == 0
    assert found.density.n == 40
    assert found.eigenpairs.values == pytest.approx(np.linspace(1, 3, 40)[::-1][:3], abs=0.02)


@pytest.mark.parametrize("known", [0, 3])
def test_a_start_that_left_out_more_rows_than_are_zero_is_verified(known):
    """What is 0 in one product by rounding need not be in the next one."""
    A = np.pad(rotated(np.linspace(1, 9, 60)), (0, known + 4))
    made = 0

    def multiply(X):
        nonlocal made
        made += 1
        Y = A @ X
        if made > 1:
            Y[60 + known :] = 1e-17
        return Y

    shape = (64 + known, 64 + known)
    found = hvpspec.spectrum(LinearOperator(shape, matvec=multiply, matmat=multiply, dtype=float), 3, max_hvps=30)
    assert found.condition.zero_rows == known
    assert found.lanczos.start_growth > 1.001
    exact = as_symmetric(A)
    assert compared_products(found, exact, seed=0).agree
    assert not compared_products(found, as_symmetric(A * 1.001), seed=0).agree
    growth = found.lanczos.start_growth
    altered = replace(found, lanczos=replace(found.lanczos, start_growth=growth * 1.001))
    assert not compared_products(altered, exact, seed=0).agree


def test_refinement_and_blocks_know_them():
    A = with_zero_rows(np.linspace(1, 9, 60), 200)
    found = hvpspec.spectrum(A, 3, refine=True, blocks={"first": slice(0, 100)}, rtol=0.3)
    assert found.condition.refined.values[0] == pytest.approx(1, rel=1e-3)
    own = A[:100, :100]
    block = found.blocks.blocks[0]
    assert abs(block.trace.value - np.trace(own)) <= block.trace.error
    assert block.largest.lower - 1e-9 <= np.linalg.eigvalsh(own).max() <= block.largest.upper + 1e-9


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
def test_a_space_of_the_other_rows_cannot_be_extended_once_it_is_whole(which):
    """With room for all rows in memory, one more step was made there, with no vector."""
    A = np.diag(np.r_[np.repeat(np.arange(1.0, 20), 11)[:19], np.zeros(16)])
    for seed in range(1, 4):
        found = hvpspec.spectrum(A, 2, which=which, seed=seed)
        assert found.hvps <= 19 + 16
        assert found.eigenpairs.converged


def test_counts_hold_all_zeros_that_are_known():
    """An interval around zero has at least as many eigenvalues as there are zero rows, and others the less."""
    values = np.r_[np.linspace(-1, 2, 60) + 0.001, np.zeros(240)]
    density = hvpspec.spectrum(np.diag(values)[::-1, ::-1], 3, seed=0, max_hvps=20).density
    low, high = density.count(-1e-6, 1e-6).interval
    assert low + 1e-9 >= 240
    assert low <= (np.abs(values) <= 1e-6).sum() <= high
    low, high = density.count(0.1, 3).interval
    assert low <= (values > 0.1).sum() <= high <= 60 + 1e-9
