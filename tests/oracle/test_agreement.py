"""What is taken for rounding where engines differ, and what for an error, in full precision and with float32 inside."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from oracle.comparison import relative
from torch import nn

import hvpspec
from hvpspec.oracle import autograd
from hvpspec.oracle.checks.agreement import disagreement


class Part(nn.Module):
    """A function that is computed in another dtype, as language models have them."""

    def __init__(self, function, dtype):
        super().__init__()
        self.function, self.dtype = function, dtype

    def forward(self, x):
        return self.function(x.to(self.dtype)).to(x.dtype)


def _selective_scan(x):
    """The decay between all pairs of steps, as in state-space models."""
    steps = (-F.softplus(x)).cumsum(-1)
    return (steps[..., :, None] - steps[..., None, :]).tril().exp().sum(-1)


PARTS = {
    "silu": F.silu,
    "softplus": F.softplus,
    "softmax": lambda x: x.softmax(-1),
    "norm": lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6),
    "selective scan": _selective_scan,
    "Fourier transform": lambda x: torch.fft.irfft(torch.fft.rfft(x) * 0.5, n=x.shape[-1]).tanh(),
}


def operator(function, dtype, engine="autograd"):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 8), Part(function, dtype), nn.Linear(8, 8), Part(function, dtype), nn.Linear(8, 3)
    )
    data = [(torch.randn(n, 5), torch.randn(n, 3)) for n in (6, 4)]
    return hvpspec.HessianOperator(model, "mse", data, dtype="float64", engine=engine)


@pytest.mark.parametrize("name", PARTS)
def test_an_engine_that_rounds_parts_otherwise_agrees(name):
    """One whose parts are in float64: it differs by what the model's float32 costs, and the yardstick says so."""
    H, exact = operator(PARTS[name], torch.float32).objective, operator(PARTS[name], torch.float64).objective
    v = torch.randn(H.space.n, 1, dtype=torch.float64)
    assert relative(autograd.hvp(H, v), autograd.hvp(exact, v)) > 1e-9  # far more than float64 explains
    assert disagreement(lambda v: autograd.hvp(exact, v), H) is None
    # What is saved in float32, and reused whatever the vector: no scaling of the vector shows that.
    assert disagreement(lambda v: autograd.hvp(H, v) * (1 + 5e-8), H) is None


@pytest.mark.parametrize("name", PARTS)
def test_an_error_is_found_all_the_same(name):
    H, clean = operator(PARTS[name], torch.float32).objective, operator(PARTS[name], torch.float64).objective
    assert "off by 1.0e-03" in disagreement(lambda v: autograd.hvp(H, v) * 1.001, H)
    assert "off by 1.0e-06" in disagreement(lambda v: autograd.hvp(clean, v) * (1 + 1e-6), clean)

    def without_a_term(v):
        """The largest entry that is no more than a thousandth of the product is left out; else the smallest one."""
        found = autograd.hvp(H, v)
        small = found.abs() <= torch.maximum(1e-3 * found.norm(), found.abs().min())
        found[found.abs() == found.abs()[small].max()] = 0
        return found

    assert "rounding explains" in disagreement(without_a_term, H)


def test_half_precision_inside_float32():
    H = operator(F.silu, torch.bfloat16).objective.with_(dtype=torch.float32)
    wide = operator(F.silu, torch.float64).objective
    assert disagreement(lambda v: autograd.hvp(wide, v.double()).float(), H) is None
    assert "rounding explains" in disagreement(lambda v: autograd.hvp(wide, v.double()).float() * 1.3, H)


def test_kinks_in_full_precision():
    """ReLU at numbers of the size of the rounding: the derivative is one or the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    data = [(torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64))]
    H = hvpspec.HessianOperator(model, "mse", data, engine="autograd").objective
    assert disagreement(lambda v: autograd.hvp(H, v), H) is None
    assert "rounding explains" in disagreement(lambda v: autograd.hvp(H, v) + 1e-9, H)


@pytest.mark.parametrize("name", ["silu", "selective scan"])
def test_recordings_are_used_without_a_word(name):
    H = operator(PARTS[name], torch.float32, "linearized")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        H @ torch.ones(H.shape[0], dtype=torch.float64)
    assert H.engine == "linearized", H.plan


def test_the_model_is_where_it_was():
    H = operator(F.silu, torch.float32).objective
    before = [p.clone() for p in H.model.parameters()]
    disagreement(lambda v: autograd.hvp(H, v) * 1.001, H)
    assert all(torch.equal(p, q) for p, q in zip(H.model.parameters(), before, strict=True))
