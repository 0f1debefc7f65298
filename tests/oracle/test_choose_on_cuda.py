"""Which engine is chosen on CUDA, as far as a CPU can show it; how products are timed; prices."""

from dataclasses import replace

import pytest
import torch
from oracle.comparison import free_to_compile, operators, relative
from zoo import mlp

import hvpspec
from hvpspec.oracle import choose
from hvpspec.oracle.choice import changes, prices
from hvpspec.oracle.recorded import linearized


class OnCuda:
    """What the Chooser does where graphs can be captured. seconds: of a product by each form, as it measures them."""

    def __init__(self, monkeypatch, seconds, costs=prices.COSTS["cuda"]):
        self.tried = []

        def change(form):
            def changed(fast):
                self.tried.append(form)
                fast.together, fast.form = 1, form
                fast._graphs = {-1: None} if form == "CUDA graph" else {}

            return changed

        monkeypatch.setattr(changes, "costs_on", lambda device: costs)
        monkeypatch.setattr(linearized.Linearized, "capture", change("CUDA graph"))
        monkeypatch.setattr(linearized.Linearized, "compile", change("compiled"))
        monkeypatch.setattr(choose.Chooser, "_measure", lambda chooser: seconds[chooser._fast.form])

    def run(self):
        """An operator after many products, with one expected to be far more."""
        case = mlp()
        H = hvpspec.HessianOperator(case.model, case.loss, case.data)
        reference, _ = operators(case)
        v = torch.randn(H.shape[0], 1, dtype=torch.float64)
        H @ v
        H.expect(10**6)
        for _ in range(3):
            assert relative(H @ v, reference @ v) <= 1e-12
        return H


def test_a_graph_is_captured_before_it_is_decided_whether_recording_pays(monkeypatch):
    """The eager form is slow where launching its operations takes most of the time."""
    gpu = OnCuda(monkeypatch, {"eager": 1e9, "CUDA graph": 1e-9})
    assert gpu.run().plan.startswith("linearized, CUDA graph")
    assert gpu.tried == ["CUDA graph"]  # that compiling costs more than it can save is clear


def test_a_recording_that_is_slow_in_every_form_is_not_used(monkeypatch):
    gpu = OnCuda(monkeypatch, {"eager": 1e9, "CUDA graph": 2e9})
    assert gpu.run().plan.startswith("autograd (the linearized engine is not faster here)")
    assert gpu.tried == ["CUDA graph"]


@pytest.mark.parametrize("compiled", [1e-9, 1e9])
def test_compiling_is_tried_on_cuda_and_the_graph_is_captured_again_where_it_is_faster(monkeypatch, compiled):
    costs = replace(free_to_compile(), captures=True)
    gpu = OnCuda(monkeypatch, {"eager": 1e9, "CUDA graph": 1e-6, "compiled": compiled}, costs)
    H = gpu.run()
    assert gpu.tried == ["CUDA graph", "compiled"] + ["CUDA graph"] * (compiled > 1)
    assert H.plan.startswith("linearized, compiled" if compiled < 1 else "linearized, CUDA graph")
    assert H._product._settled


def test_products_are_timed_until_the_device_has_done_them(monkeypatch):
    """A device that takes a second for each product, while the CPU goes on at once."""
    queued, now = [0.0], [0.0]

    def time_when_done(device):
        now[0] += queued[0]
        queued[0] = 0.0
        return now[0]

    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="autograd", verify=False)
    monkeypatch.setattr(choose, "time_when_done", time_when_done)
    real = choose.Chooser._product

    def product(self, columns, on_batch):
        queued[0] += columns.shape[1]
        return real(self, columns, on_batch)

    monkeypatch.setattr(choose.Chooser, "_product", product)
    queued[0] = 7.0  # of somebody else's, which the product has to wait for
    H @ torch.ones(H.shape[0], 3, dtype=torch.float64)
    assert H._product._seconds == 1.0
    assert H._product._spent == 3.0


def test_a_new_engine_is_compared_with_a_product_that_is_warm_too(monkeypatch):
    """The first product also computes the graphs: next to it, a recording that is slower than later ones looks fast."""
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, verify=False)
    v = torch.randn(H.shape[0], 1, dtype=torch.float64)
    H @ v
    chooser = H._product
    monkeypatch.setattr(type(chooser._plain), "seconds", property(lambda self: 0.1))
    monkeypatch.setattr(choose.Chooser, "_measure", lambda self: 0.5)
    chooser._seconds = 1.0
    chooser._record()
    assert H.plan.startswith("autograd (the linearized engine is not faster here)")
    assert chooser._seconds == 0.1


def test_prices_are_those_of_the_device():
    assert prices.costs_on(torch.device("cpu")) != prices.costs_on(torch.device("cuda"))
    assert prices.costs_on(torch.device("meta")) is None
    common = {"product": 1.0, "graphs": 0.9, "recording": 0.0, "nodes": 100}
    on = {kind: prices.Prices(**common, costs=prices.costs_on(torch.device(kind))) for kind in ("cpu", "cuda", "meta")}
    assert on["cuda"].saved_and_cost(10**4)[1] > on["cpu"].saved_and_cost(10**4)[1]  # compiling takes longer
    assert on["meta"].saved_and_cost(10**4)[1] == 1.0 + 3 * 0.93  # it is recorded and no more


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_auto_on_a_gpu_is_not_slower_than_the_plain_engine(monkeypatch):
    monkeypatch.setitem(prices.COSTS, "cuda", free_to_compile())
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, device="cuda")
    plain = hvpspec.HessianOperator(case.model, case.loss, case.data, device="cuda", engine="autograd")
    v = torch.randn(H.shape[0], 1, dtype=torch.float64, device="cuda")
    H @ v
    H.expect(10**6)
    for _ in range(5):
        assert relative(H @ v, plain @ v) <= 1e-12
    assert H._product._settled, H.plan
    assert H.expected_seconds(1) <= 1.2 * plain.expected_seconds(1), H.plan
