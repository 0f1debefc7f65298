"""Products in several threads, and training meanwhile: right figures, and everything restored in every order."""

import random
import threading
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import hvpspec
from hvpspec.kernels import torch_kernels

WAIT = 0.15  # seconds for another thread to come as far as it can


def state():
    """What a process has once, and products change."""
    return (
        torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(), torch.backends.mha.get_fastpath_enabled(),
        torch.utils.checkpoint.CheckpointFunction, torch.autograd._engine_run_backward,
        torch._C._get_graph_executor_optimize(), tuple(map(str, warnings.filters)),
        random.getstate(), torch.random.get_rng_state().numpy().tobytes(), str(np.random.get_state()),  # noqa: NPY002
    )  # fmt: skip


class Net(nn.Module):
    """With attention, dropout, a reentrant checkpoint, and a place where the test can stop a thread."""

    def __init__(self, width, stop=lambda: None):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(0.5))
        self.out = nn.Linear(width, 2)
        self.stop = stop
        self.recorded = []  # whether the checkpoint ran its function with a graph: a reentrant one does not, at first

    def part(self, x):
        self.recorded.append(torch.is_grad_enabled())
        return self.inner(x)

    def forward(self, x):
        x = torch.utils.checkpoint.checkpoint(self.part, x, use_reentrant=True)
        x = nn.functional.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None])[0, 0]
        self.stop()
        return self.out(x)


def problem(width, stop=lambda: None, **options):
    generator = torch.Generator().manual_seed(width)
    torch.manual_seed(width)
    model = Net(width, stop)
    data = [(torch.randn(5, width, generator=generator), torch.tensor([0, 1, 0, 1, 1])) for _ in range(2)]
    usual = {"dtype": "float64", "engine": "autograd", "noise_seed": 3, "train_mode": True}
    return operator(model, data, **{**usual, **options})


def operator(model, data, *, train_mode, **options):
    H = hvpspec.HessianOperator(model, "cross_entropy", data, verify=False, **options)
    H.objective.train_mode = train_mode  # dropout draws random numbers
    return H


def in_threads(*works):
    """What each returns; an exception in one is raised."""
    found = [None] * len(works)

    def run(number, work):
        try:
            found[number] = work()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


class Interleaved:
    """Stops each thread inside its evaluation until the other one is inside too, or has had the time to get there."""

    def __init__(self, first_to_leave):
        self.first_to_leave = first_to_leave
        self.inside = [threading.Event(), threading.Event()]
        self.left = [threading.Event(), threading.Event()]
        self.met = False

    def stop(self, me):
        self.inside[me].set()
        self.met |= self.inside[1 - me].wait(WAIT)
        if me != self.first_to_leave:
            self.left[1 - me].wait(WAIT)
        self.inside[me].clear()


@pytest.mark.parametrize("first_to_leave", [0, 1])
def test_two_models_in_two_threads(first_to_leave):
    """As far as the lock lets them, one enters, the other enters, and they leave in either order."""
    widths = (4, 6)
    serial = [problem(width) for width in widths]
    vectors = [torch.randn(H.shape[0], 2, dtype=torch.float64) for H in serial]
    expected = [H @ v for H, v in zip(serial, vectors, strict=True)]
    meeting = Interleaved(first_to_leave)
    operators = [problem(width, partial(meeting.stop, me)) for me, width in enumerate(widths)]
    before = state()

    def product(me):
        found = operators[me] @ vectors[me]
        meeting.left[me].set()
        return found

    found = in_threads(lambda: product(0), lambda: product(1))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert state() == before
    assert not meeting.met  # products take turns


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
def test_two_spectra_in_two_threads(engine):
    """Whole runs, with whatever engine: the same figures as one after the other."""

    def run(H):
        return hvpspec.spectrum(H, 2, seed=1, rtol=0.1)

    # The models' weights are drawn before, as threads share the generator that draws them.
    first, second = (
        [problem(width, engine=engine, noise_seed=None, train_mode=False) for width in (4, 6)] for _ in "12"
    )
    expected = [run(H) for H in first]
    before = state()[:8]
    for one, other in zip(in_threads(*(partial(run, H) for H in second)), expected, strict=True):
        assert one.eigenpairs.values == pytest.approx(other.eigenpairs.values, rel=1e-10)
        assert one.trace.value == pytest.approx(other.trace.value, rel=1e-10)
        assert one.hvps == other.hvps
    assert state()[:8] == before


def test_operators_of_one_model_in_two_threads():
    """While one evaluates in float64, the other must not take the model's values for new ones."""
    model, data = problem(4).objective.model, problem(4).objective.data
    plain = operator(model, data, train_mode=False, dtype="float64", engine="autograd")
    fast = operator(model, data, train_mode=False, dtype="float32", engine="linearized")
    v = torch.randn(plain.shape[0], 1, dtype=torch.float64)
    expected = [plain @ v, fast @ v.float()]
    prepared = []
    prepare = fast._product._fast.prepare
    fast._product._fast.prepare = lambda *arguments: prepared.append(arguments) or prepare(*arguments)
    found = in_threads(lambda: [plain @ v for _ in range(15)], lambda: [fast @ v.float() for _ in range(60)])
    for products, one in zip(found, expected, strict=True):
        assert all(torch.equal(product, one) for product in products)
    assert prepared == []
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def steps_of_training(model, count):
    """Gradient descent with a reentrant checkpoint; the parameters, and how the checkpoint ran."""
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for _ in range(count):
        loss = model(x).square().sum()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    return [parameter.detach().clone() for parameter in model.parameters()], model.recorded


def test_a_thread_that_trains_meanwhile_is_not_disturbed():
    """Its checkpoints stay reentrant, its backward is its own, its modes and generators are not touched."""

    def trained(model):
        return steps_of_training(model, 5)

    torch.manual_seed(1)
    reference = Net(4).eval()
    expected, recorded = trained(reference)
    torch.manual_seed(1)
    model = Net(4).eval()
    inside, done = threading.Event(), threading.Event()

    def stop():
        inside.set()
        done.wait(60)  # the whole training happens inside one evaluation of the other thread

    H = problem(6, stop)
    v = torch.randn(H.shape[0], 1, dtype=torch.float64)

    def train():
        assert inside.wait(60)
        assert torch_kernels._EVALUATING.get() is False
        try:
            return trained(model)
        finally:
            done.set()

    product, (found, how) = in_threads(lambda: H @ v, train)
    assert how == recorded == [False, True] * 5  # without a graph, and recomputed with one
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5)  # attention may run with another kernel
    assert torch.equal(product, problem(6) @ v)
