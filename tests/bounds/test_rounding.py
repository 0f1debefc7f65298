"""Errors hold where float32 leaves few digits, and where one product among good ones is wrong."""

import warnings

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator
from torch import nn

import hvpspec
from hvpspec.errors import InputError
from hvpspec.oracle import Chooser
from hvpspec.oracle.checks.rounding import recomputed


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(6)])

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.last(x)


def cancelled_by_batch_norm():
    """A feature of 2000 ± 1: six digits of seven are lost."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias.fill_(2000.0)
    model[1].running_mean.fill_(2000.0)
    return model


def data():
    return [(torch.randn(64, 6), torch.randint(0, 3, (64,)))]


def almost_fitted(scale):
    """A linear classifier whose loss leaves few digits: 1 − p is a difference of almost equal numbers."""
    X = torch.randn(64, 6)
    X[:, 0] = X[:, 0].sign() * (1 + X[:, 0].abs())
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.mul_(0.1)
        model[0].weight[:, 0] = 1.0
        model[2].weight.copy_(torch.stack([-torch.ones(8), torch.ones(8)]) * scale)
    return model, [(X, (X[:, 0] > 0).long())]


def in_float64(model, batches):
    H = hvpspec.HessianOperator(model, "cross_entropy", batches, dtype="float64")
    return H @ np.eye(H.shape[0])


def assert_held(found, dense):
    values = np.linalg.eigvalsh(dense)
    pairs = found.eigenpairs
    nearest = np.abs(pairs.values[:, None] - values).min(1)
    assert (nearest <= pairs.error).all()
    assert pairs.largest.lower <= values[-1]
    assert pairs.smallest.upper >= values[0]
    for estimate, truth in ((found.trace, np.trace(dense)), (found.frobenius_norm, np.linalg.norm(dense))):
        assert abs(estimate.value - truth) <= 1.5 * estimate.error  # their confidence is 95 %


class TestFloat32:
    @pytest.mark.parametrize("make", [cancelled_by_batch_norm, Residual])
    def test_what_rounding_adds_is_measured(self, make):
        torch.manual_seed(0)
        model, batches = make(), data()
        H = hvpspec.HessianOperator(model, "cross_entropy", batches)
        found = hvpspec.spectrum(H, 6)
        assert_held(found, in_float64(model, batches))
        assert (found.rounding.method, found.rounding.products) == ("float64", 2)
        assert found.rounding == found.eigenpairs.rounding
        assert hvpspec.Spectrum.from_dict(found.to_dict()).rounding == found.rounding
        assert "2 products computed again in float64" in " ".join(found.summary().split())

    @pytest.mark.parametrize("make", [Residual, cancelled_by_batch_norm])
    def test_a_fault_that_rounding_does_not_explain(self, make, monkeypatch):
        """All products but the first are too large, by less than a tolerance; fresh ones are not."""
        torch.manual_seed(0)
        multiply, made = Chooser.__call__, 0

        def faulty(chooser, columns, on_batch=None):
            nonlocal made
            made += 1
            return multiply(chooser, columns, on_batch) * (1 + (made > 1) * size)

        model, batches, size = make().eval(), data(), 0.0
        monkeypatch.setattr(Chooser, "__call__", faulty)
        H = hvpspec.HessianOperator(model, "cross_entropy", batches, engine="autograd")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hvpspec.spectrum(H, 3, rtol=0.05)
        made, size = 0, 1e-3
        with pytest.warns(
            RuntimeWarning, match=r"are off by .* of the norm, and fresh ones by .* far more than rounding"
        ):
            found = hvpspec.spectrum(H, 3, rtol=0.05)
        assert_held(found, in_float64(model, batches))

    def test_faults_of_other_operators_in_float32(self):
        A, made = np.diag(np.linspace(-1, 3, 40)).astype(np.float32), 0

        def multiply(X):
            nonlocal made
            made += 1
            return A @ X * np.float32(1 + (made > 1) * size)

        size = 0.0
        operator = LinearOperator(A.shape, matvec=multiply, matmat=multiply, dtype=np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hvpspec.spectrum(operator, 3, rtol=0.05)
        made, size = 0, 1e-3
        with pytest.warns(RuntimeWarning, match=r"contradict one another by .* more than rounding in float32"):
            hvpspec.spectrum(operator, 3, rtol=0.05)

    def test_an_interrupted_run_says_that_rounding_is_not_known(self):
        H = hvpspec.HessianOperator(Residual(), "cross_entropy", data())
        steps = []
        found = hvpspec.spectrum(H, 3, callback=steps.append)
        known = steps[len(steps) // 2].spectrum
        assert known.rounding is None
        assert "rounding: that of products in float32 is not known" in known.summary()
        assert hvpspec.Spectrum.from_dict(known.to_dict()).rounding_reason == known.rounding_reason
        assert found.rounding_reason is None
        assert "is not known" not in found.summary()

    def test_cancelled_digits_are_in_every_error(self):
        torch.manual_seed(0)
        model, batches = cancelled_by_batch_norm(), data()
        H = hvpspec.HessianOperator(model, "cross_entropy", batches)
        found = hvpspec.spectrum(H, 6)
        assert found.rounding.relative > 1e-5  # 50 roundoffs are 3e-6
        assert "--dtype float64 is more accurate" in " ".join(found.summary().split())
        scale = found.eigenpairs.values[0]
        for error in (*hvpspec.eigsh(H, 3).error, *found.eigenpairs.error, found.condition.zero):
            assert error > 1e-5 * scale

    def test_the_trace_alone_and_the_norm(self):
        torch.manual_seed(0)
        model, batches = cancelled_by_batch_norm(), data()
        H, dense = hvpspec.HessianOperator(model, "cross_entropy", batches), in_float64(model, batches)
        for call, truth in ((hvpspec.trace, np.trace(dense)), (hvpspec.frobenius_norm, np.linalg.norm(dense))):
            found = call(H, rtol=0, atol=1e-9, max_hvps=200)  # the whole space
            assert found.method == "exact"
            assert 1e-7 * abs(truth) < abs(found.value - truth) <= found.error

    def test_too_few_digits_are_named_and_not_taken_for_noise(self):
        torch.manual_seed(0)
        model, batches = almost_fitted(1.2)
        H = hvpspec.HessianOperator(model, "cross_entropy", batches, dtype="float32")
        with pytest.raises(InputError, match=r"too few digits.*--dtype float64"):
            hvpspec.spectrum(H, 3)

    @pytest.mark.parametrize("scale", [0.5, 0.7, 0.95])
    def test_losses_of_1e_3_to_1e_6(self, scale):
        torch.manual_seed(0)
        model, batches = almost_fitted(scale)
        H = hvpspec.HessianOperator(model, "cross_entropy", batches, dtype="float32")
        found = hvpspec.spectrum(H, 3)
        assert_held(found, in_float64(model, batches))
        assert found.rounding.relative > 5e-6

    @pytest.mark.parametrize("make", [cancelled_by_batch_norm, Residual])
    def test_where_float64_does_not_fit(self, make, monkeypatch):
        """Rounding otherwise shows the same error within a factor of ten."""
        torch.manual_seed(0)
        H = hvpspec.HessianOperator(make(), "cross_entropy", data())
        v = torch.randn(H.shape[0], 1)
        found = (H @ v).double()
        exact, how = recomputed(H.objective, v)
        monkeypatch.setattr("hvpspec.oracle.checks.rounding.free_memory", lambda device: 0)
        otherwise, other = recomputed(H.objective, v)
        assert (how, other) == ("float64", "other rounding")
        assert 0.1 < float((found - otherwise).norm() / (found - exact).norm()) < 30
        assert hvpspec.eigsh(H, 2).rounding.method == "other rounding"

    def test_nothing_is_measured_for_other_operators(self):
        assert hvpspec.spectrum(np.eye(4, dtype=np.float32)).rounding is None

    def test_the_rank_of_a_large_matrix_in_float32(self):
        """n · 2ε · ‖A‖₂ is 0.024 here, and more than ‖A‖₂ from 8 million on."""
        n = 200_000
        scale = np.zeros(n, dtype=np.float32)
        scale[:2] = 1.0, 0.01
        A = LinearOperator((n, n), matvec=lambda x: scale * x.ravel(), dtype=np.float32)
        found = hvpspec.condition(A, k=1, max_hvps=9)
        assert found.rank_threshold < 1e-3
        assert found.rank_at_least == 2


N = 60


def faults(y, x, last, kind):
    if isinstance(kind, float):
        return (1 + kind) * y
    wrong_entry = y.copy()
    wrong_entry[7] *= -1
    return {
        "sign": -y,
        "stale": last,
        "nan": y * np.nan,
        "transposed block": y.reshape(10, 6).T.ravel(),
        "one entry": wrong_entry,
        "along the vector": y + 0.01 * x,
    }[kind]


def with_one_wrong(matrix, at, kind):
    count, last = 0, np.zeros(N)

    def multiply(x):
        nonlocal count, last
        x = x.ravel()
        y = matrix @ x
        y, last = faults(y, x, last, kind) if count == at else y, y
        count += 1
        return y

    return LinearOperator((N, N), matvec=multiply, dtype=np.float64)


def symmetric(values):
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
    return (Q * values) @ Q.T


class TestOneWrongProduct:
    KINDS = ("sign", "stale", "nan", "transposed block", "one entry", "along the vector", *10.0 ** -np.arange(1, 9))

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_is_refused_or_within_the_errors(self, kind):
        values = np.r_[100.0, 50, 20, 10, np.random.default_rng(1).standard_normal(N - 4)]
        matrix = symmetric(values)
        steps = hvpspec.eigsh(LinearOperator((N, N), matvec=lambda x: matrix @ x, dtype=float), 4).hvps
        for at in range(steps):
            try:
                pairs = hvpspec.eigsh(with_one_wrong(matrix, at, kind), 4)
            except InputError:
                continue
            nearest = np.abs(pairs.values[:, None] - np.linalg.eigvalsh(matrix)).min(1)
            assert (nearest <= pairs.error).all(), at

    @pytest.mark.parametrize("at", [0, 5, 12, 20, 59])
    def test_trace_and_norm_of_the_whole_space(self, at):
        matrix = symmetric(np.linspace(-1, 2, N))
        for call, truth in ((hvpspec.trace, np.trace(matrix)), (hvpspec.frobenius_norm, np.linalg.norm(matrix))):
            found = call(with_one_wrong(matrix, at, 1e-3), rtol=0, atol=1e-12)
            assert found.method == "exact"
            assert abs(found.value - truth) <= found.error

    def test_it_costs_one_product_and_none_for_a_matrix(self):
        matrix = symmetric(np.arange(1.0, N + 1))
        plain = hvpspec.eigsh(matrix, 2)
        checked = hvpspec.eigsh(LinearOperator((N, N), matvec=lambda x: matrix @ x, dtype=float), 2)
        assert checked.hvps == plain.hvps + 1
        np.testing.assert_allclose(checked.error, plain.error, rtol=1e-6)  # and widens nothing
        assert hvpspec.eigsh(with_one_wrong(matrix, -1, "nan"), 2, max_hvps=12).hvps <= 12
