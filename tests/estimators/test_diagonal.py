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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"only": "eigenvalues"},
        {"only": "trace", "blocks": {"first": slice(0, 10), "others": np.arange(40, 60)}},
        {"basis_memory": 90 * 8 * 26, "k": 2, "max_hvps": 80},  # restarts, and probes that are not kept
        {"rtol": 0.003, "basis_memory": 90 * 8 * 60, "blocks": {"first": slice(0, 10)}},
    ],
)
def test_of_a_spectrum(options):
    A = spectrum_like_a_network(90, seed=3)
    A[30:40] = A[:, 30:40] = 0  # rows that are zero
    plain = hvpspec.spectrum(A, seed=4, **options)
    found = hvpspec.spectrum(A, seed=4, diagonal=True, diagonal_rtol=0.05, diagonal_hvps=300, **options)
    of = found.diagonal
    assert relative(of, np.diag(A)) <= of.error <= 0.05
    assert of.own_hvps == found.hvps - plain.hvps
    assert found.trace == plain.trace  # the diagonal comes after everything else
    assert found.blocks == plain.blocks
    exact = {name: np.diag(A)[rows].mean() for name, rows in options.get("blocks", {}).items()}
    assert [part.name for part in of.means] == list(exact)
    for part in of.means:
        assert abs(part.mean.value - exact[part.name]) <= part.mean.error
    again = hvpspec.Spectrum.from_dict(found.to_dict()).diagonal
    assert again.values is None
    assert (again.error, again.means, again.own_hvps) == (of.error, of.means, of.own_hvps)
    assert "diagonal        relative error" in repr(found)
    assert set(found.to_frame().query("quantity == 'diagonal_mean'")["value"]) == {p.mean.value for p in of.means}


def test_a_spectrum_spends_no_more_on_it_than_its_budget():
    A = spectrum_like_a_network(200, seed=5)
    seen = []
    found = hvpspec.spectrum(A, max_hvps=40, diagonal=True, diagonal_rtol=0, diagonal_hvps=9, callback=seen.append)
    assert found.hvps <= 49
    assert found.diagonal.own_hvps == 9
    assert not found.diagonal.converged
    assert found.converged == hvpspec.spectrum(A, max_hvps=40).converged
    assert seen[0].expected >= 40 + 9
    assert seen[-1].stage == "diagonal"


def test_what_probes_that_are_dropped_have_shown_is_kept():
    """The same diagonal, whether the probes are kept as vectors or not."""
    A = spectrum_like_a_network(120, seed=6)
    few, many = (
        diagonal(A, basis_memory=120 * 8 * vectors, max_hvps=90, rtol=0, seed=2) for vectors in (20, 200)
    )  # fmt: skip
    assert few.probes > 20
    assert relative(few, np.diag(A)) <= few.error
    assert relative(many, np.diag(A)) <= many.error
