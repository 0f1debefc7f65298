"""The conditioning, each quantity compared with the eigenvalues."""

import json
import math

import numpy as np
import pytest
import torch
from estimators.spectra import COPIES, NAMES, eigenvalues, matrix, rotated

import hvpspec
from hvpspec.errors import InputError

N = 300


def within(figure, true, slack=1e-9):
    return abs(figure.value - true) <= figure.error + slack * (1 + abs(true))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damping", [0.0, 0.01, 7.0])
def test_every_figure_holds(name, damping):
    values, A = eigenvalues(name, N), matrix(name, N)
    held = {}
    for seed in range(3):
        found = hvpspec.condition(A, damping=damping, rtol=0.05, seed=seed, max_hvps=150)
        shifted = np.abs(values + damping)
        # bounds that leave nothing to chance, but for the outer brackets
        assert found.negative_at_least <= (values < 0).sum()
        assert found.nearest_zero.value >= shifted.min()
        assert found.kappa.lower * shifted.min() <= shifted.max() * (1 + 1e-9)
        assert found.largest.lower <= values.max() + 1e-12
        assert found.smallest.upper >= values.min() - 1e-12
        if found.definite != "unknown":
            assert found.definite == ("positive" if (values + damping).min() > 0 else "indefinite")
        truth = {
            "negative": (values < -found.zero).sum(),
            "negative_mass": -values[values < 0].sum(),
            "rank": (np.abs(values) > found.rank_threshold).sum(),
            "stable_rank": (values**2).sum() / (values**2).max(),
            "participation_ratio": values.sum() ** 2 / (values**2).sum(),
            "bulk_mean": np.sort(values[np.argsort(-np.abs(values), kind="stable")][10:]).mean(),
            "bulk_spread": values[np.argsort(-np.abs(values), kind="stable")][10:].std(),
        }
        if found.definite == "positive":
            truth["log_determinant"] = np.log(values + damping).sum()
            truth["effective_dimension"] = (values / (values + damping)).sum()
            assert found.kappa.upper >= shifted.max() / shifted.min() * (1 - 1e-9)
        else:
            assert found.log_determinant is None
            assert "positive definite" in found.reasons["log_determinant"]
            assert math.isinf(found.kappa.upper) or found.definite == "negative"
        for figure, true in truth.items():
            held.setdefault(figure, []).append(within(getattr(found, figure), true))
    assert all(sum(seen) >= 2 for seen in held.values()), held  # 95 % each: rarely do all of them hold


def test_errors_are_not_only_safe_but_tight():
    values, A = eigenvalues("polynomial", N), matrix("polynomial", N)
    found = hvpspec.condition(A, damping=0.1)
    assert found.definite == "positive"
    assert found.kappa.upper / found.kappa.lower < 1.01
    assert found.stable_rank.error < 0.01 * found.stable_rank.value
    assert found.log_determinant.error < 0.01 * abs(found.log_determinant.value)
    assert found.effective_dimension.error < 0.1 * (values / (values + 0.1)).sum()


@pytest.mark.parametrize(
    "seeds", [range(20), pytest.param(range(20, 60), marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_the_intervals_of_the_sums_are_calibrated(seeds):
    """Damping well inside the spectrum, where the random vector decides."""
    values = np.geomspace(1e-3, 1, 200)
    A = torch.from_numpy(rotated(values))
    held = {"log_determinant": 0, "effective_dimension": 0}
    for seed in seeds:
        found = hvpspec.condition(A, damping=0.05, k=5, rtol=0.1, seed=seed)
        held["log_determinant"] += within(found.log_determinant, np.log(values + 0.05).sum())
        held["effective_dimension"] += within(found.effective_dimension, (values / (values + 0.05)).sum())
        assert found.log_determinant.error < 40  # a tenth of it
    assert min(held.values()) >= {20: 18, 40: 37}[len(seeds)], held


@pytest.mark.parametrize("name", COPIES)
def test_the_sums_hold_where_eigenvalues_coincide(name):
    """A random vector does not show copies: trace and norm must show them, or the error must allow for them."""
    values, A = eigenvalues(name, N), torch.from_numpy(matrix(name, N))
    damping = 0.05 - min(values.min(), 0.0) + (0.5 if values.min() < 0 else 0.0)
    truth = {
        "log_determinant": np.log(values + damping).sum(),
        "effective_dimension": (values / (values + damping)).sum(),
    }
    held, made = dict.fromkeys(truth, 0), 0
    for seed in range(12):
        found = hvpspec.condition(A, damping=damping, k=3, rtol=0.02, seed=seed)
        if found.log_determinant is not None:
            made += 1
            for figure, true in truth.items():
                held[figure] += within(getattr(found, figure), true)
    assert made >= 6
    assert min(held.values()) >= made - 1, held


def test_further_vectors_narrow_the_sums():
    values, A = eigenvalues("exponential, slow", N), matrix("exponential, slow", N)
    plain = hvpspec.condition(A, damping=0.01)
    found = hvpspec.condition(A, damping=0.01, sums_rtol=plain.effective_dimension.error / 2 / 42)
    assert found.hvps > plain.hvps
    assert found.effective_dimension.error < 0.7 * plain.effective_dimension.error
    assert within(found.effective_dimension, (values / (values + 0.01)).sum())
    assert hvpspec.condition(A, damping=0.01, sums_rtol=1e-9, max_hvps=plain.hvps + 5).hvps <= plain.hvps + 5


def test_further_vectors_and_steps_narrow_the_counts():
    values = np.concatenate([np.linspace(-1, 3, 380), np.geomspace(5, 20, 20)])
    A = torch.from_numpy(rotated(values))
    truth = {"negative": (values < 0).sum(), "negative_mass": -values[values < 0].sum(), "rank": 400}
    plain = hvpspec.condition(A, rtol=0.05, rank_threshold=1e-6)
    held = dict.fromkeys(truth, 0)
    for seed in range(3):
        found = hvpspec.condition(A, rtol=0.05, rank_threshold=1e-6, counts_rtol=0.1, seed=seed)
        assert found.negative.error <= 0.1 * 400 < plain.negative.error
        assert found.rank.error <= 0.1 * 400
        assert found.negative_mass.error <= 0.1 * max(found.negative_mass.value, found.norm.upper)
        assert plain.hvps < found.hvps <= plain.hvps + 2 * 400
        for figure, true in truth.items():
            held[figure] += within(getattr(found, figure), true)
    assert min(held.values()) == 3, held
    more = hvpspec.condition(A, rtol=0.05, damping=1.5, sums_rtol=0.03, seed=1)
    assert more.negative.error < hvpspec.condition(A, rtol=0.05, damping=1.5, seed=1).negative.error


def test_ends_that_are_certain_are_kept():
    """Counts are not below what interlacing shows, masses are not negative, and brackets have both ends."""
    A, values = matrix("indefinite with outliers", N), eigenvalues("indefinite with outliers", N)
    found = hvpspec.condition(A, damping=7.0)
    for figure, true in (("negative", (values < 0).sum()), ("rank", N), ("negative_mass", -values[values < 0].sum())):
        low, high = getattr(found, figure).interval
        assert 0 <= low <= true <= high
    assert found.negative.interval[0] == pytest.approx(max(found.negative.interval[0], found.negative_at_least))
    assert found.negative_at_least >= 15
    assert found.rank.interval[0] >= found.rank_at_least >= 30
    near = np.abs(values + 7.0).min()
    assert 0 < found.nearest_range.lower <= near <= found.nearest_range.upper == found.nearest_zero.value
    assert found.nearest_range.upper / found.nearest_range.lower < 1.01
    assert hvpspec.condition(A).nearest_range.lower == 0
    bulk = values[np.argsort(-np.abs(values), kind="stable")][10:]
    low, high = found.flatness.interval
    assert low <= bulk.std() / np.abs(values).max() <= high
    again = hvpspec.Condition.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.negative.interval == found.negative.interval
    older = {name: entry for name, entry in found.to_dict().items() if name not in ("nearest_range", "flatness")}
    older["negative"] = {k: v for k, v in older["negative"].items() if k not in ("lower", "upper")}
    old = hvpspec.Condition.from_dict(older)
    assert old.nearest_range is None
    assert old.negative.interval == (old.negative.value - old.negative.error, old.negative.value + old.negative.error)


def test_it_costs_a_spectrum_nothing():
    A = matrix("indefinite with outliers", N)
    plain, damped = hvpspec.spectrum(A, 6, rtol=0.05), hvpspec.spectrum(A, 6, rtol=0.05, damping=7.0)
    assert damped.hvps == plain.hvps
    assert plain.condition.definite == "indefinite"
    assert damped.condition.definite == "positive"
    assert plain.condition.log_determinant is None
    assert hvpspec.spectrum(A, 6, only=("trace",)).condition is None


def test_what_it_means():
    """Compared with the solvers themselves: gradient descent and CG on a matrix whose condition number is known."""
    values = np.geomspace(0.1, 10, 60)
    A = rotated(values)
    found = hvpspec.condition(A, rtol=1e-9)
    assert found.kappa.lower == pytest.approx(100, rel=1e-6)
    assert found.step.lower == pytest.approx(0.2, rel=1e-6)
    step, error = 2 / (0.1 + 10), np.linalg.eigh(A)[1][:, 0]
    count, start = 0, np.linalg.norm(error)
    while np.linalg.norm(error) > found.accuracy * start:
        error, count = error - step * (A @ error), count + 1
    assert found.gradient_descent.lower == found.gradient_descent.upper == count
    b, x, direction, before = np.ones(60), np.zeros(60), 0.0, 1.0
    solution, r, iterations = np.linalg.solve(A, b), b, 0
    norm = float(solution @ A @ solution)
    while (x - solution) @ A @ (x - solution) > found.accuracy**2 * norm:
        direction = r + (r @ r) / before * direction
        before = r @ r
        length = before / (direction @ A @ direction)
        x, r, iterations = x + length * direction, r - length * (A @ direction), iterations + 1
    assert iterations <= found.conjugate_gradients.value <= 60
    assert found.digits_lost.lower == pytest.approx(2, abs=1e-6)
    assert found.digits == pytest.approx(15.65, abs=0.01)


def test_small_and_degenerate():
    zero = hvpspec.condition(np.zeros((30, 30)))
    assert zero.stable_rank is None
    assert zero.rank.value == 0
    assert zero.step is None
    one = hvpspec.condition(np.array([[2.0]]))
    assert one.kappa.upper == pytest.approx(1)
    assert one.log_determinant.value == pytest.approx(math.log(2))
    negative = hvpspec.condition(-np.diag([1.0, 2, 3]))
    assert negative.definite == "negative"
    assert negative.kappa.upper == pytest.approx(3)
    assert negative.negative.value == 3
    assert "do not converge" in negative.reasons["gradient_descent"]


def test_single_precision():
    values, A = eigenvalues("polynomial", N), torch.from_numpy(matrix("polynomial", N)).float()
    found = hvpspec.condition(A, damping=0.01)
    assert found.kappa.lower <= 1.01 / (values.min() + 0.01) * (1 + 1e-4) <= found.kappa.upper * (1 + 2e-4)
    assert within(found.log_determinant, np.log(values + 0.01).sum())
    assert found.digits == pytest.approx(6.9, abs=0.1)


def test_options_and_dictionaries():
    A = matrix("polynomial", N)
    for options in ({"damping": -1}, {"damping": math.nan}, {"sums_rtol": 0}, {"rank_threshold": -1}, {"rtol": "x"}):
        with pytest.raises(InputError):
            hvpspec.condition(A, **options)
    found = hvpspec.condition(A, damping=0.01, rank_threshold=0.5)
    assert within(found.rank, 1)
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = hvpspec.Condition.from_dict(json.loads(text))
    assert again.to_dict() == found.to_dict()
    plain = hvpspec.condition(A)
    assert math.isinf(hvpspec.Condition.from_dict(json.loads(json.dumps(plain.to_dict()))).kappa.upper) == math.isinf(
        plain.kappa.upper
    )


@pytest.mark.parametrize(
    "values",
    [
        np.r_[10.0 ** -np.arange(15), np.zeros(19)],
        np.r_[10.0 ** -np.arange(12), np.zeros(40)],
        np.r_[10.0 ** -np.arange(8, 12), 1, 0.1, np.zeros(60)],
    ],
)
def test_eigenvalues_far_below_the_largest_are_not_merged_with_a_null_space(values):
    """A node for all values below 1e-8 of the norm once took the place of the null space, as some known eigenvalues."""
    for seed in range(3):
        rank = hvpspec.spectrum(rotated(values, seed), 5, seed=seed).condition.rank
        low, high = rank.interval
        assert low - 1e-6 <= (values > 0).sum() <= high + 1e-6
