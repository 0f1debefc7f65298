"""Casts to float32 inside a model are left out where finite differences are to show what is wrong."""

import pytest
import torch
from torch import nn

import hvpspec
from hvpspec.kernels.casts import WithoutCasts
from hvpspec.oracle.finite_difference import FiniteDifference, compared


class Slightly(torch.autograd.Function):
    """The square, whose backward is wrong at second order, by 1 part in 1000."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * g * (x.detach() + (x - x.detach()) * 1.001)


class Rounding(nn.Module):
    """Computes its norm and its softmax in float32, as language models do."""

    def __init__(self, square=torch.square, casts=True):
        super().__init__()
        self.first, self.last, self.square, self.casts = nn.Linear(4, 12), nn.Linear(12, 3), square, casts

    def forward(self, x):
        z = self.first(x)
        z = self.square(z.relu()) * 30
        if self.casts:
            z = nn.functional.layer_norm(z.float(), (12,)).to(x.dtype)
            return self.last(z).softmax(1, dtype=torch.float32).type_as(x)
        return self.last(nn.functional.layer_norm(z, (12,))).softmax(1)


def problem(**options):
    torch.manual_seed(0)
    model = Rounding(**options).double()
    data = [(torch.randn(9, 4, dtype=torch.float64), torch.rand(9, 3, dtype=torch.float64))]
    return model, data


def test_differences_have_all_digits():
    model, data = problem()
    exact = problem(casts=False)[0]
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    expected = hvpspec.HessianOperator(exact, "mse", data) @ v
    H = hvpspec.HessianOperator(model, "mse", data, engine="finite-difference")
    assert float((H @ v - expected).norm() / expected.norm()) <= 3 * H.noise < 1e-5
    checked = FiniteDifference(H.objective).validate()
    assert checked.difference <= 3 * checked.bound < 1e-5


@pytest.mark.parametrize("square", [torch.square, Slightly.apply])
def test_a_wrong_second_derivative_is_found_behind_rounding(square):
    model, data = problem(square=square)
    found = compared(hvpspec.HessianOperator(model, "mse", data).objective)
    off, bound = found.off, found.bound
    assert bound < 1e-5
    assert (off > 3 * bound) == (square is not torch.square)


def test_what_is_asked_for_in_fewer_digits_is_float64():
    x = torch.ones(2, dtype=torch.float64)
    with WithoutCasts():
        found = (
            x.float(), x.half(), x.bfloat16(), x.to(torch.float32), x.to(dtype=torch.float16),
            x.softmax(0, torch.float32), torch.zeros(2, dtype=torch.float32), x.type(torch.float32),
        )  # fmt: skip
        assert {part.dtype for part in found} == {torch.float64}
        assert x.to(torch.int64).dtype == torch.int64
    assert x.float().dtype == torch.float32
