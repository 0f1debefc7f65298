"""What holds of every symmetric matrix and of every split of the data, on examples that Hypothesis looks for."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hvpspec

FEW = settings(max_examples=12, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**64 - 1)


@st.composite
def matrices(draw):
    """Symmetric, with eigenvalues of both signs, some of them equal, or 0, and of any scale."""
    n = draw(st.integers(2, 40))
    values = draw(st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.0, 0.5, 1.0, 1.0, 2.0, 7.0]), min_size=n, max_size=n))
    Q = np.linalg.qr(np.random.default_rng(draw(st.integers(0, 99))).standard_normal((n, n)))[0]
    A = (Q * np.array(values)) @ Q.T * 10.0 ** draw(st.integers(-6, 6))
    return (A + A.T) / 2


def estimates(A, seed):
    """The figures of every estimator: those that scale with A, each with its error."""
    pairs, density = hvpspec.eigsh(A, 2, seed=seed), hvpspec.spectral_density(A, seed=seed)
    trace, norm = hvpspec.trace(A, seed=seed), hvpspec.frobenius_norm(A, seed=seed)
    found = hvpspec.spectrum(A, 2, seed=seed)
    values = [pairs.values, density.nodes, [trace.value, norm.value], found.eigenpairs.values]
    errors = [pairs.error, [density.error], [trace.error, norm.error], found.eigenpairs.error]
    more = [found.trace.value, found.frobenius_norm.value, found.trace.error, found.frobenius_norm.error]
    counts = [pairs.hvps, density.hvps, trace.hvps, norm.hvps, found.hvps]
    return np.concatenate([*values, *errors, more]), np.concatenate([density.weights, density.cdf_lower]), counts


@FEW
@given(matrices(), st.integers(-20, 20), SEEDS)
def test_a_scale_that_is_a_power_of_two_changes_no_bit(A, exponent, seed):
    figures, shares, counts = estimates(A, seed)
    scaled, same_shares, same_counts = estimates(A * 2.0**exponent, seed)
    assert counts == same_counts
    np.testing.assert_array_equal(scaled, figures * 2.0**exponent)
    np.testing.assert_array_equal(same_shares, shares)


@FEW
@given(matrices(), SEEDS)
def test_the_opposite_matrix_has_the_opposite_figures(A, seed):
    found, opposite = hvpspec.spectrum(A, 3, seed=seed), hvpspec.spectrum(-A, 3, seed=seed)
    size = float(np.abs(A).sum(1).max()) + 1e-300
    largest, smallest = found.eigenpairs.largest, opposite.eigenpairs.smallest
    assert largest.lower == pytest.approx(-smallest.upper, abs=1e-9 * size)
    assert found.trace.value == pytest.approx(-opposite.trace.value, abs=1e-9 * size * len(A))
    assert found.frobenius_norm.value == pytest.approx(opposite.frobenius_norm.value, abs=1e-9 * size * len(A))


@FEW
@given(matrices(), st.floats(-5, 5), SEEDS)
def test_a_shift_moves_eigenvalues_trace_and_density(A, shift, seed):
    """Within the errors, as it changes the Krylov space's rounding and the weights of the probes."""
    n, size = len(A), float(np.abs(A).sum(1).max()) or 1.0
    moved = A + shift * size * np.eye(n)
    found, other = (hvpspec.spectrum(M, 2, which="LA", seed=seed) for M in (A, moved))
    top, high = found.eigenpairs, other.eigenpairs
    slack = 1e-9 * size * n
    assert abs(high.values[0] - top.values[0] - shift * size) <= 2e-3 * (abs(shift) + 1) * size + slack
    allowed = 2 * (found.trace.error + other.trace.error) + slack  # twice: they hold at 95 %
    assert abs(other.trace.value - found.trace.value - n * shift * size) <= allowed


@FEW
@given(matrices(), SEEDS)
def test_every_figure_is_within_its_error(A, seed):
    values = np.linalg.eigvalsh(A)
    size = float(np.abs(values).max())
    found = hvpspec.spectrum(A, 3, seed=seed)
    away = np.abs(found.eigenpairs.values[:, None] - values).min(1)
    assert (away <= found.eigenpairs.error + 1e-13 * size * len(A)).all()
    assert abs(found.trace.value - values.sum()) <= 2 * found.trace.error + 1e-12 * size * len(A)
    assert abs(found.frobenius_norm.value - np.linalg.norm(A)) <= 2 * found.frobenius_norm.error + 1e-12 * size * len(A)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def split(x, y, sizes):
    """Batches of these sizes; the last one has what is left."""
    ends = [0, *np.cumsum(sizes)[np.cumsum(sizes) < len(x)].tolist(), len(x)]
    return [(x[a:b], y[a:b]) for a, b in pairwise(ends) if b > a]


@FEW
@given(st.integers(0, 50), st.lists(st.integers(1, 9), max_size=6), st.sampled_from(["autograd", "linearized"]))
def test_products_are_linear_symmetric_and_independent_of_the_split(seed, sizes, engine):
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.randn(20, 4, generator=rng).double(), torch.randint(3, (20,), generator=rng)
    whole = hvpspec.HessianOperator(network(seed), "cross_entropy", [(x, y)], engine="autograd")
    H = hvpspec.HessianOperator(network(seed), "cross_entropy", split(x, y, sizes), engine=engine)
    u, v = torch.randn(2, H.shape[0], generator=rng).double()
    a, b = torch.randn(2, generator=rng).double()
    Hu, Hv = H @ u, H @ v
    scale = float(Hu.norm() * v.norm() + Hv.norm() * u.norm())
    assert torch.allclose(H @ (a * u + b * v), a * Hu + b * Hv, rtol=0, atol=1e-12 * scale)
    assert float(u @ Hv - v @ Hu) == pytest.approx(0, abs=1e-12 * scale)
    assert torch.allclose(Hu, whole @ u, rtol=0, atol=1e-12 * scale)
    order = torch.randperm(20, generator=rng)
    mixed = hvpspec.HessianOperator(network(seed), "cross_entropy", split(x[order], y[order], sizes), engine=engine)
    assert torch.allclose(mixed @ u, Hu, rtol=0, atol=1e-12 * scale)
