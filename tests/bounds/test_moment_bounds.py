"""Bounds on the distribution that one start has sampled, against that distribution itself; counts next to zero."""

import numpy as np
import pytest
from estimators.spectra import rotated

import hvpspec
from hvpspec.bounds.quadrature import read_density
from hvpspec.krylov.lanczos import extend, start
from hvpspec.krylov.operator_view import as_symmetric

NULL_SPACE = np.r_[np.geomspace(50, 0.5, 45), -np.geomspace(1, 0.1, 15), np.zeros(240)]


def step(places, sums, x):
    return np.concatenate([[0.0], sums])[np.searchsorted(places, x, side="right")]


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(-1, 2, 60),
        np.geomspace(1e-6, 1, 60),
        np.r_[np.linspace(5, 9, 4), np.linspace(-0.1, 0.1, 56)],
        np.r_[np.geomspace(1, 9, 6), 1e-5 * np.sin(np.arange(54.0))],
        np.r_[3.0, np.zeros(29), np.full(30, 1e-4)],
    ],
)
@pytest.mark.parametrize("steps", [1, 2, 5, 9, 14])
def test_the_bounds_hold_for_the_weights_of_the_start(values, steps):
    """Nothing here is random but the start itself: the bounds on its own distribution hold for certain."""
    operator = as_symmetric(np.diag(values))
    for seed in range(6):
        krylov = start(operator, seed=seed)
        first = krylov.frontier[:, 0].numpy().copy()
        for _ in range(min(steps, len(np.unique(values)) - 1)):
            extend(krylov, operator.__matmul__)
        found = read_density([krylov], 0.95, steps)
        order = np.argsort(values)
        near = (np.r_[values, found.nodes][:, None] + [-1e-7, -1e-12, 1e-12, 1e-7]).ravel()  # up to rounding
        x = np.unique(np.r_[near, np.linspace(-2, 10, 200)])
        x = x[(x >= found.support[0]) & (x <= found.support[1])]
        true = step(values[order], np.cumsum(first[order] ** 2), x)
        assert not found.exact.any()
        assert (step(found.nodes, np.cumsum(np.diff(found.cdf_lower, prepend=0.0)), x) <= true + 1e-9).all()
        assert (step(found.nodes, np.cumsum(np.diff(found.cdf_upper, prepend=0.0)), x) >= true - 1e-9).all()


def test_they_narrow_with_the_distance_from_a_node_that_is_known_accurately():
    """The weight of an isolated node θ of residual r is known to (r/d)² of it, at the distance d."""
    operator = as_symmetric(rotated(np.r_[10.0, np.linspace(0, 1, 99)]))
    krylov = start(operator, seed=0)
    for _ in range(8):
        extend(krylov, operator.__matmul__)
    found, ritz = read_density([krylov], 0.95, 8), krylov.ritz()
    weight, residual = ritz.coefficients[0, -1] ** 2, ritz.residuals[-1]

    def width(x):
        at = np.searchsorted(found.nodes, x, side="right") - 1
        return found.cdf_upper[at] - found.cdf_lower[at]

    assert residual < 1e-4
    assert width(ritz.values[-1]) == pytest.approx(weight)
    for distance in (100 * residual, 3000 * residual):
        assert width(ritz.values[-1] - distance) < 200 * weight * (residual / distance) ** 2 + 1e-5


@pytest.mark.parametrize(
    "values",
    [
        NULL_SPACE,
        np.r_[np.geomspace(50, 0.5, 45), np.zeros(240)],
        np.r_[-np.geomspace(9, 0.5, 30), np.zeros(120)],
        np.r_[np.linspace(0.1, 3, 140)[:70], np.zeros(70)],
        np.r_[np.geomspace(1, 9, 20), np.full(60, 1e-8), np.full(60, -1e-8)],
        np.r_[np.geomspace(1, 9, 20), np.full(100, 1e-9)],
    ],
    ids=["indefinite", "positive", "negative", "nearly closed", "both sides of zero", "just above zero"],
)
@pytest.mark.parametrize("budget", [None, 40])
def test_rank_and_signs_next_to_a_null_space(values, budget):
    held = {"rank": 0, "negative": 0}
    for seed in range(6):
        found = hvpspec.spectrum(rotated(values, seed), seed=seed, max_hvps=budget, rtol=0.02).condition
        truth = {"rank": (np.abs(values) > found.rank_threshold).sum(), "negative": (values < -found.zero).sum()}
        for name, true in truth.items():
            low, high = getattr(found, name).interval
            held[name] += low - 1e-6 <= true <= high + 1e-6
    assert min(held.values()) >= 5, held


@pytest.mark.parametrize("values", [NULL_SPACE, NULL_SPACE[NULL_SPACE >= 0]], ids=["indefinite", "positive"])
def test_a_few_more_steps_settle_what_is_zero(values):
    for seed in range(3):
        found = hvpspec.spectrum(rotated(values, seed), seed=seed, rtol=1e-3).condition
        rank, negative = (np.abs(values) > 1e-6).sum(), (values < 0).sum()
        assert rank - 1e-6 <= found.rank.interval[0]
        assert found.rank.interval[1] < rank + 1
        assert found.rank.value == pytest.approx(rank, abs=0.01)
        assert found.negative.interval[1] < negative + 1


@pytest.mark.parametrize("n", [1, 2, 30])
def test_the_zero_matrix_has_no_negative_eigenvalue(n):
    found = hvpspec.spectrum(np.zeros((n, n))).condition
    assert found.negative.interval == (0, 0)
    assert found.negative_mass.value == 0
    assert found.rank.value == 0


@pytest.mark.parametrize("values", [NULL_SPACE[:45], np.geomspace(50, 0.5, 60), -np.linspace(0.3, 2, 60)])
def test_a_null_space_found_to_within_rounding_leaves_no_sign_open(values):
    """The first point at which the bounds were evaluated was at four residuals: beyond what rounding is taken to be."""
    values = np.r_[values, np.zeros(240)]
    for seed in range(3):
        found = hvpspec.spectrum(rotated(values), seed=seed).condition
        for count, true in ((found.negative, (values < 0).sum()), (found.rank, (values != 0).sum())):
            low, high = count.interval
            assert low - 1e-6 <= true <= high + 1e-6
            assert high - low < 40


def test_eigenvalues_about_as_small_as_rounding_are_open():
    values = np.r_[np.geomspace(50, 0.5, 60), np.full(120, 1e-12), np.full(120, -1e-12)]
    low, high = hvpspec.spectrum(rotated(values)).condition.negative.interval
    assert low <= 120 <= high


def test_counts_in_a_nearly_closed_space():
    """An eigenvalue that was not found for its small weight was counted for the null space: 38 of these 48 held."""
    values = np.r_[np.linspace(0.1, 3, 140)[:70], np.zeros(70)]
    held = 0
    for seed in range(8):
        for turn in range(2):
            density = hvpspec.spectrum(rotated(values, turn), seed=seed).density
            for x in (0.05, 0.5, 1.2):
                low, high = density.count(-np.inf, x).interval
                held += low - 1e-6 <= (values <= x).sum() <= high + 1e-6
    assert held >= 46
