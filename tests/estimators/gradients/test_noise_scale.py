"""The noise scale against per-sample gradients, and how often its interval holds."""

import numpy as np
import pytest
import torch
from torch import nn

import hvpspec

N = 48


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(N, 6).double() * torch.exp(torch.randn(N, 1))  # some samples are much larger than others
    return model, x, torch.randint(0, 3, (N,))


def per_sample(model, x, y):
    """By torch.func, one gradient each."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x, y):
        outputs = torch.func.functional_call(model, parameters, (x[None],))
        return nn.functional.cross_entropy(outputs, y[None])

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, y)
    return torch.cat([part.reshape(len(x), -1) for part in each.values()], 1)


def truth(model, x, y):
    each = per_sample(model, x, y)
    g = each.mean(0)
    return float(((each - g) ** 2).sum() / len(x) / g.norm() ** 2)


def found(model, x, y, sizes, loss="cross_entropy", **options):
    data = list(zip(x.split(sizes), y.split(sizes), strict=True))
    return hvpspec.gradient(hvpspec.HessianOperator(model, loss, data, verify=False, engine="autograd", **options))


def test_single_samples_give_it_exactly(problem):
    result = found(*problem, [1] * N)
    assert result.noise_scale.value == pytest.approx(truth(*problem), rel=1e-9)
    assert result.noise_scale.error <= 1e-9 * result.noise_scale.value
    assert (result.samples, result.batches) == (N, N)


@pytest.mark.parametrize("sizes", [[12] * 4, [6] * 8, [10] * 4 + [8], [20, 20, 5, 3]], ids=str)
def test_it_is_unbiased_and_its_interval_holds(problem, sizes):
    model, x, y = problem
    exact, values, misses, silent = truth(*problem), [], 0, 0
    for seed in range(40):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        noise = found(model, x[order], y[order], sizes).noise_scale
        if noise is None:
            silent += 1
            continue
        values.append(noise.value)
        low, high = noise.interval
        misses += not low <= exact <= high
    assert misses <= 0.07 * 40
    assert silent <= 0.1 * 40
    assert abs(np.mean(values) - exact) < 4 * np.std(values) / np.sqrt(len(values))


def test_one_batch_says_why_there_is_none(problem):
    result = found(*problem, [N])
    assert result.noise_scale is None
    assert "one batch only" in result.reasons["noise_scale"]


def test_batches_in_no_random_order_are_noticed(problem):
    model, x, y = problem
    order = torch.argsort(y, stable=True)
    result = found(model, x[order], y[order], [4] * 12)
    assert result.noise_scale is None
    assert "shuffle" in result.reasons["noise_scale"]


def test_equal_batches_have_no_noise(problem):
    model, x, y = problem
    result = found(model, x[:6].repeat(4, 1), y[:6].repeat(4), [6] * 4)
    assert result.noise_scale.value == pytest.approx(0, abs=1e-9)


def test_sums_of_unequal_batches_say_why_there_is_none(problem):
    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="sum")

    result = found(*problem, [20, 20, 8], loss, reduction="sum")
    assert result.noise_scale is None
    assert "return (mean loss, weight)" in result.reasons["noise_scale"]
    equal = found(*problem, [12] * 4, loss, reduction="sum").noise_scale
    assert equal.value == pytest.approx(found(*problem, [12] * 4).noise_scale.value, rel=1e-9)
