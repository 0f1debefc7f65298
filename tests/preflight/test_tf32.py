"""TF32 and cuDNN's recurrent layers: off while products are computed, and as before afterwards."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import hvpspec
from hvpspec.kernels import torch_kernels
from hvpspec.preflight import examine, inspect_operator

CPU = torch.device("cpu")


def test_recurrent_layers_go_without_cudnn_where_tf32_is_off_as_well():
    """On a CPU: a tensor that says it is on CUDA takes the same way up to torch's own kernel."""

    class Seeming(torch.Tensor):
        is_cuda = property(lambda self: True)

    lstm, x = nn.LSTM(3, 4), torch.randn(2, 2, 3)
    with (
        torch_kernels.noting_replacements() as replaced,
        torch_kernels.twice_differentiable(torch.device("cuda")),
    ):
        found = lstm(x.as_subclass(Seeming))[0]
    assert replaced.names == {"cudnn_rnn"}
    assert torch.backends.cudnn.enabled
    assert torch.equal(found.as_subclass(torch.Tensor), lstm(x)[0])


def test_tf32_is_looked_for_where_the_switches_differ():
    """torch's older switch cannot be read then."""
    cudnn, device = torch.backends.cudnn, torch.device("cuda")
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    try:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = "ieee", "tf32"
        (finding,) = examine(nn.Linear(2, 2), device)
        assert (finding.kind, finding.found) == ("tf32", "TF32 is switched on for recurrent layers in float32")
        cudnn.rnn.fp32_precision = "ieee"
        assert examine(nn.Linear(2, 2), device) == []
    finally:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before


class _Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


def _switches():
    cudnn = torch.backends.cudnn
    return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]


@pytest.fixture
def tf32():
    """TF32 on, for all kernels that know it."""
    saved = [switch.fp32_precision for switch in _switches()]
    for switch in _switches():
        switch.fp32_precision = "tf32"
    yield
    for switch, precision in zip(_switches(), saved, strict=True):
        switch.fp32_precision = precision


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["autograd", "linearized"])
@pytest.mark.parametrize("kind", ["recurrent", "convolution", "linear"])
def test_products_are_exact_where_tf32_is_on(tf32, kind, engine):
    torch.manual_seed(0)
    if kind == "recurrent":
        model, x = _Recurrent(), torch.randn(9, 5, 3)
    elif kind == "convolution":
        model, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Conv2d(16, 4, 3)), torch.randn(9, 3, 12, 12)
    else:
        model, x = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)), torch.randn(32, 64)
    with torch.no_grad():
        y = torch.randn_like(model(x))
    exact = hvpspec.HessianOperator(model, "mse", [(x, y)], dtype="float64")
    H = hvpspec.HessianOperator(copy.deepcopy(model), "mse", [(x, y)], device="cuda", engine=engine)
    findings = inspect_operator(H, examine(model, torch.device("cuda"))).findings
    assert {finding.kind for finding in findings} == {"tf32"} | ({"cudnn_rnn"} if kind == "recurrent" else set())
    v = np.random.default_rng(0).standard_normal(H.shape[0])
    assert np.linalg.norm(H @ v - exact @ v) <= 1e-5 * np.linalg.norm(exact @ v)
    assert [switch.fp32_precision for switch in _switches()] == ["tf32"] * 3


class _Flags(nn.Module):
    """Switches cuDNN's flags in its forward, which switches TF32 on as well."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        with torch.backends.cudnn.flags(enabled=True, deterministic=True):
            return self.inside(x)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_products_are_exact_where_the_model_switches_tf32_on(precision, kind):
    """As torch has it without a word, and where the older setting of matrix products was used."""
    torch.manual_seed(0)
    if kind == "convolution":
        model, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Conv2d(16, 4, 3)), torch.randn(9, 3, 12, 12)
    else:
        model, x = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)), torch.randn(32, 64)
    with torch.no_grad():
        y = torch.randn_like(model(x))
    exact = hvpspec.HessianOperator(model, "mse", [(x, y)], dtype="float64")
    v = np.random.default_rng(0).standard_normal(exact.shape[0])
    try:
        torch.set_float32_matmul_precision(precision)
        before = [switch.fp32_precision for switch in _switches()]
        H = hvpspec.HessianOperator(_Flags(copy.deepcopy(model)), "mse", [(x, y)], device="cuda")
        assert np.linalg.norm(H @ v - exact @ v) <= 1e-5 * np.linalg.norm(exact @ v)
        assert [switch.fp32_precision for switch in _switches()] == before
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
