"""What a model computes in float32 inside a float64 run is named, with what that costs."""

import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hvpspec
from hvpspec.oracle.checks import agreement
from hvpspec.preflight import inspect_operator

DATA = [(torch.randn(8, 4), torch.randn(8, 3)), (torch.randn(5, 4), torch.randn(5, 3))]


class Norm(nn.Module):
    """As in language models: the statistics in float32."""

    def __init__(self, single=True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.single = single

    def forward(self, x):
        y = x.to(torch.float32) if self.single else x
        return self.weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Softmax(Norm):
    def forward(self, x):
        return self.weight * torch.softmax(x, -1, dtype=torch.float32 if self.single else None).to(x.dtype)


class Buffer(Norm):
    """Values are written to a tensor that was made in float32."""

    def forward(self, x):
        made = torch.zeros(x.shape, dtype=torch.float32 if self.single else x.dtype)
        made.copy_(x.tanh())
        return self.weight * made.to(x.dtype)


class Fused(Norm):
    def forward(self, x):
        y = x.float() if self.single else x
        return F.layer_norm(y, (6,), self.weight.to(y.dtype)).to(x.dtype)


class Spectrum(Norm):
    """Fourier coefficients, written to a tensor of complex numbers in single precision, as neural operators do."""

    def forward(self, x):
        f = torch.fft.rfft(x)
        made = torch.zeros(f.shape, dtype=torch.cfloat if self.single else f.dtype)
        made[:, :3] = f[:, :3]
        return self.weight * torch.fft.irfft(made, n=6)


def network(middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), middle, nn.Tanh(), nn.Linear(6, 3))


def findings(model, loss="mse", **options):
    H = hvpspec.HessianOperator(model, loss, DATA, **options)
    return [f for f in inspect_operator(H).findings if f.kind == "float32_inside"], H


@pytest.mark.parametrize("kind", [Norm, Softmax, Buffer, Spectrum, Fused])
def test_it_is_named_with_what_it_costs(kind):
    (finding,), H = findings(network(kind()), dtype="float64")
    assert "computed in float32 inside a float64 run: '1'" in finding.found
    claimed = float(re.search(r"accurate to (\S+), as measured", finding.done)[1])
    plain = hvpspec.HessianOperator(network(kind(single=False)), "mse", DATA, dtype="float64")
    off = []
    for seed in range(5):
        v = np.random.default_rng(seed).standard_normal(H.shape[0])
        off.append(np.linalg.norm(H @ v - plain @ v) / np.linalg.norm(plain @ v))
    assert min(off) > 1e-9
    assert claimed / 5 < max(off) < 5 * claimed


def test_a_loss_that_casts_is_named():
    def loss(outputs, targets):
        return F.mse_loss(outputs.float(), targets.float())

    (finding,), _ = findings(network(nn.Identity()), loss, dtype="float64")
    assert "the loss or the whole model" in finding.found


def test_a_part_that_insists_is_not_measured():
    class Insists(Norm):
        def forward(self, x):
            y = x.float()
            if y.dtype != torch.float32:
                raise TypeError
            return super().forward(y).to(x.dtype)

    (finding,), _ = findings(network(Insists()), dtype="float64")
    assert "accurate to about 1e-07" in finding.done


class Half(Norm):
    def __init__(self, single=True, dtype=torch.bfloat16):
        super().__init__(single)
        self.dtype = dtype

    def forward(self, x):
        y = x.to(self.dtype) if self.single else x
        return self.weight * (y * y).to(x.dtype)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("run", ["float32", "float64"])
def test_half_precision_that_a_model_asks_for_can_only_be_named(run, half):
    """Unlike that of torch.autocast, which is without effect."""
    H = hvpspec.HessianOperator(network(Half(dtype=half)), "mse", DATA, dtype=run)
    (finding,) = [f for f in inspect_operator(H).findings if f.kind == "half_inside"]
    assert f"computed in {str(half).removeprefix('torch.')} inside a {run} run: '1'" in finding.found
    claimed = float(re.search(r"accurate to (\S+), as measured", finding.done)[1])
    plain = hvpspec.HessianOperator(network(Half(single=False)), "mse", DATA, dtype="float64")
    v = np.random.default_rng(0).standard_normal(H.shape[0])
    off = np.linalg.norm(H @ v - plain @ v) / np.linalg.norm(plain @ v)
    assert off > 1e-5
    assert claimed / 5 < off < 5 * claimed


def test_several_dtypes_are_all_named():
    class Both(Norm):
        def forward(self, x):
            return x.float().bfloat16().to(x.dtype)

    H = hvpspec.HessianOperator(network(Both()), "mse", DATA, dtype="float64")
    (finding,) = [f for f in inspect_operator(H).findings if f.kind == "half_inside"]
    assert "computed in float32 and bfloat16 inside a float64 run: '1'" in finding.found


class Rotary(nn.Module):
    """Constants in float32, which no derivative passes."""

    def forward(self, x):
        return x * torch.arange(6.0).float().cos().to(x.dtype)


@pytest.mark.parametrize(
    ("middle", "dtype"), [(Norm, "float32"), (Rotary, "float64"), (nn.Identity, "float64"), (nn.LayerNorm, "float64")]
)
def test_nothing_else_is(middle, dtype):
    assert findings(network(middle(6) if middle is nn.LayerNorm else middle()), dtype=dtype)[0] == []


@pytest.mark.parametrize("kind", [Norm, Fused])
def test_a_recording_of_it_is_no_disagreement(kind, monkeypatch):
    """The rounding of float32 explains what differs."""
    H = hvpspec.HessianOperator(network(kind()), "mse", DATA, dtype="float64", engine="linearized")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        H @ np.ones(H.shape[0])
    assert H.engine == "linearized"


def test_the_yardstick_feels_float32():
    model = network(Norm())
    H = hvpspec.HessianOperator(model, "mse", DATA, dtype="float64", engine="autograd")
    plain = hvpspec.HessianOperator(network(Norm(single=False)), "mse", DATA, dtype="float64", engine="autograd")

    def other(columns):  # an engine that rounds otherwise
        return torch.from_numpy(plain @ columns.numpy())

    assert agreement.disagreement(other, H.objective) is None
    assert "rounding explains" in agreement.disagreement(lambda v: 1.001 * other(v), H.objective)
    assert "rounding explains" in agreement.disagreement(lambda v: other(v) * (1 + 1e-9), plain.objective)


def test_too_few_digits_in_float32_are_told_from_a_wrong_derivative():
    """A loss of 1e-7: 1 − p is a difference of almost equal numbers. In float64 the same Hessian is symmetric."""
    torch.manual_seed(0)
    X = torch.randn(64, 6)
    X[:, 0] = X[:, 0].sign() * (1 + X[:, 0].abs())
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.mul_(0.1)
        model[0].weight[:, 0] = 1.0
        model[2].weight.copy_(torch.stack([-torch.ones(8), torch.ones(8)]) * 1.2)
    H = hvpspec.HessianOperator(model, "cross_entropy", [(X, (X[:, 0] > 0).long())])
    found = inspect_operator(H)
    (refused,) = [finding for finding in found.findings if finding.severity == "refused"]
    assert refused.kind == "few_digits"
    assert "in float64 it is symmetric" in refused.found
    assert refused.done == "use --dtype float64"
