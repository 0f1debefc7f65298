"""Trace and Frobenius norm: right, calibrated, within budget, and honest about it."""

import numpy as np
import pytest
import torch
from estimators.spectra import NAMES, matrix
from scipy import stats
from zoo import explicit_hessian, mlp

import hvpspec
from hvpspec.errors import InputError
from hvpspec.estimators.options import Tolerance
from hvpspec.estimators.probes import BLOCK, ProbeSums
from hvpspec.estimators.vectors import rademacher

CPU = torch.device("cpu")
FIGURES = {
    "trace": (hvpspec.trace, np.trace),
    "frobenius_norm": (hvpspec.frobenius_norm, np.linalg.norm),
}


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("budget", [8, 30])
def test_the_estimate_is_the_plain_mean_over_the_probes(figure, budget):
    """Against a naive transcription of Hutchinson's estimator on the same probes."""
    A = matrix("indefinite with outliers")
    found = FIGURES[figure][0](A, seed=3, max_hvps=budget)
    probes = [rademacher(len(A), [i], seed=3, dtype=torch.float64, device=CPU)[:, 0].numpy() for i in range(budget)]
    if figure == "trace":
        expected = sum(w @ A @ w for w in probes) / budget
    else:
        expected = np.sqrt(sum((A @ w) @ (A @ w) for w in probes) / budget)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.hvps == budget
    assert not found.converged
    assert found.method == "hutchinson"


def coverage(figure, A, seeds, budgets):
    """How often the interval at each budget holds the truth; all seeds' products are made at once."""
    truth = FIGURES[figure][1](A)
    numbers = range(max(budgets))
    hits = dict.fromkeys(budgets, 0)
    for seed in range(seeds):
        W = rademacher(len(A), numbers, seed=seed, dtype=torch.float64, device=CPU)
        Z = torch.from_numpy(A) @ W
        sums = ProbeSums(len(A), 1e-16)
        for start in range(0, max(budgets), BLOCK):
            sums.add(W[:, start : start + BLOCK], Z[:, start : start + BLOCK])
            if sums.count in hits:
                value, error = getattr(sums, figure)(0.95)
                hits[sums.count] += abs(value - truth) <= error
    return {budget: hit / seeds for budget, hit in hits.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("figure", FIGURES)
def test_intervals_hold_the_truth(figure, name):
    """95 % intervals at fixed budgets, 400 seeds; `scripts/calibrate.py` is the long form."""
    for budget, held in coverage(figure, matrix(name, 300), 400, (8, 16, 64)).items():
        assert held >= 0.93, (budget, held)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("figure", FIGURES)
def test_intervals_hold_the_truth_when_they_stop_by_themselves(figure, name):
    """The same with data-dependent stopping, at a tolerance that takes from one block to some ten."""
    estimate, exact = FIGURES[figure]
    A = torch.from_numpy(matrix(name, 300))
    truth = exact(A.numpy())
    seeds, held = 200, 0
    for seed in range(seeds):
        found = estimate(A, rtol=0.2, seed=seed, max_hvps=296)
        assert found.converged or found.hvps == 296
        held += abs(found.value - truth) <= found.error
    assert held / seeds >= 0.93


@pytest.mark.parametrize("figure", FIGURES)
def test_intervals_are_no_wider_than_they_must_be(figure):
    """On a spectrum whose samples are nearly normal the width is that of the textbook interval."""
    A = matrix("step")
    W = rademacher(len(A), range(400), seed=0, dtype=torch.float64, device=CPU).numpy()
    samples = (W * (A @ W)).sum(0) if figure == "trace" else np.linalg.norm(A @ W, axis=0)
    textbook = stats.t.ppf(0.975, 63) * samples.std() / np.sqrt(64)
    found = FIGURES[figure][0](A, seed=1, max_hvps=64)
    assert 0.7 * textbook < found.error < 1.4 * textbook


@pytest.mark.parametrize("figure", FIGURES)
def test_it_stops_at_the_tolerance(figure):
    estimate, exact = FIGURES[figure]
    A = matrix("step")
    truth = exact(A)
    last = 0
    for rtol in (0.3, 0.1, 0.05):
        found = estimate(A, rtol=rtol, seed=2)
        assert found.converged
        assert found.error <= rtol * abs(found.value)
        assert found.hvps >= last
        last = found.hvps
        assert estimate(A, rtol=0, atol=rtol * truth, seed=2).hvps <= 2 * found.hvps
    assert last < 900
    assert estimate(A, rtol=0.05, confidence=0.6826895, seed=2).hvps < last / 2


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("n", [1, 3, 8, 30])
def test_exact_when_that_is_cheaper(figure, n):
    A = matrix("indefinite with outliers", 50)[:n, :n]
    estimate, exact = FIGURES[figure]
    found = estimate(A, rtol=1e-8)
    assert found.method == "exact"
    assert found.converged
    assert abs(found.value - exact(A)) <= found.error < 1e-12
    assert found.hvps == n if n <= BLOCK else found.hvps <= n + BLOCK


def test_a_trace_of_zero_takes_an_absolute_tolerance_or_the_budget():
    A = np.kron(matrix("step", 100), np.diag([1.0, -1.0]))
    found = hvpspec.trace(A, rtol=0.01, max_hvps=100)
    assert not found.converged
    assert abs(found.value) <= found.error
    found = hvpspec.trace(A, rtol=0.01, atol=3)
    assert found.converged
    assert abs(found.value) <= found.error <= 3


@pytest.mark.parametrize("figure", FIGURES)
def test_tiny_budgets_claim_nothing(figure):
    A = matrix("flat")
    one = FIGURES[figure][0](A, max_hvps=1)
    assert one.error == np.inf
    assert not one.converged
    assert one.hvps == 1
    two = FIGURES[figure][0](A, max_hvps=2)
    assert np.isfinite(two.error)
    assert two.hvps == 2


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("scale", [0.0, -2.5])
def test_multiples_of_the_identity(figure, scale):
    found = FIGURES[figure][0](scale * np.eye(200))
    assert found.converged
    assert found.hvps == BLOCK
    assert abs(found.value - FIGURES[figure][1](scale * np.eye(200))) <= found.error < 1e-10


def test_a_nearly_diagonal_matrix_is_not_charged_for_its_diagonal():
    """Sign probes see off-diagonal entries only: diag(1 … 200) plus little has a nearly exact trace."""
    A = np.diag(np.arange(1.0, 201)) + 1e-3 * matrix("flat", 200)
    found = hvpspec.trace(A, max_hvps=16, rtol=0)
    assert abs(found.value - np.trace(A)) <= found.error < 0.05


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_neural_network(dtype):
    case = mlp()
    D = explicit_hessian(case)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, dtype=dtype)
    for figure, (estimate, exact) in FIGURES.items():
        found = estimate(H, max_hvps=24, rtol=0, confidence=0.9999)
        assert abs(found.value - exact(D)) <= found.error, figure
        exactly = estimate(H, rtol=1e-6)
        assert exactly.method == "exact"
        assert abs(exactly.value - exact(D)) <= exactly.error < 1e-4


def test_callbacks_see_every_block_and_may_stop_it():
    seen = []
    hvpspec.trace(matrix("step"), max_hvps=20, callback=seen.append)
    assert [estimate.hvps for estimate in seen] == [8, 16, 20]

    def stop(estimate):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hvpspec.trace(matrix("step"), callback=stop)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": -0.1}, "rtol must be a number ≥ 0"),
        ({"atol": float("inf")}, "atol must be"),
        ({"confidence": 1}, "confidence must lie between 0 and 1"),
        ({"confidence": 95}, "confidence must lie between 0 and 1"),
        ({"max_hvps": -3}, "max_hvps must be"),
        ({"seed": 1.5}, "seed must be"),
    ],
)
@pytest.mark.parametrize("figure", FIGURES)
def test_options_out_of_range(figure, options, message):
    with pytest.raises(InputError, match=message):
        FIGURES[figure][0](np.eye(3), **options)


def test_allowed_width():
    assert Tolerance(0.1, 2.0).allowed(-30) == 3
    assert Tolerance(0.1, 2.0).allowed(5) == 2
