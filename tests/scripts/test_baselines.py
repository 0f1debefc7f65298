"""Hutch++ and XTrace, as scripts/ compares hvpspec with them: against naive transcriptions of their papers."""

import numpy as np
import pytest
import torch
from baselines.sketched import sketched
from estimators.spectra import matrix, rotated
from scipy import stats
from scipy.sparse.linalg import LinearOperator

import hvpspec
from hvpspec.errors import InputError
from hvpspec.kernels.random_vectors import gaussian, rademacher

CPU = torch.device("cpu")
QUANTITIES = ("trace", "frobenius_norm")


def signs(n, numbers, seed):
    return rademacher(n, list(numbers), seed=seed, dtype=torch.float64, device=CPU).numpy()


def naive_hutchpp(A, count, seed):
    """Algorithm 1 of arXiv:2010.09649; for the norm, the same on A² with A applied once more."""
    n, third = len(A), count // 3
    rounds = [(range(8 * r, 8 * r + 4), range(8 * r + 4, 8 * r + 8)) for r in range(third // 4)]
    S = np.hstack([signs(n, sketch, seed) for sketch, _ in rounds])
    G = np.hstack([signs(n, probes, seed) for _, probes in rounds])
    Q = np.linalg.qr(A @ S)[0]
    complement = np.eye(n) - Q @ Q.T
    trace = np.trace(Q.T @ A @ Q) + np.trace(G.T @ complement @ A @ complement @ G) / third
    square = np.trace(Q.T @ A @ A @ Q) + np.trace(G.T @ complement @ A @ A @ complement @ G) / third
    return trace, np.sqrt(square)


def naive_xtrace(A, count, seed):
    """The definition in arXiv:2301.07825, section 2.3 and 2.4: a QR factorisation for each left-out vector."""
    n, k = len(A), count // 2
    tests = [gaussian(n, j, seed=seed, dtype=torch.float64, device=CPU).numpy() for j in range(k)]
    omega = np.hstack([np.sqrt(n) * w / np.linalg.norm(w) for w in tests])
    traces, squares = [], []
    for i in range(k):
        Q = np.linalg.qr(A @ np.delete(omega, i, 1))[0]
        w = omega[:, i] - Q @ (Q.T @ omega[:, i])
        w *= np.sqrt(n - k + 1) / np.linalg.norm(w)
        traces.append(np.trace(Q.T @ A @ Q) + w @ A @ w)
        image = A @ omega[:, i]
        rest = image - Q @ (Q.T @ image)
        squares.append(np.linalg.norm(A @ Q) ** 2 + rest @ rest)
    return np.mean(traces), np.sqrt(np.mean(squares)), np.std(traces, ddof=1) / np.sqrt(k)


NAIVE = {"hutch++": naive_hutchpp, "xtrace": naive_xtrace}


@pytest.mark.parametrize("method", NAIVE)
@pytest.mark.parametrize("name", ["flat", "polynomial", "indefinite with outliers"])
def test_against_a_naive_transcription(method, name):
    A, budget = matrix(name, 200), 24
    expected = NAIVE[method](A, budget, 3)
    for i, quantity in enumerate(QUANTITIES):
        found = sketched(A, quantity, method, rtol=0, seed=3, max_hvps=budget)
        assert found.value == pytest.approx(expected[i], rel=1e-11), quantity
        assert found.hvps == budget
        assert found.method == method
    if method == "xtrace":
        found = sketched(A, "trace", method, rtol=0, seed=3, max_hvps=budget)
        assert found.error == pytest.approx(stats.t.ppf(0.975, budget // 2 - 1) * expected[2], rel=1e-6)


@pytest.mark.parametrize("method", NAIVE)
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_budgets(method, quantity):
    A = matrix("flat")
    assert sketched(A, quantity, method, max_hvps=6).hvps <= 6
    assert sketched(A, quantity, method, rtol=0.2).converged
    with pytest.raises(InputError, match="too few"):
        sketched(A, quantity, "xtrace", max_hvps=1)
    with pytest.raises(InputError, match="rtol=0 needs an atol"):
        sketched(A, quantity, method, rtol=0)


@pytest.mark.parametrize("rank", [1, 3, 10, 21])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_matrix_of_low_rank_is_captured_whole(rank, quantity):
    """Once the sketch spans the range nothing is left to estimate, and XTrace inverts no singular triangle."""
    values = np.r_[np.linspace(1, 8, rank), np.zeros(120 - rank)]
    A = rotated(values)
    exact = values.sum() if quantity == "trace" else np.linalg.norm(values)
    for method, budget in (("xtrace", 2 * rank + 8), ("xtrace", 100), ("hutch++", 3 * rank + 12), ("hutch++", 100)):
        found = sketched(A, quantity, method, rtol=0, max_hvps=budget)
        assert found.value == pytest.approx(exact, rel=1e-9)
        assert found.error < 1e-9 * exact


@pytest.mark.parametrize("method", NAIVE)
@pytest.mark.parametrize("budget", [3, 4, 5, 7, 12])
def test_small_budgets_of_an_operator_that_multiplies_one_vector_at_a_time(method, budget):
    A = matrix("flat", 60)
    operator = LinearOperator(A.shape, matvec=lambda x: A @ x.ravel(), dtype=float)
    assert sketched(operator, "trace", method, rtol=0, max_hvps=budget).hvps <= budget
    for estimate in (hvpspec.trace, hvpspec.frobenius_norm):  # the package's own share neither fault
        assert estimate(operator, rtol=0, max_hvps=budget).hvps <= budget
