"""Trace and Frobenius norm: values, calibration of the intervals, budgets."""

import numpy as np
import pytest
import torch
from estimators.spectra import NAMES, SEEDS, matrix
from scipy import stats
from scipy.sparse.linalg import LinearOperator
from zoo import explicit_hessian, mlp

import hvpspec
from hvpspec.errors import InputError
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.kernels.random_vectors import gaussian, probes
from hvpspec.krylov.basis import Storage
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.options import PILOT_PROBES
from hvpspec.validation import Tolerance

CPU = torch.device("cpu")
FIGURES = {
    "trace": (hvpspec.trace, np.trace),
    "frobenius_norm": (hvpspec.frobenius_norm, np.linalg.norm),
}
METHODS = ("krylov", "hutchinson")


def normal(n, numbers, seed):
    return probes(n, list(numbers), seed=seed, dtype=torch.float64, device=CPU).numpy()


# --- the methods, against naive transcriptions of their papers on the same probes --------------------------------


def naive_hutchinson(A, count, seed):
    """Means of ωᵀAω and ‖Aω‖², less their part that is proportional to ‖ω‖² with a factor from the other probes."""
    n = len(A)
    W = normal(n, range(count), seed)
    lengths, means = (W**2).sum(0), []
    for samples in ((W * (A @ W)).sum(0), ((A @ W) ** 2).sum(0)):
        factors = [np.delete(samples, j).sum() / np.delete(lengths, j).sum() for j in range(count)]
        means.append(np.mean(samples - factors * (lengths - n)))
    return means[0], np.sqrt(means[1])


@pytest.mark.parametrize("name", ["flat", "polynomial", "indefinite with outliers"])
def test_hutchinson_against_a_naive_transcription(name):
    A, budget = matrix(name, 200), 24
    expected = naive_hutchinson(A, budget, 3)
    for i, (figure, (estimate, _)) in enumerate(FIGURES.items()):
        found = estimate(A, rtol=0, seed=3, max_hvps=budget, method="hutchinson")
        assert found.value == pytest.approx(expected[i], rel=1e-11), figure
        assert found.hvps == budget
        assert found.method == "hutchinson"


def naive_krylov_aware(A, steps, count, seed):
    """tr T + mean ωᵀ(I−P)A(I−P)ω and ‖T‖² + 2‖C‖² + mean ‖(I−P)A(I−P)ω‖², with an explicit Krylov basis."""
    n = len(A)
    v = gaussian(n, 0, seed=seed, dtype=torch.float64, device=CPU).numpy()
    K = np.empty((n, 0))
    for _ in range(steps):
        v = v - K @ (K.T @ v)
        v -= K @ (K.T @ v)
        K = np.hstack([K, v / np.linalg.norm(v)])
        v = A @ K[:, -1:]
    complement = np.eye(n) - K @ K.T
    B = complement @ A @ complement
    W = complement @ normal(n, range(count), seed)
    T, rest = K.T @ A @ K, complement @ A @ K
    return np.trace(T), (T**2).sum() + 2 * (rest**2).sum(), B, W


def test_probes_serve_the_basis_of_the_moment():
    """In whatever order steps and probes are made, the samples agree with the definition."""
    A = matrix("indefinite with outliers", 200)
    one = SharedPass(as_symmetric(A), seed=3, storage=Storage(None))
    for action in (1, 1, -4, 1, 1, 1, -4, 1):
        one.probe(-action) if action < 0 else one.extend(1)
    known, squares, B, W = naive_krylov_aware(A, 6, 8, 3)
    remainder = one.remainder()
    lengths, quadratic = (W**2).sum(0), (W * (B @ W)).sum(0)
    (grams,) = remainder.blocks
    np.testing.assert_allclose(np.diag(grams.ww), lengths, rtol=1e-10)
    np.testing.assert_allclose(grams.wy, W.T @ B @ W, atol=1e-10)
    np.testing.assert_allclose(grams.yy, W.T @ B @ B @ W, atol=1e-10)
    others = (quadratic.sum() - quadratic) / (lengths.sum() - lengths)
    trace = known + np.mean(quadratic - others * (lengths - 194))
    found = one.estimate("trace", Tolerance())
    assert found.value == pytest.approx(trace, rel=1e-10)
    norm = one.estimate("frobenius_norm", Tolerance())
    assert norm.value**2 == pytest.approx(squares + remainder.squared_norms.mean(), rel=1e-10)
    # what the interval rests on: ‖B_c‖² and ‖B_c²‖², without bias
    assert remainder.variation == pytest.approx(np.linalg.norm(B) ** 2, rel=0.5)
    assert remainder.fourth == pytest.approx(np.linalg.norm(B @ B) ** 2, rel=0.9)


def test_estimates_are_unbiased():
    """Over many seeds the mean error vanishes, for a basis and probes in any order."""
    A = matrix("exponential, slow", 200)
    errors = []
    for seed in range(300):
        one = SharedPass(as_symmetric(A), seed=seed, storage=Storage(None))
        one.probe(4)
        one.extend(1)
        one.extend(1)
        one.probe(4)
        one.extend(1)
        found = one.estimate("trace", Tolerance()), one.estimate("frobenius_norm", Tolerance())
        errors.append((found[0].value - np.trace(A), found[1].value ** 2 - np.linalg.norm(A) ** 2))
    errors = np.array(errors)
    assert (np.abs(errors.mean(0)) < 3.5 * errors.std(0) / np.sqrt(len(errors))).all()


# --- intervals ---------------------------------------------------------------------------------------------------


@SEEDS
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("figure", FIGURES)
def test_intervals_hold_the_truth(figure, name, seeds):
    """95 % intervals at fixed budgets and stopping by themselves; `scripts/bench_estimators.py` is the long form."""
    estimate, exact = FIGURES[figure]
    A = torch.from_numpy(matrix(name, 200))
    truth = exact(A.numpy())
    for options in ({"rtol": 0, "max_hvps": 12}, {"rtol": 0, "max_hvps": 30}, {"rtol": 0.1}, {"rtol": 0.03}):
        held = 0
        for seed in seeds:
            found = estimate(A, seed=seed, **options)
            held += abs(found.value - truth) <= found.error
            assert found.converged or "max_hvps" in options
        # of 25, chance makes it vary by 1.1, of 75 by 1.9; and there are 56 of each
        assert held >= {25: 20, 75: 66}[len(seeds)], (options, held)


@pytest.mark.parametrize("figure", FIGURES)
def test_intervals_are_no_wider_than_they_must_be(figure):
    """If the samples are nearly normal, the width is that of the textbook interval."""
    A = matrix("step")
    W = normal(len(A), range(400), 0)
    samples = (W * (A @ W)).sum(0) if figure == "trace" else np.linalg.norm(A @ W, axis=0)
    textbook = stats.t.ppf(0.975, 63) * samples.std() / np.sqrt(64)
    found = FIGURES[figure][0](A, seed=1, max_hvps=64, rtol=0, method="hutchinson")
    assert 0.7 * textbook < found.error < 1.4 * textbook


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("method", METHODS)
def test_it_stops_at_the_tolerance(figure, method):
    estimate, exact = FIGURES[figure]
    A = matrix("step")
    truth, last = exact(A), 0
    for rtol in (0.3, 0.1, 0.05):
        found = estimate(A, rtol=rtol, seed=2, method=method)
        assert found.converged
        assert found.error <= rtol * abs(found.value)
        assert abs(found.value - truth) <= 2 * found.error
        assert found.hvps >= last
        last = found.hvps
        assert estimate(A, rtol=0, atol=rtol * truth, seed=2, method=method).hvps <= 2 * found.hvps
    assert last < 500
    if method == "hutchinson":
        assert estimate(A, rtol=0.05, confidence=0.6826895, seed=2, method=method).hvps <= last / 2


@pytest.mark.parametrize(
    ("name", "most"),
    [("flat", 16), ("polynomial", 30), ("exponential, slow", 60), ("exponential, fast", 30), ("step", 125)],
)
def test_products_to_one_percent(name, most):
    """The balance of basis and probes: a step or probe too many on either side would show."""
    found = [hvpspec.trace(torch.from_numpy(matrix(name)), seed=seed) for seed in range(3)]
    assert all(estimate.converged for estimate in found)
    assert np.mean([estimate.hvps for estimate in found]) <= most


def test_a_flat_spectrum_gets_next_to_no_basis():
    found = hvpspec.trace(matrix("flat"), rtol=0.003)
    plain = hvpspec.trace(matrix("flat"), rtol=0.003, method="hutchinson")
    assert plain.hvps > 50
    assert found.hvps <= plain.hvps + 6  # the steps that show what a step is worth


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("n", [1, 3, 8, 30])
def test_exact_when_that_is_cheaper(figure, n):
    A = matrix("indefinite with outliers", 50)[:n, :n]
    estimate, exact = FIGURES[figure]
    found = estimate(A, rtol=1e-10)
    assert found.converged
    assert abs(found.value - exact(A)) <= found.error < 1e-8
    if n <= PILOT_PROBES:
        assert found.method == "exact"
        assert found.error < 1e-12
    assert found.hvps == n if n <= PILOT_PROBES else found.hvps <= n + PILOT_PROBES


def test_a_trace_near_zero_takes_its_tolerance_from_the_norm():
    A = np.kron(matrix("step", 100), np.diag([1.0, -1.0]))
    norm = np.linalg.norm(A)
    found = hvpspec.trace(A, rtol=0.1)
    assert found.converged
    assert found.relative_to == "frobenius_norm"
    assert abs(found.value) <= found.error <= 0.11 * norm
    assert hvpspec.trace(A, rtol=0.1, atol=10 * norm).relative_to == "value"  # the absolute one is the looser
    tight = hvpspec.trace(A, rtol=0, atol=0.05)
    assert abs(tight.value) <= tight.error <= 0.05
    assert hvpspec.trace(matrix("step"), rtol=0.1).relative_to == "value"


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
    assert found.hvps == PILOT_PROBES
    assert abs(found.value - FIGURES[figure][1](scale * np.eye(200))) <= found.error < 1e-8 * 500


@pytest.mark.parametrize("confidence", [0.95, 0.99])
@pytest.mark.parametrize("figure", FIGURES)
def test_intervals_hold_for_sparse_eigenvectors(figure, confidence):
    """I + 5uuᵀ with two entries in u: random signs are orthogonal to u in half of all probes."""
    missed, runs = 0, 0
    for seed in range(60):
        for sign in (1, -1):
            u = np.zeros(40)
            u[np.random.default_rng(seed).choice(40, 2, replace=False)] = 1, sign
            A = np.eye(40) + 2.5 * np.outer(u, u)
            options = {"rtol": 0.2, "max_hvps": 30, "method": "hutchinson"}
            found = FIGURES[figure][0](A, seed=seed, confidence=confidence, **options)
            missed += abs(found.value - FIGURES[figure][1](A)) > found.error
            runs += 1
    allowed = runs * (1 - confidence)
    assert missed <= allowed + 3 * np.sqrt(allowed), missed


def test_probes_that_agree_prove_nothing_they_have_not_seen():
    """A huge eigenvalue with a sparse eigenvector: eight sign probes may all be orthogonal to it."""
    for seed in range(60, 90):
        u = np.zeros(64)
        u[np.random.default_rng(seed).choice(64, 2, replace=False)] = 1, -1
        A = np.eye(64) + 5e5 * np.outer(u, u)
        found = hvpspec.trace(A, seed=seed)
        assert abs(found.value - np.trace(A)) <= found.error


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_neural_network(dtype):
    case = mlp()
    D = explicit_hessian(case)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, dtype=dtype)
    for figure, (estimate, exact) in FIGURES.items():
        found = estimate(H, max_hvps=24, rtol=0, confidence=0.9999)
        assert abs(found.value - exact(D)) <= found.error, figure
        exactly = estimate(H, rtol=1e-6)
        assert exactly.hvps <= len(D) + PILOT_PROBES + 1  # which checks the others
        assert abs(exactly.value - exact(D)) <= exactly.error < 1e-4


@pytest.mark.parametrize("figure", FIGURES)
def test_probes_beyond_what_memory_holds(figure):
    """Probes that no longer fit are kept as inner products; the estimates are the same as from plain probes."""
    A = matrix("step")
    tight = FIGURES[figure][0](A, rtol=0, max_hvps=200, basis_memory=30 * 8000, seed=1)
    assert tight.hvps == 200
    assert abs(tight.value - FIGURES[figure][1](A)) <= tight.error
    plain = FIGURES[figure][0](A, rtol=0, max_hvps=200, method="hutchinson", seed=1, basis_memory=30 * 8000)
    assert plain.value == pytest.approx(naive_hutchinson(A, 200, 1)[list(FIGURES).index(figure)], rel=1e-10)


def test_callbacks_see_every_step_and_may_stop_it():
    seen = []
    hvpspec.trace(matrix("step"), max_hvps=20, callback=seen.append)
    hvps = [estimate.hvps for estimate in seen]
    assert hvps == sorted(hvps)
    assert hvps[-1] == 20

    def stop(estimate):
        raise KeyboardInterrupt

    for method in METHODS:
        with pytest.raises(KeyboardInterrupt):
            hvpspec.trace(matrix("step"), callback=stop, method=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": -0.1}, "rtol must be a number ≥ 0"),
        ({"atol": float("inf")}, "atol must be"),
        ({"confidence": 1}, "confidence must lie between 0 and 1"),
        ({"confidence": 95}, "confidence must lie between 0 and 1"),
        ({"max_hvps": -3}, "max_hvps must be"),
        ({"seed": 1.5}, "seed must be"),
        ({"method": "exact"}, 'method must be one of "krylov"'),
        ({"basis_memory": "x"}, "basis_memory must be"),
        ({"rtol": 0, "method": "hutchinson"}, "rtol=0 needs an atol"),
    ],
)
@pytest.mark.parametrize("figure", FIGURES)
def test_options_out_of_range(figure, options, message):
    with pytest.raises(InputError, match=message):
        FIGURES[figure][0](np.eye(3), **options)


@pytest.mark.parametrize("room", [8, 13, 40])
def test_hutchinson_in_little_memory(room):
    """No more vectors at once than there is room for: each probe, its product, and a copy of each."""
    n, most = 4000, 0
    A = np.random.default_rng(0).standard_normal((n, 40))
    values = A @ A.T

    def multiply(X):
        nonlocal most
        most = max(most, X.shape[1])
        return values @ X

    operator = LinearOperator((n, n), matvec=multiply, matmat=multiply, dtype=float)
    found = hvpspec.trace(operator, method="hutchinson", basis_memory=room * n * 8, max_hvps=60, rtol=1e-4)
    assert 4 * most <= max(room, 8)
    assert found.hvps == 60
    assert abs(found.value - np.trace(values)) <= 1.5 * found.error
    with pytest.raises(InputError, match="at least 8"):
        hvpspec.trace(operator, method="hutchinson", basis_memory=7 * n * 8)
