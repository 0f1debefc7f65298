"""Converged sets are those that were asked for: nothing is missing between the values found, and no copy of them."""

import numpy as np
import pytest
import torch
from estimators.adversarial import dense
from estimators.spectra import matrix, rotated

import hvpspec
from hvpspec.errors import InputError
from hvpspec.kernels.random_vectors import gaussian

RING = 2 * np.eye(120) - np.roll(np.eye(120), 1, 0) - np.roll(np.eye(120), -1, 0)


def by_magnitude(values, k):
    return np.sort(np.abs(values))[::-1][:k]


def hidden(values, component, seed):
    """A matrix with these eigenvalues, of the tenth of which the seed's first start vector has this component."""
    n = len(values)
    g = gaussian(n, 0, seed=seed, dtype=torch.float64, device=torch.device("cpu")).numpy()[:, 0]
    start = np.random.default_rng(seed).standard_normal(n)
    start[9] = 0
    start *= np.sqrt(1 - component**2) / np.linalg.norm(start)
    start[9] = component
    mirror = start - g / np.linalg.norm(g)  # the reflection that takes one into the other
    Q = np.eye(n) - 2 * np.outer(mirror, mirror) / (mirror @ mirror)
    return (Q * values) @ Q.T


@pytest.mark.parametrize("component", [1e-4, 3e-4, 1e-3])
def test_an_eigenvalue_of_which_the_start_has_little_is_not_passed_over(component):
    """1/11 was taken for the tenth largest, and 1/10 came to light only with more steps."""
    values = 1 / np.arange(1, 161.0)
    for seed in range(12):
        found = hvpspec.eigsh(hidden(values, component, seed), 10, seed=seed)
        assert found.converged
        np.testing.assert_allclose(found.values, values[:10], rtol=2e-3)


def linear():
    """The Hessian of a linear layer with three outputs: every eigenvalue three times."""
    X = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
    H = hvpspec.HessianOperator(torch.nn.Linear(30, 3), "mse", [(X, torch.zeros(64, 3))], dtype="float64")
    return H @ np.eye(93)


MULTIPLE = {
    "two over a dense bulk": lambda: np.diag(np.r_[1, 1, 0.99 ** np.arange(1, 199)]),
    "a ring": lambda: RING,
    "a linear layer": linear,
    "six, of which four are asked for": lambda: np.diag(np.r_[np.full(6, 5.0), np.linspace(-1, 1, 144)]),
    "nearly equal": lambda: rotated(np.r_[5, 5 - 1e-6, -5, 4, 4, np.linspace(-1, 1, 145)]),
    "rank three": lambda: np.diag(np.r_[3.0, 3, 1, np.zeros(147)]),
}


@pytest.mark.parametrize("name", MULTIPLE)
def test_converged_sets_hold_all_copies(name):
    A = MULTIPLE[name]()
    expected = by_magnitude(np.linalg.eigvalsh((A + A.T) / 2), 4)
    for seed in range(6):
        pairs = hvpspec.spectrum(A, 4, seed=seed, rtol=0.1).eigenpairs
        assert pairs.converged
        assert pairs.all_copies
        np.testing.assert_allclose(np.abs(pairs.values), expected, rtol=2e-3, atol=1e-12)


@pytest.mark.parametrize("which", ["LA", "SA", "BE"])
def test_copies_are_found_at_the_ends_asked_for(which):
    values = np.sort(np.r_[3, 3, 3, 2.5, -2, -2, np.linspace(-1, 1, 114)])
    expected = {"LA": values[:-4:-1], "SA": values[:3], "BE": np.r_[3, 3, -2]}[which]
    for seed in range(4):
        pairs = hvpspec.spectrum(rotated(values), 3, which=which, seed=seed, rtol=0.1).eigenpairs
        assert pairs.converged
        np.testing.assert_allclose(pairs.values, expected, rtol=2e-3)


@pytest.mark.parametrize("budget", [20, 30, 40, 60])
def test_a_run_that_is_cut_short_says_that_copies_may_be_missing(budget):
    A = np.diag(np.r_[np.full(5, 4.0), 2, np.linspace(-1, 1, 194)])
    for seed in range(6):
        pairs = hvpspec.spectrum(A, 5, seed=seed, rtol=0.1, max_hvps=budget).eigenpairs
        if pairs.converged or pairs.all_copies:
            np.testing.assert_allclose(pairs.values, 4, rtol=2e-3)


def test_one_start_says_that_copies_may_be_missing_and_a_block_that_none_is():
    A = rotated(np.r_[5, 5, 4, 3, np.linspace(-1, 1, 196)])
    single = hvpspec.eigsh(A, 3)
    np.testing.assert_allclose(single.values, [5, 4, 3], rtol=1e-4)
    assert not single.all_copies
    assert "copies not excluded" in repr(single)
    claims = 0
    for seed in range(8):
        for block_size in (2, 3):
            found = hvpspec.eigsh(A, 3, seed=seed, block_size=block_size)
            np.testing.assert_allclose(found.values, [5, 5, 4], rtol=1e-4)
            claims += found.all_copies
            assert not (found.all_copies and block_size == 2)  # there might be a third copy
    assert claims >= 6
    triple = rotated(np.r_[5, 5, 5, 4, np.linspace(-1, 1, 196)])
    assert not any(hvpspec.eigsh(triple, 2, seed=seed, block_size=2).all_copies for seed in range(8))


def test_a_block_in_a_whole_spectrum():
    values = np.r_[5, 5, 5, 4, 3, np.linspace(-1, 1, 195)]
    A = rotated(values)
    found = hvpspec.spectrum(A, 5, block_size=3, rtol=0.1, only=("eigenvalues",))
    np.testing.assert_allclose(found.eigenpairs.values, values[:5], rtol=1e-3)
    everything = hvpspec.spectrum(A, 5, block_size=3, rtol=0.1, seed=1)
    np.testing.assert_allclose(everything.eigenpairs.values, values[:5], rtol=1e-3)
    assert abs(everything.trace.value - values.sum()) <= 1.5 * everything.trace.error
    with pytest.raises(InputError, match="block_size"):
        hvpspec.spectrum(A, 2, block_size=0)
    with pytest.raises(InputError, match="start needs block_size=1"):
        hvpspec.spectrum(A, 2, block_size=2, start=np.ones(200), only=("eigenvalues",))


def test_a_search_makes_no_products_where_the_probes_exclude_copies():
    pairs = hvpspec.spectrum(matrix("indefinite with outliers"), 8, rtol=0.1)
    assert pairs.eigenpairs.all_copies
    assert pairs.hvps < 40


@pytest.mark.parametrize("seed", [19, 25, 29, 42])
def test_a_copy_that_rounding_has_brought_into_the_basis_in_part(seed):
    """Half in the basis and half in its complement, a second 1 was an eigenvalue of neither, and taken for excluded."""
    values = np.r_[1, 1, 0.99 ** np.arange(1, 119)]
    pairs = hvpspec.spectrum(dense(values, seed), 6, seed=seed, rtol=0.02).eigenpairs
    assert not pairs.all_copies or np.allclose(pairs.values, values[:6], rtol=2e-3)


def test_copies_are_shown_to_be_complete_by_counts_where_random_vectors_were_added():
    """More eigenvalues beyond a point than the basis has are found by Lanczos on the Schur complement there."""
    values = np.repeat(np.linspace(1, 4, 60), 2)
    complete = 0
    for seed in range(4):
        pairs = hvpspec.spectrum(dense(values, seed), 6, seed=seed, rtol=0.02).eigenpairs
        if pairs.converged:
            complete += 1
            np.testing.assert_allclose(pairs.values, values[:-7:-1], rtol=2e-3)
    assert complete >= 3


def test_a_search_in_vain_leaves_products_for_the_whole_space():
    """Probes were added until the ceiling left four products, and then eight more were asked for."""
    values = 2 - 2 * np.cos(2 * np.pi * np.arange(151) / 151)
    found = hvpspec.spectrum(rotated(values, 1), 6, seed=9)
    assert found.hvps <= 151 + 16
    assert found.eigenpairs.converged
    assert found.eigenpairs.values == pytest.approx(np.sort(values)[:-7:-1])


@pytest.mark.parametrize(("n", "seed"), [(51, 0), (151, 0), (151, 4)])
def test_a_rest_of_a_few_dimensions_is_spanned(n, seed):
    """A run ended without convergence one product before the whole space was known."""
    found = hvpspec.spectrum(rotated(2 - 2 * np.cos(2 * np.pi * np.arange(n) / n)), 6, seed=seed)
    assert found.hvps <= n + 8
    assert found.eigenpairs.converged


def test_a_copy_of_which_the_basis_has_a_part_is_mostly_not_looked_for_in_new_vectors():
    """The rest of its eigenvector was in the frontier, to which every new start is orthogonal. Rounding decides how a
    run goes: some span the whole space in the end, or say that they have not converged."""
    values, few = np.r_[np.repeat([5.0, 4.0, 3.0], 3), np.linspace(0, 1, 191)], 0
    for turn in (1, 5):
        for seed in range(4):
            found = hvpspec.spectrum(rotated(values, turn), 7, seed=seed)
            right = found.eigenpairs.values == pytest.approx([5, 5, 5, 4, 4, 4, 3], rel=1e-4)
            assert right or not found.eigenpairs.converged
            few += found.eigenpairs.converged and found.hvps < 150
    assert few >= 4


def test_what_is_not_shown_of_copies_is_said_where_eigenvalues_are_read():
    """Without probes nothing searches for copies: the second eigenvalue 1 is missing here, and the pairs converge."""
    A = np.diag(np.r_[1.0, 1.0, 0.99 ** np.arange(1, 119)])
    found = hvpspec.spectrum(A, 2, only="eigenvalues", seed=1)
    assert found.converged
    assert not found.eigenpairs.all_copies
    for text in (found.summary(), found._repr_html_(), repr(found), repr(found.eigenpairs)):
        assert "further copies" in " ".join(text.split())
    wide = hvpspec.spectrum(A, 2, only="eigenvalues", seed=1, block_size=3)
    assert wide.eigenpairs.all_copies
    assert wide.eigenpairs.values == pytest.approx([1, 1])
    assert not any("further copies" in text for text in (wide.summary(), repr(wide), repr(wide.eigenpairs)))


@pytest.mark.parametrize("block_size", [2, 3])
@pytest.mark.parametrize("copies", [3, 5])
def test_a_block_does_not_show_all_copies_of_a_last_value_that_has_as_many_or_more(block_size, copies):
    """Of those that k leaves out, which the block shows as well, none was counted."""
    for seed in range(40):
        k = 1 + seed % 4
        values = np.r_[np.arange(9.0, 9 - k + 1, -1) + 5, np.full(copies, 5.0), np.linspace(0, 4, 101 - k - copies)]
        found = hvpspec.eigsh(np.diag(values), k, seed=seed, block_size=block_size)
        assert found.values == pytest.approx(values[:k], rel=1e-4)
        assert not found.all_copies
