"""The density: its moments, its bounds against the true distribution, exact parts, counts."""

import json

import numpy as np
import pytest
import torch
from estimators.adversarial import dense, localised
from estimators.spectra import COPIES, NAMES, SEEDS, eigenvalues, matrix, rotated
from zoo import explicit_hessian, mlp

import hvpspec
from hvpspec.bounds.quadrature import read_density
from hvpspec.errors import InputError
from hvpspec.krylov.lanczos import extend, start
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.results.density import Density


def distance(density, values):
    """The Wasserstein-1 distance to the true distribution, by brute force."""
    values = np.sort(values)
    x = np.unique(np.r_[values, density.nodes])
    true = np.searchsorted(values, x, side="right") / len(values)
    return np.abs(density.cdf(x) - true)[:-1] @ np.diff(x)


@pytest.mark.parametrize("name", NAMES)
def test_its_error_bounds_hold(name):
    n = 1000 if name == "step" else 300  # there, 50 copies are not taken for one
    values = eigenvalues(name, n)
    inside, points = 0, 0
    for seed in range(4):
        found = hvpspec.spectral_density(torch.from_numpy(matrix(name, n)), seed=seed)
        assert found.converged
        assert found.error <= 0.02 * (found.support[1] - found.support[0])
        assert distance(found, values) <= found.error
        x = np.linspace(values.min() - 0.1, values.max() + 0.1, 101)
        lower, upper = found.cdf_bounds(x)
        true = (values <= x[:, None] + 1e-12).mean(1)
        inside += ((lower <= true) & (true <= upper)).sum()
        points += len(x)
    assert inside / points >= 0.93


def test_quadrature_is_gaussian():
    """m steps from v reproduce vᵀA^j v for j < 2m, when no weight is replaced by an exact count."""
    A = matrix("flat", 400)
    krylov = start(as_symmetric(A), seed=2)
    for _ in range(5):
        extend(krylov, as_symmetric(A).__matmul__)
    found = read_density([krylov], 0.95, 5)
    v = krylov.basis.matrix[:, 0].numpy()
    assert not found.exact.any()
    for j in range(10):
        moment = v @ np.linalg.matrix_power(A, j) @ v
        assert found.weights @ found.nodes**j == pytest.approx(moment, rel=1e-10)


def test_eigenvalues_shown_to_be_single_count_as_one_each():
    A = matrix("indefinite with outliers")
    found = hvpspec.spectrum(A, 30).density
    outliers = np.sort(np.r_[np.geomspace(1, 10, 15), -np.geomspace(0.5, 6, 15)])
    np.testing.assert_allclose(found.nodes[found.exact], outliers, rtol=1e-3)
    np.testing.assert_allclose(found.weights[found.exact], 1e-3)
    assert found.count(0.2, 20).value == pytest.approx(15)
    assert found.count(0.2, 20).error < 0.5
    bulk = found.count(-0.2, 0.2)
    assert bulk.value == pytest.approx(970)
    half = found.count(0, 20)
    true = (eigenvalues("indefinite with outliers") > 0).sum()
    assert abs(half.value - true) <= half.error < 300


def test_without_probes_nothing_is_called_single():
    found = hvpspec.spectral_density(matrix("indefinite with outliers"), rtol=0.002)
    assert not found.exact.any()
    above = found.count(0.2, 20)
    assert abs(above.value - 15) <= above.error < 20


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_counted_within_the_error(name):
    n = 300
    values, A, held, wide = eigenvalues(name, n), torch.from_numpy(matrix(name, n)), 0, 0.0
    for seed in range(12):
        found = hvpspec.spectrum(A, 2, rtol=0.05, seed=seed).density
        count = found.count(0.7 * values.max(), 2 * values.max())
        held += abs(count.value - (values > 0.7 * values.max()).sum()) <= count.error + 1e-6
        wide = max(wide, count.error)
    assert held >= 11
    assert wide < 0.7 * n


def test_a_later_segment_shows_that_no_copies_are_left():
    operator = as_symmetric(rotated(np.r_[np.full(3, -0.5), np.full(97, 0.1)]))
    krylov = start(operator, seed=0)
    while sum(width for _, width in krylov.projection.segments) < 6:
        extend(krylov, operator.__matmul__)
    few = read_density([krylov], 0.95, krylov.m).count(-1, 0)
    assert few.value == pytest.approx(3)
    assert few.error < 1e-6


@SEEDS
def test_counts_hold_at_their_rate(seeds):
    A, values = torch.from_numpy(matrix("flat", 300)), eigenvalues("flat", 300)
    held = 0
    for seed in seeds:
        count = hvpspec.spectral_density(A, seed=seed, max_hvps=20).count(1.5, 2.2)
        held += abs(count.value - ((values > 1.5) & (values <= 2.2)).sum()) <= count.error
        assert count.error < 150
    assert held >= {25: 22, 75: 68}[len(seeds)]


def test_half_of_the_eigenvalues_are_not_taken_for_the_few_copies_that_are_known():
    """Two values: five later segments show five copies of each, and sixty are there."""
    values, held = np.repeat([1.0, 3.0], 60), 0
    for seed in range(30):
        found = hvpspec.spectrum(rotated(values, seed), 6, seed=seed, rtol=0.02, max_hvps=40).density
        count = found.count(-np.inf, 2)
        assert found.samples == 6
        assert abs(count.value - 60) < 15  # five standard deviations
        assert count.error < 8
        held += abs(count.value - 60) <= count.error
    assert held >= 25


@pytest.mark.parametrize("values", [np.zeros(40), np.full(40, 2.0), np.r_[3, 3, 1, np.zeros(37)], [4.0], [1.0, -1.0]])
def test_closed_spaces_are_exact(values):
    found = hvpspec.spectral_density(rotated(values), rtol=0.0)
    assert found.converged
    for x in (-2, 0.5, 1.5, 2.5, 5):
        assert found.cdf(x) == pytest.approx(np.mean(np.asarray(values) <= x + 1e-9), abs=1e-9)


def test_the_whole_space_is_exact():
    case = mlp()
    values = np.linalg.eigvalsh(explicit_hessian(case))
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    for seed in range(10):
        found = hvpspec.spectral_density(H, rtol=1e-9, seed=seed)
        assert found.converged
        assert found.hvps <= len(values) + 1  # which checks the others
        assert distance(found, values) < 1e-10


def test_more_vectors_when_steps_are_not_enough():
    found = hvpspec.spectral_density(matrix("flat", 600), rtol=0.025)
    assert found.converged
    assert found.samples > 1
    assert found.hvps < 300
    few = hvpspec.spectral_density(matrix("flat", 600), rtol=0.001, max_hvps=10)
    assert not few.converged
    assert few.hvps == 10
    assert few.error > found.error


def test_grid_and_dictionary():
    found = hvpspec.spectral_density(matrix("flat"), rtol=0.1)
    x, density = found.grid()
    assert np.trapezoid(density, x) == pytest.approx(1, rel=1e-3)
    inside = (x > 1.3) & (x < 2.7)
    wide = found.grid(smoothing=0.2, points=300)[1]
    assert len(wide) == 300
    assert density[inside].mean() == pytest.approx(0.5, rel=0.15)
    with pytest.raises(ValueError, match="smoothing must be > 0"):
        found.grid(smoothing=0)
    again = Density.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again.to_dict() == found.to_dict()
    assert again.cdf(2.0) == found.cdf(2.0)


@pytest.mark.parametrize(("a", "b"), [(float("nan"), 1), (0, float("nan")), (2, 1)])
def test_counts_need_an_interval(a, b):
    found = hvpspec.spectral_density(np.diag([1.0, 2.0, 3.0]))
    with pytest.raises(InputError, match="a ≤ b"):
        found.count(a, b)
    assert found.count(-np.inf, np.inf).value == 3
    assert found.count(1.5, 1.5).value == 0
    assert np.isnan(found.cdf(np.nan))
    assert all(np.isnan(end[1]) and end[0] == pytest.approx(1 / 3) for end in found.cdf_bounds([1.5, np.nan]))


def semicircle(n):
    """Quantiles of the semicircle on [−1, 1], by interpolation of its distribution function."""
    x = np.linspace(-1, 1, 100_001)
    return np.interp((np.arange(n) + 0.5) / n, 0.5 + (x * np.sqrt(1 - x**2) + np.arcsin(x)) / np.pi, x)


def test_a_semicircle_is_seen_early_and_within_a_few_times_the_distance():
    values, held, ratios = semicircle(1500), 0, []
    for seed in range(8):
        found = hvpspec.spectral_density(np.diag(values), rtol=0.03, seed=seed)
        assert found.hvps < 120
        held += distance(found, values) <= found.error
        ratios.append(found.error / distance(found, values))
    assert held == 8
    assert np.median(ratios) < 4


def test_where_it_takes_more_vectors_it_takes_fewer_products_than_a_basis_of_the_whole_space():
    """One vector is off by more than the tolerance here, however many steps are made from it."""
    values = semicircle(400)
    for seed in range(2):
        found = hvpspec.spectral_density(np.diag(values), seed=seed)
        assert found.converged
        assert found.hvps < 260  # 294 to 399 once
        assert found.samples > 3
        assert distance(found, values) <= found.error <= 3 * distance(found, values)


@pytest.mark.parametrize("top", [[30.0], [30.0, 30.0], [5.0, 6.0, 8.0, 9.0, 20.0], [1.0] * 200])
def test_the_error_holds_where_few_eigenvalues_or_two_clusters_make_it_up(top):
    values, held = np.r_[np.linspace(0, 0.1, 400 - len(top)), top], 0
    A = np.diag(values)
    for seed in range(30):
        found = hvpspec.spectral_density(A, rtol=0.05, seed=seed)
        held += distance(found, values) <= found.error
    assert held >= 27


FEW_VALUES = {
    "half and half": [60, 60],
    "twenty and the rest": [20, 100],
    "one and the rest": [1, 119],
    "thirds": [40, 40, 40],
    "one, half, and the rest": [1, 59, 60],
}


@SEEDS
@pytest.mark.parametrize("vectors", [dense, localised])
@pytest.mark.parametrize("name", FEW_VALUES)
def test_counts_of_a_few_values_hold_where_their_copies_are_found_one_after_the_other(name, vectors, seeds):
    """Each space closes after a few steps, with one more copy; six of sixty were counted for all of them."""
    copies = FEW_VALUES[name]
    values = np.repeat([1.0, 3.0, -2.0][: len(copies)], copies)
    distinct, held = np.unique(values), 0
    cuts = (distinct[1:] + distinct[:-1]) / 2
    true, off = (values[:, None] <= cuts).mean(0), []
    for seed in seeds:
        found = hvpspec.spectrum(vectors(values, seed), 6, seed=seed, rtol=0.02, max_hvps=25).density
        lower, upper = found.cdf_bounds(cuts)
        held += ((lower <= true + 1e-9) & (true <= upper + 1e-9)).all()
        assert ((lower <= found.cdf(cuts)) & (found.cdf(cuts) <= upper)).all()
        off.append(np.abs(found.cdf(cuts) - true))
        count = found.count(-np.inf, cuts[0])
        assert count.interval == pytest.approx((len(values) * lower[0], len(values) * upper[0]))
    assert np.mean(off) < 0.03
    assert held >= {25: 20, 75: 64}[len(seeds)]  # 95 %, of one interval or two


def test_several_vectors_decide_together_how_many_copies_there_are():
    """Each alone took one copy for all of eight, where its weight happened to be small."""
    values, off = np.repeat([1.0, 3.0], [8, 292]), []
    for seed in range(12):
        found = hvpspec.spectral_density(np.diag(values), rtol=1e-3, seed=seed, max_hvps=24)
        lower, upper = found.cdf_bounds(2.0)
        assert lower <= found.cdf(2.0) <= upper
        off.append(300 * found.cdf(2.0) - 8)
    assert abs(np.mean(off)) < 2


def test_a_bound_that_is_certain_is_not_contradicted_by_a_small_weight():
    """Of the one eigenvalue 1, a random vector may have so little that "less than one" was the upper end."""
    values, held = np.repeat([1.0, 3.0], [1, 119]), 0
    for seed in range(40):
        found = hvpspec.spectral_density(localised(values, seed), seed=seed, max_hvps=5)
        lower, upper = found.cdf_bounds([0.0, 2.0, 3.5])
        assert (lower <= upper).all()
        assert upper[1] >= 1 / 120 - 1e-9
        low, high = found.count(0, 2).interval
        held += low - 1e-6 <= 1 <= high + 1e-6
    assert held >= 35
