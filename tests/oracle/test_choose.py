"""Which engine is chosen, when it is changed, and what happens where a new engine fails or disagrees."""

import logging
import math

import pytest
import torch
from oracle.comparison import needs_compiler, operators, relative
from torch import nn
from zoo import mlp

import hvpspec
from hvpspec.oracle import choose
from hvpspec.oracle.recorded import linearized


class Square(torch.autograd.Function):
    """Differentiable twice, written by hand."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


def test_custom_functions_keep_working():
    case = mlp()

    def loss(model, batch):
        return Square.apply(model(batch[0])).mean()

    case.loss = loss
    reference, fast = operators(case)
    v = torch.randn(fast.shape[0], 1, dtype=torch.float64)
    assert relative(fast @ v, reference @ v) <= 1e-12
    assert fast.engine in ("linearized", "autograd")


def test_control_flow_that_depends_on_data_falls_back_with_a_reason(caplog):
    case = mlp()

    def loss(model, batch):
        out = model(batch[0])
        return (out.square().mean() if float(out.mean()) > 0 else out.pow(4).mean()), len(out)

    case.loss = loss
    reference, fast = operators(case)
    v = torch.randn(fast.shape[0], 1, dtype=torch.float64)
    with caplog.at_level(logging.INFO, logger="hvpspec"):
        assert relative(fast @ v, reference @ v) <= 1e-12
    assert fast.engine == "autograd"
    assert fast.plan.startswith("autograd (recording failed: ")
    assert fast.plan.count("\n") == 0
    assert "recording failed" in caplog.text


def test_values_read_by_numpy_fall_back():
    case = mlp()
    case.loss = lambda model, batch: (
        model(batch[0]).square().mean() * float(batch[0].detach().numpy().max()),
        len(batch[0]),
    )
    reference, fast = operators(case)
    v = torch.randn(fast.shape[0], 1, dtype=torch.float64)
    assert relative(fast @ v, reference @ v) <= 1e-12
    assert fast.engine == "autograd"


def test_a_wrong_engine_is_found_out(monkeypatch):
    """As a miscompiled one would be: off by a few parts in a thousand."""
    case = mlp()
    original = linearized.Linearized._product
    monkeypatch.setattr(linearized.Linearized, "_product", lambda self, V, f: original(self, V, f) * 1.003)
    reference, fast = operators(case)
    v = torch.randn(fast.shape[0], 1, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="disagrees with autograd"):
        product = fast @ v
    assert relative(product, reference @ v) <= 1e-14
    assert fast.plan.startswith("autograd (the linearized engine disagrees: its products are off by 3.0e-03")


def test_a_compiler_that_fails_leaves_the_eager_form(monkeypatch):
    case = mlp()
    monkeypatch.setattr(torch, "compile", lambda *args, **options: 1 / 0)
    fast = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="compiled")
    reference, _ = operators(case)
    v = torch.randn(fast.shape[0], 1, dtype=torch.float64)
    assert relative(fast @ v, reference @ v) <= 1e-12
    assert fast.engine == "linearized"
    assert "not compiled: division by zero" in fast.plan


def test_errors_are_those_of_the_reference():
    case = mlp()
    case.data[1][0][0, 0] = float("nan")
    _, fast = operators(case)
    with pytest.raises(hvpspec.InputError, match="batch 1: the loss is nan"):
        fast @ torch.ones(fast.shape[0], dtype=torch.float64)
    case = mlp()
    _, fast = operators(case)
    fast @ torch.ones(fast.shape[0], dtype=torch.float64)
    with pytest.raises(hvpspec.InputError, match="vector to multiply has NaN"):
        fast @ torch.full((fast.shape[0],), float("nan"), dtype=torch.float64)


def test_auto_changes_engine_when_that_is_worthwhile(monkeypatch):
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    v = torch.randn(H.shape[0], 1, dtype=torch.float64)
    expected = H @ v
    assert H.plan == "autograd"
    H @ v
    assert H.engine == "autograd"  # a few milliseconds saved are not worth the recording
    H.expect(10**6)
    assert relative(H @ v, expected) <= 1e-12
    assert H.engine == "linearized"
    slow = hvpspec.HessianOperator(case.model, case.loss, case.data)
    slow @ v
    monkeypatch.setattr(choose.Chooser, "_measure", lambda self: 1e9)
    slow.expect(10**6)
    assert relative(slow @ v, expected) <= 1e-12
    assert slow.plan == "autograd (the linearized engine is not faster here)"


@needs_compiler
def test_auto_compiles_when_that_is_worthwhile(monkeypatch):
    monkeypatch.setattr(choose, "_SECONDS_TO_COMPILE", 0.0)
    monkeypatch.setattr(choose, "_SECONDS_TO_COMPILE_AN_OPERATION", 0.0)
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    reference, _ = operators(case)
    v = torch.randn(H.shape[0], 1, dtype=torch.float64)
    H @ v
    H.expect(10**6)
    for _ in range(3):
        assert relative(H @ v, reference @ v) <= 1e-12
    assert H.plan.startswith("linearized, ")  # compiled, or eager if that was measured to be faster
    assert H._product._settled


def test_memory_limits_are_checked():
    case = mlp()
    with pytest.raises(hvpspec.InputError, match="memory_limit must be"):
        hvpspec.HessianOperator(case.model, case.loss, case.data, memory_limit="lots")


def test_expected_costs_follow_from_the_products_made(monkeypatch):
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    assert math.isnan(H.expected_seconds(10))
    monkeypatch.setattr(H._product, "_made", 1)
    monkeypatch.setattr(H._product, "_seconds", 0.5)
    assert H.expected_seconds(2) == 1.0  # recording is not worthwhile
    assert H.expected_seconds(100) == pytest.approx(50 * 0.6 + 2)
    assert H.expected_saved_bytes(2, 2**20) == 0


def test_the_activations_to_be_saved_are_predicted_within_the_limit():
    def operator(**options):
        x, y = torch.randn(30, 4), torch.arange(30) % 3
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        data = list(zip(x.split(16), y.split(16), strict=True))
        return hvpspec.HessianOperator(model, "cross_entropy", data, **options)

    H = operator(engine="linearized", memory_limit="1MiB")
    assert H.expected_saved_bytes(100, 400_000) == 2 * (400_000 - 16 * H.shape[0]) // 3  # two batches
    assert H.expected_saved_bytes(100, 2**30) == 2**20
    H @ torch.ones(H.shape[0])
    assert H.expected_saved_bytes(100, 2**30) == 0  # they are already saved
    assert operator(engine="autograd").expected_saved_bytes(100, 2**30) == 0
