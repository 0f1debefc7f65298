"""Products as CUDA graphs, with a stand-in for captures where there is no GPU: it runs the same work at each replay,
and writes to the same place."""

import contextlib

import pytest
import torch
from oracle.comparison import operators, relative
from torch import nn
from zoo import CASES, mlp

import hvpspec
from hvpspec.oracle.recorded import cuda_graph
from hvpspec.oracle.recorded.cuda_graph import Replay, own_random_state


class Recorder:
    def __init__(self):
        self.captures = self.replays = 0
        self.vectors = []

    def capture(self, work, device, pool):
        self.captures += 1
        result = work()

        def run():
            self.replays += 1
            self.vectors.append(len(result))
            result.copy_(work())

        return Replay(run, result)


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(cuda_graph, "capture", recorder.capture)
    return recorder


def captured(case):
    reference, _ = operators(case)
    return reference, hvpspec.HessianOperator(case.model, case.loss, case.data, engine="cudagraph")


def step(case):
    with torch.no_grad():
        for p in case.model.parameters():
            p.add_(0.1 * torch.randn_like(p))


def through_data(case):
    for p in case.model.parameters():
        p.data.mul_(1.3)


def loaded(case):
    case.model.load_state_dict({name: 1.1 * value for name, value in case.model.state_dict().items()})


def statistics(case):
    for buffer in case.model.buffers():
        buffer.mul_(2)
    step(case)


def new_parameter(case):
    layer = next(m for m in case.model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    layer.weight = nn.Parameter(layer.weight.detach() * 1.1)


def written_batch(case):
    case.data[1][0].mul_(1.5)


@pytest.mark.parametrize("name", ["mlp", "cnn with batchnorm", "tied weights"])
def test_new_values_are_copied_to_where_the_graphs_read(name, recorder):
    case = CASES[name]()
    reference, fast = captured(case)
    v = torch.randn(fast.shape[0], dtype=torch.float64)
    assert relative(fast @ v, reference @ v) <= 1e-12
    assert "CUDA graph" in fast.plan
    made, batches = recorder.captures, fast.batch_count()
    assert made == batches
    for change in (step, through_data, loaded, statistics):
        change(case)
        expected = reference @ v
        recorder.replays = 0
        assert relative(fast @ v, expected) <= 1e-12
        assert recorder.replays >= batches  # once more where the change shows only when the product is made
        recorder.replays = 0
        assert relative(fast @ v, expected) <= 1e-12
        assert recorder.replays == batches
    assert recorder.captures == made
    assert "CUDA graph" in fast.plan


def test_other_changes_are_replayed_too(recorder):
    case = mlp()
    reference, fast = captured(case)
    v = torch.randn(fast.shape[0], dtype=torch.float64)
    fast @ v
    for change in (new_parameter, written_batch):
        change(case)
        recorder.replays = 0
        assert relative(fast @ v, reference @ v) <= 1e-12
        assert recorder.replays >= fast.batch_count()


def test_the_data_of_others_are_not_written_over(recorder):
    case = mlp()
    reference, fast = captured(case)
    v = torch.randn(fast.shape[0], dtype=torch.float64)
    fast @ v
    first = case.data[0]
    copies = [tensor.clone() for tensor in first]
    case.data[0] = (first[0] + 1, first[1])
    step(case)
    assert relative(fast @ v, reference @ v) <= 1e-12
    for tensor, copy in zip(first, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_a_number_that_the_recording_holds(recorder):
    """Another recording, of which graphs are captured at once."""
    case = mlp()
    case.model.scale = 1.0
    case.loss = lambda model, batch: nn.functional.cross_entropy(model.scale * model(batch[0]), batch[1])
    reference, fast = captured(case)
    v = torch.randn(fast.shape[0], dtype=torch.float64)
    fast @ v
    case.model.scale = 2.0
    for _ in range(2):
        recorder.replays = 0
        assert relative(fast @ v, reference @ v) <= 1e-12
    assert recorder.replays == fast.batch_count()


def test_several_vectors_are_captured_together(recorder, monkeypatch):
    from hvpspec.oracle.recorded import linearized

    case = mlp()
    reference, fast = captured(case)
    fast @ torch.ones(fast.shape[0], dtype=torch.float64)
    costs = iter([1.0, 1.0, 1.0, 4.0])  # of one vector, and of two, four and eight together
    monkeypatch.setattr(linearized, "_fastest", lambda work, device: next(costs) if work() is not None else 0)
    V = torch.randn(fast.shape[0], 11, dtype=torch.float64)
    assert relative(fast @ V, reference @ V) <= 1e-12
    assert "4 vectors together" in fast.plan
    recorder.vectors.clear()
    recorder.captures = 0
    step(case)
    assert relative(fast @ V, reference @ V) <= 1e-12
    assert recorder.captures == 0
    assert recorder.vectors[-5:] == [4, 4, 1, 1, 1]
    assert "CUDA graph" in fast.plan


def test_a_capture_that_fails_leaves_the_engine_as_it_was(monkeypatch):
    case = mlp()
    reference, _ = operators(case)

    def fails(work, device, pool):
        work()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "capture", fails)
    fast = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="cudagraph")
    V = torch.randn(fast.shape[0], 3, dtype=torch.float64)
    for _ in range(2):
        assert relative(fast @ V, reference @ V) <= 1e-12
    assert fast.plan.startswith("linearized, eager")
    assert "not captured: operation not permitted" in fast.plan


class Generator:
    """As a CUDA generator: copies share its state until another one is set."""

    def __init__(self, state):
        self.state = state

    def graphsafe_get_state(self):
        return Generator(self.state)

    def graphsafe_set_state(self, other):
        self.state = other.state

    def clone_state(self):
        return Generator(dict(self.state))


def test_a_capture_that_fails_leaves_the_generator_alone():
    generator = Generator({"capturing": False, "offset": 4})
    with contextlib.suppress(RuntimeError), own_random_state(generator):
        generator.state["capturing"] = True
        raise RuntimeError("capture failed")
    assert generator.state == {"capturing": False, "offset": 4}


# --- on a GPU -------------------------------------------------------------------------------------------------------


def on_gpu(case, engine, device="cuda"):
    return hvpspec.HessianOperator(case.model, case.loss, case.data, engine=engine, device=device)


@pytest.mark.gpu
def test_new_values_on_a_gpu():
    case = mlp()
    reference, fast = on_gpu(case, "autograd"), on_gpu(case, "cudagraph")
    V = torch.randn(fast.shape[0], 9, dtype=torch.float64, device="cuda")
    for change in (step, through_data, loaded):
        assert relative((fast @ V).cpu(), (reference @ V).cpu()) <= 1e-12
        change(case)
    assert relative((fast @ V).cpu(), (reference @ V).cpu()) <= 1e-12
    assert "CUDA graph" in fast.plan


@pytest.mark.gpu
def test_a_capture_that_fails_on_a_gpu():
    """Reading a number is not allowed while a graph is captured."""
    x = torch.ones(3, device="cuda")
    before = torch.cuda.get_rng_state()

    def reads():
        return x * float(x.sum())

    for _ in range(2):
        with pytest.raises(RuntimeError):
            cuda_graph.capture(reads, x.device, torch.cuda.graph_pool_handle())
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.randn(3, device="cuda")  # raises if the generator is taken to be in a capture
    replay = cuda_graph.capture(lambda: 2 * x, x.device, torch.cuda.graph_pool_handle())
    x.fill_(3)
    replay.run()
    assert replay.result.tolist() == [6, 6, 6]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_gpu_than_the_current_one():
    case = mlp()
    reference, fast = on_gpu(case, "autograd", "cuda:1"), on_gpu(case, "cudagraph", "cuda:1")
    v = torch.randn(fast.shape[0], dtype=torch.float64, device="cuda:1")
    assert torch.cuda.current_device() == 0
    assert relative((fast @ v).cpu(), (reference @ v).cpu()) <= 1e-12
    assert "CUDA graph" in fast.plan
