"""The diagonal against explicit ones: its value, its error over many seeds, and the means of blocks."""

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

import hvpspec
from hvpspec import InputError, diagonal
from hvpspec.estimators.diagonal import _known
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.krylov.basis import Storage
from hvpspec.krylov.operator_view import as_symmetric


def spectrum_like_a_network(n, seed=0, outliers=8):
    Q = ortho_group.rvs(n, random_state=seed)
    bulk = np.random.default_rng(seed).normal(0, 0.03, n - outliers)
    values = np.concatenate([10.0 / np.arange(1, outliers + 1), bulk])
    return (Q * values) @ Q.T


def relative(found, exact):
    return np.linalg.norm(found.values - exact) / np.linalg.norm(found.values)


def test_its_error_holds_over_many_seeds():
    A = spectrum_like_a_network(100)
    exact, misses = np.diag(A), 0
    for seed in range(200):
        found = diagonal(A, seed=seed, rtol=0.3)
        assert found.converged
        assert found.error <= 0.3
        misses += relative(found, exact) > found.error
    assert misses <= 200 * 0.07
    assert found.hvps < 100


def test_means_of_blocks_hold_over_many_seeds():
    A = spectrum_like_a_network(80, seed=1)
    A[:40, :40] += 0.4  # a block whose errors are correlated
    A[0, 0] += 5
    blocks = [slice(0, 40), slice(40, 41), slice(41, 80)]
    misses = np.zeros(3)
    for seed in range(200):
        found = diagonal(A, seed=seed, max_hvps=24, rtol=1e-3)
        assert not found.converged
        assert found.hvps <= 24
        for number, block in enumerate(blocks):
            mean = found.mean(block)
            misses[number] += abs(mean.value - np.diag(A)[block].mean()) > mean.error
    assert (misses <= 200 * 0.07).all()


def test_a_diagonal_matrix_takes_few_products():
    values = np.random.default_rng(0).normal(size=500)
    found = diagonal(np.diag(values))
    assert np.allclose(found.values, values)
    assert found.hvps <= 10


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_whole_space_is_exact(dtype):
    A = spectrum_like_a_network(30).astype(dtype)
    found = diagonal(A, rtol=1e-6)
    assert found.values.dtype == dtype
    assert relative(found, np.diag(A)) <= found.error <= 1e-4
    assert found.mean().error >= abs(found.mean().value - np.diag(A).mean())


def test_of_a_network():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    H = hvpspec.HessianOperator(model, "cross_entropy", [(x, y)], dtype="float64")
    exact = (H @ torch.eye(H.shape[0], dtype=torch.float64)).diag().numpy()
    found = diagonal(H, rtol=0.2, seed=3)
    assert relative(found, exact) <= found.error <= 0.2
    place = slice(0, 48)
    assert abs(found.mean(place).value - exact[place].mean()) <= found.mean(place).error


def test_probes_beyond_those_kept_count_as_well():
    A = spectrum_like_a_network(400, seed=2, outliers=1)
    exact = np.diag(A)
    found = diagonal(A, basis_memory=400 * 8 * 30, max_hvps=150, rtol=1e-3, seed=1)
    assert found.probes > 64
    assert relative(found, exact) <= found.error


def test_the_zero_matrix():
    found = diagonal(np.zeros((20, 20)))
    assert not found.values.any()
    assert found.converged


def test_refusals():
    with pytest.raises(InputError, match="rtol"):
        diagonal(np.eye(3), rtol=-1)
    with pytest.raises(InputError, match="symmetric"):
        diagonal(np.triu(np.ones((50, 50))))


def test_the_part_that_a_basis_knows():
    A = torch.from_numpy(spectrum_like_a_network(40))
    shared = SharedPass(as_symmetric(A), seed=0, storage=Storage())
    for _ in range(3):
        shared.extend(1)
    Q = shared.krylov.basis.matrix
    P = Q @ Q.T
    expected = (P @ A + A @ P - P @ A @ P).diag()
    assert torch.allclose(_known(shared), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
