"""The data error, against the Hessian of each batch written out."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import hvpspec
from hvpspec.krylov.operator_view import MAX_FOLDS


class Case:
    def __init__(self, batches, size=40, seed=0):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        x = torch.randn(size * batches, 4, generator=generator, dtype=torch.float64)
        y = (x[:, 0] * x[:, 1] > 0).long()
        self.data = list(zip(x.split(size), y.split(size), strict=True))
        self.loss = "cross_entropy"

    def operator(self, data=None):
        return hvpspec.HessianOperator(self.model, self.loss, self.data if data is None else data)


def dense(H):
    return H @ np.eye(H.shape[0])


def standard_error(parts, weights):
    share = np.asarray(weights, float) / np.sum(weights)
    mean = share @ parts
    return np.sqrt(len(parts) / (len(parts) - 1) * np.sum(share**2 * (parts - mean) ** 2))


def expected(matrices, weights, k):
    """From each batch's explicit Hessian, to first order."""
    H = np.average(matrices, axis=0, weights=weights)
    values, vectors = np.linalg.eigh(H)
    top = vectors[:, np.argsort(-np.abs(values))[:k]]
    return (
        [standard_error(np.array([v @ M @ v for M in matrices]), weights) for v in top.T],
        standard_error(np.trace(matrices, axis1=1, axis2=2), weights),
        standard_error(np.einsum("ij,gij->g", H, matrices), weights) / np.linalg.norm(H),
    )


@pytest.mark.parametrize("ragged", [False, True])
def test_it_is_the_spread_over_batches(ragged):
    """With a basis of the whole space nothing is sampled, and all three agree with the definition."""
    case = Case(batches=5)
    if ragged:
        x, y = case.data[-1]
        case.data[-1] = (x[:13], y[:13])
    matrices = np.array([dense(case.operator([batch])) for batch in case.data])
    weights = [len(y) for _, y in case.data]
    found = hvpspec.spectrum(case.operator(), 3, rtol=1e-10)
    assert found.hvps <= found.parameters + 8
    eigenvalues, trace, norm = expected(matrices, weights, 3)
    np.testing.assert_allclose(found.eigenpairs.data_error, eigenvalues, rtol=1e-3)
    assert found.trace.data_error == pytest.approx(trace, rel=1e-4)
    assert found.frobenius_norm.data_error == pytest.approx(norm, rel=1e-4)
    np.testing.assert_allclose(dense(case.operator()), np.average(matrices, axis=0, weights=weights), atol=1e-14)


def test_with_probes_it_is_about_right():
    """With probes, and more batches than folds: neighbouring batches make one fold."""
    case = Case(batches=20, size=16)
    groups = [[b for i, b in enumerate(case.data) if i * MAX_FOLDS // 20 == g] for g in range(MAX_FOLDS)]
    matrices = np.array([dense(case.operator(group)) for group in groups])
    weights = [sum(len(y) for _, y in group) for group in groups]
    eigenvalues, trace, norm = expected(matrices, weights, 2)
    ratios = []
    for seed in range(10):
        found = hvpspec.spectrum(case.operator(), 2, rtol=0.1, seed=seed, max_hvps=30)
        assert found.trace.method != "exact"
        np.testing.assert_allclose(found.eigenpairs.data_error, eigenvalues, rtol=0.05)
        ratios.append((found.trace.data_error / trace, found.frobenius_norm.data_error / norm))
    assert (np.abs(np.median(ratios, 0) - 1) < 0.3).all()


def test_it_predicts_how_estimates_differ_on_other_data():
    """Over newly drawn data sets, the trace varies by its data error."""
    case = Case(batches=4)
    traces, errors = [], []
    for seed in range(24):
        other = Case(batches=4, seed=seed + 1)
        found = hvpspec.trace(hvpspec.HessianOperator(case.model, case.loss, other.data), rtol=1e-6)
        traces.append(found.value)
        errors.append(found.data_error)
    assert np.std(traces) == pytest.approx(np.median(errors), rel=0.4)


def test_it_costs_no_products_and_is_not_claimed_without_batches():
    one = Case(batches=1)
    H = one.operator()
    found = hvpspec.spectrum(H, 2, rtol=0.2)
    assert found.trace.data_error is None
    assert found.eigenpairs.data_error is None
    assert H.hvps == found.hvps
    assert hvpspec.trace(np.eye(50)).data_error is None
    many = Case(batches=4).operator()
    assert hvpspec.eigsh(many, 2).hvps == many.hvps


def test_restarts_keep_it():
    case = Case(batches=4)
    matrices = np.array([dense(case.operator([batch])) for batch in case.data])
    found = hvpspec.eigsh(case.operator(), 2, tol=1e-6, basis_memory=7 * 44 * 8)
    np.testing.assert_allclose(found.data_error, expected(matrices, [40] * 4, 2)[0], rtol=1e-4)


# --- λ_max of the population -----------------------------------------------------------------------------------------


class Samples:
    """The mean of x xᵀ over samples, as an operator on batches."""

    noise = 0.0
    torch_dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, x, sizes):
        self.parts = [part for part in torch.from_numpy(x).split(list(sizes)) if len(part)]
        self.shape = (x.shape[1], x.shape[1])

    def batch_count(self):
        return len(self.parts)

    def expect(self, products):
        pass

    def matmat(self, V):
        return self.multiply_by_folds(V, len(self.parts), lambda *fold: None)

    def multiply_by_folds(self, V, folds, receive):
        assert folds == len(self.parts)
        total = torch.zeros_like(V)
        for fold, x in enumerate(self.parts):
            product = x.T @ (x @ V)
            receive(fold, float(len(x)), product / len(x))
            total += product
        return total / sum(map(len, self.parts))


def bracketed(matrices, weights, confidence=0.95):
    """The same interval from explicit matrices, with the top eigenvectors of all folds but one."""
    share = np.asarray(weights) / np.sum(weights)
    values, vectors = np.linalg.eigh(np.tensordot(share, matrices, 1))
    plain = np.array([vectors[:, -1] @ M @ vectors[:, -1] for M in matrices])
    held_out = []
    for g in range(len(share)):
        others = np.delete(np.arange(len(share)), g)
        top = np.linalg.eigh(np.average(matrices[others], axis=0, weights=share[others]))[1][:, -1]
        held_out.append(top @ matrices[g] @ top)
    half = max(standard_error(plain, weights), standard_error(np.array(held_out), weights))
    half *= stats.t.ppf((1 + confidence) / 2, len(share) - 1)
    return share @ held_out - half, values[-1] * np.exp(half / values[-1])


@pytest.mark.parametrize("n", [40, 300])
def test_the_interval_is_that_of_explicit_matrices(n):
    """Few products suffice, and a sketch of what folds have outside of the basis."""
    rng = np.random.default_rng(0)
    for seed in range(6):
        sizes = [12] * 7 + [5]
        x = rng.standard_normal((89, n)) * np.r_[4.0, 3.0, np.ones(n - 2)]
        found = hvpspec.eigsh(Samples(x, sizes), 1, "LA", seed=seed)
        assert found.hvps < 20
        parts = np.split(x, np.cumsum(sizes)[:-1])
        lower, upper = bracketed(np.array([part.T @ part / len(part) for part in parts]), sizes)
        assert found.population.lower == pytest.approx(lower, abs=0.06 * found.values[0])
        assert found.population.upper == pytest.approx(upper, abs=0.02 * found.values[0])


def lognormal(rng, count):
    return np.exp(0.7 * rng.standard_normal((count, 20))) * rng.choice([-1, 1], (count, 20))


@pytest.mark.parametrize("folds", [4, 8])
@pytest.mark.parametrize("name", ["normal", "lognormal", "words"])
def test_it_holds_at_its_rate(name, folds):
    """Where λ_max of the data, give or take its standard errors, does not."""
    rng = np.random.default_rng(3)
    if name == "normal":
        draw, largest = lambda count: rng.standard_normal((count, 60)), 1.0
    elif name == "lognormal":
        draw, largest = lambda count: lognormal(rng, count), float(np.exp(2 * 0.7**2))
    else:  # one word of 50 a sample, with Zipf's frequencies
        p = 1 / np.arange(1.0, 51)
        p /= p.sum()
        draw, largest = lambda count: np.eye(50)[rng.choice(50, count, p=p)], p[0]
    held = naive = said = 0
    for seed in range(40):
        found = hvpspec.eigsh(Samples(draw(12 * folds), [12] * folds), 1, "LA", seed=seed)
        naive += abs(found.values[0] - largest) <= 2 * found.data_error[0]
        if found.population is not None:
            said += 1
            held += found.population.lower <= largest <= found.population.upper
    assert said >= 36
    assert held >= 0.9 * said
    if name != "words":
        assert naive < 28


def test_shuffling_the_samples_changes_little():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((160, 50)) * np.r_[3.0, np.ones(49)]
    ends = []
    for seed in range(20):
        found = hvpspec.eigsh(Samples(rng.permutation(x), [20] * 8), 1, "LA", seed=seed)
        if found.population is not None:
            ends.append((found.population.lower, found.population.upper))
    assert len(ends) >= 18
    ends = np.array(ends)
    widths = np.diff(ends, axis=1)
    assert widths.max() < 3 * widths.min()
    assert (ends.std(0) < 0.2 * widths.mean()).all()


def test_nothing_is_said_where_nothing_can_be():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((240, 30)) * np.r_[3.0, np.ones(29)]

    def reason(operator, **options):
        found = hvpspec.eigsh(operator, 1, "LA", **options)
        assert found.population is None
        return found.population_reason

    assert reason(np.eye(20)) is None
    assert "1 batch says too little" in reason(Samples(x, [240]))
    assert "3 batches say too little" in reason(Samples(x, [80] * 3))
    drifting = x * np.linspace(0.5, 2.0, 240)[:, None]
    assert "no random sample" in reason(Samples(drifting, [30] * 8))
    assert "not known well enough" in reason(Samples(x, [30] * 8), max_hvps=2)
    assert hvpspec.eigsh(Samples(rng.permutation(drifting), [30] * 8), 1, "LA").population is not None


def test_a_small_last_batch_is_no_order():
    """It is always at an end, where an outlier has only one neighbour to differ from."""
    said = 0
    for seed in range(40):
        x = np.random.default_rng(seed).standard_normal((141, 20))
        said += hvpspec.eigsh(Samples(x, [20] * 7 + [1]), 1, "LA").population is not None
    assert said >= 37


def test_restarts_keep_the_interval():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((160, 60)) * np.r_[2.0, np.ones(59)]
    whole = hvpspec.eigsh(Samples(x, [20] * 8), 1, "LA").population
    again = hvpspec.eigsh(Samples(x, [20] * 8), 1, "LA", basis_memory=8 * 60 * 8).population
    assert (again.lower, again.upper) == pytest.approx((whole.lower, whole.upper), rel=0.05)
