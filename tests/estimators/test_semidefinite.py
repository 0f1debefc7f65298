"""Matrices that are known to have no negative eigenvalue: what follows from that, against dense ones."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator
from scipy.stats import ortho_group
from torch import nn

import hvpspec
from hvpspec import EmpiricalFisherOperator, GGNOperator, HessianOperator, PreconditionedOperator, SplitLoss

N = 120


def with_null_space(seed, rank=60):
    """A positive semidefinite matrix with a null space, a bulk and outliers."""
    Q = ortho_group.rvs(N, random_state=seed)
    generator = np.random.default_rng(seed)
    values = np.concatenate([10 / np.arange(1, 6), generator.gamma(1.0, 0.05, rank - 5), np.zeros(N - rank)])
    return (Q * values) @ Q.T


def known_to_be(A, *, semidefinite=True):
    operator = aslinearoperator(A)
    operator.semidefinite = semidefinite
    return operator


def holds(bracket, value, slack=1e-9):
    return bracket.lower - slack <= value <= bracket.upper + slack


@pytest.mark.parametrize("seed", range(6))
def test_its_certificates_against_the_dense_matrix(seed):
    A = with_null_space(seed)
    values = np.linalg.eigvalsh(A)
    asked = {"k": 3, "rtol": 0.1, "max_hvps": 40, "seed": seed, "damping": 0.05}
    found = hvpspec.spectrum(known_to_be(A), **asked)
    plain = hvpspec.spectrum(known_to_be(A, semidefinite=False), **asked)
    condition = found.condition
    assert found.semidefinite is True
    assert plain.semidefinite is None
    assert found.hvps == plain.hvps
    assert found.eigenpairs.smallest.lower == condition.smallest.lower == 0.0
    assert plain.eigenpairs.smallest.lower < 0
    assert holds(found.eigenpairs.smallest, values[0])
    assert holds(condition.smallest, values[0])
    assert holds(condition.norm, values[-1])
    assert (condition.negative.interval, condition.negative_mass.value) == ((0.0, 0.0), 0.0)
    assert plain.condition.negative.interval[1] > 0
    # λ_min ≥ 0 bounds what a damping makes of it, without any bracket.
    assert condition.definite == "positive"
    assert holds(condition.kappa, (values[-1] + 0.05) / 0.05, 1e-6)
    assert condition.kappa.upper <= 1.001 * (values[-1] + 0.05) / 0.05
    assert plain.condition.kappa.upper > 1.1 * condition.kappa.upper
    assert holds(condition.nearest_range, 0.05)
    dimension, determinant = condition.effective_dimension, condition.log_determinant
    assert abs(dimension.value - (values / (values + 0.05)).sum()) <= dimension.error
    assert abs(determinant.value - np.log(np.maximum(values, 0) + 0.05).sum()) <= determinant.error
    assert found.density.support[0] >= -1e-12
    assert found.density.support[0] >= plain.density.support[0]
    at_zero = found.density.count(-1e-3, 1e-3)
    assert at_zero.interval[0] <= np.sum(np.abs(values) <= 1e-3) <= at_zero.interval[1]
    assert abs(found.trace.value - values.sum()) <= found.trace.error


def test_without_damping_it_is_semidefinite():
    found = hvpspec.spectrum(known_to_be(with_null_space(1)), k=2, rtol=0.1, max_hvps=30)
    assert found.condition.definite == "semidefinite"
    assert found.condition.definiteness == "positive semidefinite"
    assert found.condition.kappa.upper == np.inf
    assert "a damping above 0 makes it so" in found.condition.reasons["log_determinant"]
    again = hvpspec.Spectrum.from_dict(found.to_dict())
    assert (again.semidefinite, again.condition.definite) == (True, "semidefinite")
    assert "positive semidefinite: no eigenvalue is negative" in found.summary(width=None)
    whole = hvpspec.condition(known_to_be(with_null_space(1)), rtol=0.1)
    assert whole.negative.value == 0
    assert abs(whole.lambda_min.value) <= 1e-6


def test_the_trace_is_not_below_what_the_basis_has_of_it():
    misses = lopsided = 0
    for seed in range(30):
        A = with_null_space(seed % 5, rank=12)
        found = hvpspec.spectrum(known_to_be(A), k=1, only=["eigenvalues", "trace"], max_hvps=14, rtol=1e-3, seed=seed)
        low, high = found.trace.interval
        misses += not low <= np.trace(A) <= high
        lopsided += found.trace.lower is not None
    assert misses <= 3
    assert lopsided


def test_it_is_dropped_where_the_matrix_says_otherwise():
    found = hvpspec.spectrum(known_to_be(np.diag([3.0, 1.0, -2.0, 0.5])), k=2)
    assert found.condition.negative_at_least == 1
    assert found.condition.definite == "indefinite"
    assert found.eigenpairs.smallest.lower == pytest.approx(-2)


def test_solve_knows_that_a_damped_one_is_definite():
    A, b = with_null_space(2), np.ones(N)
    found = hvpspec.solve(known_to_be(A), b, damping=1e-3, rtol=1e-8)
    plain = hvpspec.solve(known_to_be(A, semidefinite=False), b, damping=1e-3, rtol=1e-8)
    assert (found.method, plain.method) == ("cg", "minres")
    assert np.allclose((A + 1e-3 * np.eye(N)) @ found.x, b, atol=1e-6 * np.linalg.norm(b))


def network_and_data(outputs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, outputs))
    x = torch.randn(30, 5)
    return model, [(x[:20], torch.randint(0, outputs, (20,))), (x[20:], torch.randint(0, outputs, (10,)))]


CONVEX = ["cross_entropy", nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0, 2.0]), label_smoothing=0.1)]


@pytest.mark.parametrize("loss", CONVEX)
@pytest.mark.parametrize("kind", [GGNOperator, EmpiricalFisherOperator])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_of_a_network(loss, kind, dtype):
    if kind is EmpiricalFisherOperator and loss is CONVEX[1]:
        loss = nn.CrossEntropyLoss()
    model, data = network_and_data(3)
    G = kind(model, loss, data, dtype=dtype, engine="autograd")
    assert G.semidefinite
    n = G.shape[0]
    dense = kind(model, loss, data, dtype="float64", engine="autograd") @ torch.eye(n, dtype=torch.float64)
    values = np.linalg.eigvalsh(dense.numpy())
    assert values[0] >= -1e-14
    found = hvpspec.spectrum(G, k=3, rtol=0.2, max_hvps=40, damping=0.01)
    assert found.condition.definite == "positive"
    assert found.condition.negative.interval == (0.0, 0.0)
    assert holds(found.condition.kappa, (values[-1] + 0.01) / 0.01, 1e-3)
    assert found.eigenpairs.smallest.lower == 0.0


def test_it_is_known_of_convex_losses_alone():
    model, data = network_and_data(3)
    targets = [(x, torch.rand(len(x), 3)) for x, _ in data]
    assert GGNOperator(model, "mse", targets).semidefinite
    assert GGNOperator(model, nn.BCEWithLogitsLoss(pos_weight=torch.rand(3)), targets).semidefinite
    assert GGNOperator(model, nn.HuberLoss(), targets).semidefinite
    assert not GGNOperator(model, nn.CrossEntropyLoss(weight=torch.tensor([1.0, -1.0, 1.0])), data).semidefinite
    assert not GGNOperator(model, lambda outputs, targets: (outputs**3).mean(), data).semidefinite
    assert not GGNOperator(model, SplitLoss(lambda m, b: m(b[0]), lambda z, b: (z**2).mean()), data).semidefinite
    assert not getattr(HessianOperator(model, "cross_entropy", data), "semidefinite", False)
    assert not getattr(hvpspec.ResidualOperator(model, "cross_entropy", data), "semidefinite", False)

    class Own(nn.CrossEntropyLoss):
        pass

    assert not GGNOperator(model, Own(), data).semidefinite


def test_preconditioned_it_remains_so_unless_a_negative_shift_is_added():
    model, data = network_and_data(3)
    G = GGNOperator(model, "cross_entropy", data, dtype="float64")
    scale = torch.rand(G.shape[0], dtype=torch.float64) + 0.1
    assert PreconditionedOperator(G, scale).semidefinite
    assert PreconditionedOperator(G, scale, 0.1).semidefinite
    assert not PreconditionedOperator(G, scale, -0.1).semidefinite
    assert not PreconditionedOperator(np.eye(3), np.ones(3)).semidefinite
    found = hvpspec.spectrum(PreconditionedOperator(G, scale), k=2, rtol=0.2, max_hvps=30)
    assert found.condition.negative.interval == (0.0, 0.0)


def test_without_a_basis_the_trace_is_not_below_zero():
    A = with_null_space(3)
    found = hvpspec.trace(known_to_be(A), max_hvps=2, rtol=1e-3, seed=1)
    assert found.interval[0] >= 0
    plain = hvpspec.trace(A, max_hvps=2, rtol=1e-3, seed=1)
    assert plain.interval[0] < 0
    assert found.interval[1] == plain.interval[1]
