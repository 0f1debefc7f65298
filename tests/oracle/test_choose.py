"""Which engine is chosen, when it is changed, and what happens where a new engine fails or disagrees."""

import gc
import logging
import math
import sys
import time
import weakref
from unittest import mock

import pytest
import torch
from oracle.comparison import Square, free_to_compile, needs_compiler, operators, relative
from torch import nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from zoo import mlp

import hvpspec
from hvpspec.oracle import autograd, choose
from hvpspec.oracle.choice import changes, prices
from hvpspec.oracle.recorded import linearized, recordings, tracing
from hvpspec.oracle.recorded.linearized import Linearized


def test_custom_functions_keep_working():
    case = mlp()

    def loss(model, batch):
        return Square.apply(model(batch[0])).mean()

    case.loss = loss
    reference, fast = operators(case)
    v = torch.randn(fast.shape[0], 1, dtype=torch.float64)
    assert relative(fast @ v, reference @ v) <= 1e-12
    assert fast.engine in ("linearized", "autograd")


def test_what_cannot_be_recorded_falls_back_with_a_reason(caplog):
    case = mlp()

    def loss(model, batch):
        out = model(batch[0])
        if get_proxy_mode() is not None:
            raise ValueError("of the program's own")
        return out.square().mean(), len(out)

    case.loss = loss
    reference, fast = operators(case)
    v = torch.randn(fast.shape[0], 1, dtype=torch.float64)
    with caplog.at_level(logging.INFO, logger="hvpspec"):
        assert relative(fast @ v, reference @ v) <= 1e-12
    assert fast.engine == "autograd"
    assert fast.plan.startswith("autograd (recording failed: ")
    assert fast.plan.count("\n") == 0
    assert "recording failed" in caplog.text


def test_values_read_by_numpy_are_recorded_batch_by_batch():
    case = mlp()
    case.loss = lambda model, batch: (
        model(batch[0]).square().mean() * float(batch[0].detach().numpy().max()),
        len(batch[0]),
    )
    reference, fast = operators(case)
    v = torch.randn(fast.shape[0], 1, dtype=torch.float64)
    assert relative(fast @ v, reference @ v) <= 1e-12
    assert "recorded batch by batch" in fast.plan


def test_a_wrong_engine_is_found_out(monkeypatch):
    """As a miscompiled one would be: off by a few parts in a thousand."""
    case = mlp()
    original = linearized.Linearized._product
    monkeypatch.setattr(linearized.Linearized, "_product", lambda self, *of: original(self, *of) * 1.003)
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
    assert slow.plan.startswith("autograd (the linearized engine is not faster here), gradient graphs of 3 of 3")


@needs_compiler
def test_auto_compiles_when_that_is_worthwhile(monkeypatch):
    monkeypatch.setitem(prices.COSTS, "cpu", free_to_compile())
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


def priced(product, graphs, **options):
    """An operator whose products through kept graphs take so many seconds, and the graphs themselves."""
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, **options)
    chooser = H._product
    chooser._made, chooser._seconds = 1, product + graphs
    chooser._plain.backward, chooser._plain.graphs, chooser._plain.nodes = product, graphs, 300
    return H


def test_expected_costs_follow_from_the_products_made(monkeypatch):
    case = mlp()
    assert math.isnan(hvpspec.HessianOperator(case.model, case.loss, case.data).expected_seconds(10))
    monkeypatch.setattr(recordings, "_PACE", [0.01])
    monkeypatch.setattr(recordings, "SECONDS_TO_IMPORT", 0.0)
    H = priced(0.5, 0.4)
    assert H.expected_seconds(2) == 1.0  # graphs are kept from now on; recording is not worthwhile
    recording = 3.0 + 0.5 + 3 * 0.465  # and its checks
    assert 1.2 * recording < 1000 * (0.5 - 0.465)
    compiled = max(0.8 * 0.465, 0.4)
    compiling = 3.0 + 2 * (0.5 + 3 * 0.465) + 6.0 + 0.02 * 5 * 300
    assert H.expected_seconds(1000) == pytest.approx(1000 * compiled + compiling)
    assert H.expected_saved_bytes(1, 2**20) == 0
    plain = priced(0.5, 0.4, engine="autograd")
    assert plain.expected_seconds(1000) == 500.0
    plain._product._plain.stop()
    assert plain.expected_seconds(1000) == pytest.approx(900.0)


def test_a_first_recording_has_the_tracer_to_import(monkeypatch):
    """A process that records nothing does without; a small network's recording takes less than that."""
    monkeypatch.delitem(sys.modules, recordings._TRACER, raising=False)
    prices = priced(0.018, 0.01)._product._prices()
    assert prices.recording == pytest.approx(300 * recordings._PACE[0] + recordings.SECONDS_TO_IMPORT)
    monkeypatch.setitem(sys.modules, recordings._TRACER, recordings)
    assert priced(0.018, 0.01)._product._prices().recording == pytest.approx(300 * recordings._PACE[0])


def test_a_slow_double_backward_is_recorded_early(monkeypatch):
    """As of convolutions with long kernels: a product takes several gradients, a recorded one does not."""
    monkeypatch.setattr(recordings, "_PACE", [0.01])
    monkeypatch.setattr(recordings, "SECONDS_TO_IMPORT", 0.0)
    slow, usual = priced(1.0, 0.2)._product._prices(), priced(0.3, 0.2)._product._prices()
    assert slow.records(10)
    assert slow.time_to_try(10, spent=0.0) == 0  # the attempt could cost a tenth of all that comes
    assert slow.time_to_try(60, spent=0.0) == 3.0
    assert slow.time_to_try(10, spent=20.0) == 4.0
    assert not usual.records(60)


@pytest.mark.parametrize("kind", ["number", "whole number"])
def test_what_cannot_be_recorded_is_not_tried_again(monkeypatch, kind):
    """A number that the loss reads ends the recording; a whole number gets into it, and it cannot be used."""
    case, tries = mlp(), []
    real = tracing.record
    monkeypatch.setattr(recordings, "record", lambda *arguments: tries.append(1) or real(*arguments))
    monkeypatch.setattr(recordings, "MOST_BATCHES", 0)  # none is recorded by itself

    def loss(model, batch):
        far = (batch[0] > 1e9).sum() if kind == "whole number" else (batch[0] > 1e9).double().mean()
        return (model(batch[0]) * (1 + far.item())).square().mean()

    plans = set()
    for _ in range(2):
        H = hvpspec.HessianOperator(case.model, loss, case.data, engine="linearized")
        H @ torch.ones(H.shape[0], dtype=torch.float64)
        assert H.engine == "autograd"
        plans.add(H.plan)
    assert tries == [1]
    assert len(plans) == 1


def test_a_recording_is_used_by_the_next_operator_on_the_same_model(monkeypatch):
    case, made = mlp(), []
    real = tracing.record
    monkeypatch.setattr(recordings, "record", lambda *arguments: made.append(1) or real(*arguments))

    def product(loss="cross_entropy", **options):
        H = hvpspec.HessianOperator(case.model, loss, case.data, engine="linearized", **options)
        v = torch.ones(H.shape[0], 1, dtype=H.torch_dtype)
        found = H @ v
        assert H.engine == "linearized"
        assert relative(found, autograd.hvp(H.objective, v)) < 1e-5
        return len(made)

    shapes = product()
    with torch.no_grad():
        for p in case.model.parameters():
            p.mul_(1.1)
    assert product() == shapes
    assert product(dtype="float32") == 2 * shapes  # another precision, another recording
    assert product(loss=lambda model, batch: model(batch[0]).square().mean()) == 3 * shapes
    case.model.scale = 2.0  # which a recording could hold
    assert product(loss=lambda model, batch: model(batch[0]).square().mean()) == 4 * shapes


def test_recordings_do_not_keep_a_model_alive():
    def recorded():
        case = mlp()
        model = case.model
        H = hvpspec.HessianOperator(model, lambda m, b: model(b[0]).square().mean(), case.data, engine="linearized")
        H @ torch.ones(H.shape[0], dtype=torch.float64)
        assert H.engine == "linearized"
        return weakref.ref(model)

    alive = recorded()
    gc.collect()
    assert alive() is None


def test_an_attempt_to_record_that_takes_too_long_ends_in_its_forward_pass():
    case, steps = mlp(), []

    def loss(model, batch):
        out = model(batch[0])
        for _ in range(200):
            steps.append(1)
            time.sleep(0.001)
            out = out + 0.1 * out.tanh()
        return out.square().mean()

    H = hvpspec.HessianOperator(case.model, loss, case.data, verify=False)
    v = torch.ones(H.shape[0], 1, dtype=torch.float64)
    expected = H @ v
    steps.clear()
    H._product._record(0.05)
    assert len(steps) < 100
    assert H.plan.startswith("autograd (recording failed: TooLong")
    assert torch.equal(H @ v, expected)


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
    plain = operator(engine="autograd", memory_limit="1MiB")
    assert plain.expected_saved_bytes(100, 2**30) == 2**20  # of graphs
    assert plain.expected_saved_bytes(1, 2**30) == 0
    for _ in range(2):
        plain @ torch.ones(H.shape[0])
    assert plain.expected_saved_bytes(100, 2**30) == 0


def test_an_engine_that_failed_is_not_tried_again_where_a_run_goes_on(monkeypatch):
    """In the last product before an interruption: what the next one would have known is in the state."""
    case = mlp()
    monkeypatch.setattr(changes, "costs_on", lambda device: None)
    monkeypatch.setattr(prices.Prices, "records", lambda *_: True)
    monkeypatch.setattr(prices.Prices, "time_to_try", lambda *_: 1e9)
    monkeypatch.setattr(changes, "_MAX_COST_RATIO", 1e9)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    v = torch.ones(H.shape[0], 1, dtype=torch.float64)
    expected = H @ v
    H @ v
    assert H.engine == "linearized"
    unbroken = H.state()

    with monkeypatch.context() as breaking:
        breaking.setattr(Linearized, "__call__", mock.Mock(side_effect=RuntimeError("broken")))
        assert relative(H @ v, expected) <= 1e-12
    other = hvpspec.HessianOperator(case.model, case.loss, case.data)
    other.resume(H.state())
    assert relative(other @ v, expected) <= 1e-12
    assert other.engine == H.engine == "autograd"
    H.resume(unbroken)  # what this operator has met with since is not of that run
    assert relative(H @ v, expected) <= 1e-12
    assert H.engine == "linearized"


@needs_compiler
def test_an_engine_that_is_compiled_is_not_compiled_again(monkeypatch):
    case, made = mlp(), []
    real = Linearized.compile
    monkeypatch.setattr(Linearized, "compile", lambda fast: made.append(1) or real(fast))
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="compiled")
    v = torch.ones(H.shape[0], 1, dtype=torch.float64)
    H @ v
    for known in (H.chosen, None):
        H.follow(known)
        H @ v
    assert H.plan.startswith("linearized, compiled")
    assert made == [1]
