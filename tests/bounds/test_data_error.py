"""The data error, against the Hessian of each batch written out."""

import numpy as np
import pytest
import torch
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
    """With a basis of the whole space nothing is sampled, and all three follow the definition."""
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
    """Sampled, and over more batches than there are folds: neighbours count as one."""
    case = Case(batches=20, size=16)
    groups = [[b for i, b in enumerate(case.data) if i * MAX_FOLDS // 20 == g] for g in range(MAX_FOLDS)]
    matrices = np.array([dense(case.operator(group)) for group in groups])
    weights = [sum(len(y) for _, y in group) for group in groups]
    eigenvalues, trace, norm = expected(matrices, weights, 2)
    ratios = []
    for seed in range(20):
        found = hvpspec.spectrum(case.operator(), 2, rtol=0.1, seed=seed, max_hvps=30)
        assert found.trace.method != "exact"
        np.testing.assert_allclose(found.eigenpairs.data_error, eigenvalues, rtol=0.05)
        ratios.append((found.trace.data_error / trace, found.frobenius_norm.data_error / norm))
    assert (np.abs(np.median(ratios, 0) - 1) < 0.3).all()


def test_it_foretells_how_figures_differ_on_other_data():
    """Between data sets drawn again the trace scatters by its data error."""
    case = Case(batches=8)
    traces, errors = [], []
    for seed in range(24):
        other = Case(batches=8, seed=seed + 1)
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
