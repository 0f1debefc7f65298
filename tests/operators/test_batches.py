"""Operators of single batches, compared with explicit matrices of each batch alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle.matrices import empirical_fisher, gauss_newton
from torch import nn
from zoo import CASES, explicit_hessian

import hvpspec

OPERATORS = {
    "hessian": hvpspec.HessianOperator,
    "ggn": hvpspec.GGNOperator,
    "empirical-fisher": hvpspec.EmpiricalFisherOperator,
    "residual": hvpspec.ResidualOperator,
}


def alone(case, number):
    """The case with one of its batches, as if that were all of the data."""
    x, y = case.data[number]
    mean = F.cross_entropy if case.loss == "cross_entropy" else F.mse_loss
    return replace(case, data=[case.data[number]], whole=lambda m: mean(m(x), y))


def explicit(matrix, case):
    """Of all the data of a case, made without hvpspec."""
    if matrix == "empirical-fisher":
        return empirical_fisher(case)
    if matrix == "ggn":
        return gauss_newton(case)
    hessian = torch.from_numpy(explicit_hessian(case))
    return hessian if matrix == "hessian" else hessian - gauss_newton(case)


def dense(operator):
    return operator @ torch.eye(operator.shape[0], dtype=operator.torch_dtype)


def each(H, numbers=None):
    """The number, weight and operator of each batch."""
    for number, find in H.batch_operators(range(H.batch_count()) if numbers is None else numbers):
        yield number, *find()


@pytest.mark.parametrize("matrix", OPERATORS)
@pytest.mark.parametrize("engine", ["autograd", "linearized"])
def test_each_batch_has_the_matrix_of_its_own_loss(matrix, engine):
    """Ragged batches, and their mean by the weights is the whole matrix."""
    torch.manual_seed(0)
    case = CASES["mlp"]()
    H = OPERATORS[matrix](case.model, case.loss, case.data, engine=engine)
    total = weights = 0.0
    for number, weight, operator in each(H):
        found = dense(operator)
        assert weight == len(case.data[number][0])
        torch.testing.assert_close(found, explicit(matrix, alone(case, number)), rtol=1e-12, atol=1e-13)
        assert (operator.engine, operator.hvps, operator.matrix) == (engine, H.shape[0], matrix)
        total, weights = total + weight * found, weights + weight
    torch.testing.assert_close(total / weights, dense(H), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["cnn with batchnorm", "lstm"])
def test_other_architectures(name):
    torch.manual_seed(0)
    case = CASES[name]()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    (number, _, operator), *_ = each(H, [1])
    assert number == 1
    torch.testing.assert_close(dense(operator).numpy(), explicit_hessian(alone(case, 1)), rtol=1e-10, atol=1e-12)


def test_some_parameters_preconditioned():
    torch.manual_seed(0)
    case = CASES["mlp"]()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, parameters="3")
    scale = torch.rand(H.shape[0], dtype=torch.float64) + 0.5
    P = hvpspec.PreconditionedOperator(H, scale, shift=0.3)
    rows = np.arange(sum(p.numel() for p in case.model.parameters()))[-H.shape[0] :]
    for number, _, operator in each(P):
        part = explicit_hessian(alone(case, number))[np.ix_(rows, rows)]
        expected = scale.diag() @ torch.from_numpy(part + 0.3 * np.eye(len(part))) @ scale.diag()
        torch.testing.assert_close(dense(operator), expected, rtol=1e-12, atol=1e-13)
        assert operator.hvps == operator.A.hvps == len(part)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 1)

    def forward(self, x):
        return torch.tanh(self.inner(F.dropout(x, 0.5)))


def test_a_batch_draws_the_noise_that_it_draws_among_the_others():
    torch.manual_seed(0)
    data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(3)]
    H = hvpspec.HessianOperator(Noisy().double(), "mse", data, noise_seed=5)
    parts = [(weight, dense(operator)) for _, weight, operator in each(H)]
    whole = sum(weight * part for weight, part in parts) / 12
    torch.testing.assert_close(whole, dense(H), rtol=1e-12, atol=1e-14)
    same = hvpspec.HessianOperator(H.objective.model, "mse", data[1:2], noise_seed=5)  # the first of its data
    assert (dense(same) - parts[1][1]).abs().max() > 1e-3


def test_a_batch_of_a_sum_stands_for_all_of_it():
    torch.manual_seed(0)
    case = CASES["mlp"]()
    samples = sum(len(x) for x, _ in case.data)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, reduction="sum")
    for number, _, operator in each(H):
        expected = samples * explicit_hessian(alone(case, number))
        torch.testing.assert_close(dense(operator).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_a_batch_without_weight_has_no_operator():
    torch.manual_seed(0)
    x, y = torch.randn(6, 3), torch.tensor([0, 1, -100, -100, 1, 0])
    H = hvpspec.HessianOperator(nn.Linear(3, 2), "cross_entropy", list(zip(x.split(2), y.split(2), strict=True)))
    assert [(number, weight, operator is None) for number, weight, operator in each(H)] == [
        (0, 2.0, False), (1, 0.0, True), (2, 2.0, False),
    ]  # fmt: skip


class Reading:
    """Data that count how often each batch is read."""

    def __init__(self, batches):
        self.batches, self.read = batches, [0] * len(batches)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for number, batch in enumerate(self.batches):
            self.read[number] += 1
            yield batch


def test_products_with_one_batch_evaluate_that_batch_alone():
    torch.manual_seed(0)
    data = Reading([(torch.randn(size, 3), torch.randn(size, 1)) for size in (2, 3, 4, 5)])
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    H = hvpspec.HessianOperator(model, "mse", data, engine="autograd")
    v = torch.randn(H.shape[0])
    H @ v
    data.read, seen[:] = [0] * 4, []
    for _, _, operator in each(H, [1, 2]):
        operator.expect(3)
        for _ in range(3):
            operator @ v
    assert data.read == [1, 1, 1, 0]  # once for all products, and not beyond the last one asked for
    assert seen == [3, 3, 4, 4]  # for the weight, and for the graph that all three products share


def test_recordings_are_shared_by_shape():
    torch.manual_seed(0)
    case = CASES["mlp"]()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="linearized")
    v = torch.randn(H.shape[0], dtype=torch.float64)
    H @ v
    recordings = H._product._fast._recordings
    before = len(recordings)
    for _, _, operator in each(H):
        operator @ v
        assert operator._product._fast._recordings is recordings
        assert operator._product._fast._saved.complete  # so that the next product needs no forward pass
    assert len(recordings) == before


def test_an_operator_that_has_made_no_product_finds_its_engine_first():
    torch.manual_seed(0)
    case = CASES["mlp"]()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="linearized")
    (_, _, operator), *_ = each(H, [0])
    torch.testing.assert_close(dense(operator).numpy(), explicit_hessian(alone(case, 0)), rtol=1e-12, atol=1e-13)
    assert operator.engine == "linearized"


def test_finite_differences():
    torch.manual_seed(0)
    case = CASES["mlp"]()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="finite-difference")
    (_, _, operator), *_ = each(H, [2])
    expected = explicit_hessian(alone(case, 2))
    assert np.abs(dense(operator).numpy() - expected).max() < 1e-5 * np.abs(expected).max()
    assert 0 < operator.noise < 1e-3


def test_another_error_names_the_batch_by_its_number():
    def loss(model, batch):
        x, y = batch
        if len(x) == 3 and broken:
            raise ValueError("no such thing")
        return F.mse_loss(model(x), y), len(x)

    broken = False
    data = [(torch.randn(size, 3), torch.randn(size, 1)) for size in (2, 3)]
    H = hvpspec.HessianOperator(nn.Linear(3, 1), loss, data)
    H @ torch.ones(4)
    broken = True
    with pytest.raises(hvpspec.InputError, match=r"batch 1: .*no such thing"):
        list(each(H, [1]))
