"""Copies of model and data on another device, with a stand-in for that device: memory that is not the user's."""

import copy
import pickle

import pytest
import torch
from torch import nn
from zoo import CASES, mlp

import hvpspec
from hvpspec.kernels import placed
from hvpspec.kernels.placed import Placed
from hvpspec.oracle import autograd

ENGINES = [("autograd", None), ("autograd", 1), ("linearized", None), ("linearized", 1)]


class Elsewhere:
    """What the user holds is elsewhere; copies are counted."""

    def __init__(self, case):
        self.case, self.copies, self.theirs = case, 0, set()

    def copied(self, tensor, device, dtype):
        self.copies += 1
        return tensor.to(device, dtype, copy=True)


def elsewhere(case, monkeypatch):
    """The user's memory now, whatever tensors hold while products are made."""
    fake = Elsewhere(case)
    monkeypatch.setattr(placed, "copied", fake.copied)
    monkeypatch.setattr(placed, "is_elsewhere", lambda tensor, device: tensor.data_ptr() in fake.theirs)
    see(fake)
    return fake


def see(fake):
    case = fake.case
    tensors = [*case.model.parameters(), *case.model.buffers(), *(t for batch in case.data for t in batch)]
    fake.theirs = {t.data_ptr() for t in tensors}
    fake.copies = 0


def step(case):
    with torch.no_grad():
        for p in case.model.parameters():
            p.add_(0.1)


def through_data(case):
    next(case.model.parameters()).data.mul_(1.3)


def rebound(case):
    p = next(case.model.parameters())
    p.data = p.data + 0.2


def statistics(case):
    next(iter(case.model.buffers())).data.add_(0.5)


def batch_through_data(case):
    case.data[1][0].data.mul_(1.5)


def other_batch(case):
    case.data[1] = (case.data[1][0] + 1, case.data[1][1])


CHANGES = {step: 6, through_data: 1, rebound: 1, statistics: 1, batch_through_data: 1, other_batch: 1}


@pytest.mark.parametrize(("engine", "limit"), ENGINES)
def test_nothing_is_copied_twice_and_what_changes_is(engine, limit, monkeypatch):
    case = CASES["cnn with batchnorm"]()
    fake = elsewhere(case, monkeypatch)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine=engine, memory_limit=limit)
    V = torch.randn(H.shape[0], 2, dtype=torch.float64)
    own = [(p, p.data_ptr()) for p in case.model.parameters()]
    for _ in range(2):
        H @ V
    assert fake.copies > 0
    for change, tensors in CHANGES.items():
        fake.copies = 0
        H @ V
        assert fake.copies == 0
        assert all(p.data_ptr() == address for p, address in own)
        change(case)
        see(fake)
        own = [(p, p.data_ptr()) for p in case.model.parameters()]
        if not (engine == "linearized" and limit is None and "batch" in change.__name__):  # data are not read again
            expected = autograd.hvp(hvpspec.HessianOperator(case.model, case.loss, case.data).objective, V)
            fake.copies = 0
            assert torch.allclose(H @ V, expected, rtol=1e-11, atol=1e-13), change.__name__
            assert fake.copies <= tensors + 1, change.__name__


def test_a_forward_pass_that_writes_to_its_input(monkeypatch):
    case = mlp()
    inner = case.model.forward
    case.model.forward = lambda x: inner(x.mul_(0.5))
    case.data = [tuple(t.clone() for t in batch) for batch in case.data]
    fake = elsewhere(case, monkeypatch)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="autograd", memory_limit=1, verify=False)
    v = torch.randn(H.shape[0], dtype=torch.float64)
    first = H @ v
    for _ in range(3):
        assert torch.allclose(H @ v, first, rtol=1e-13)
    assert fake.copies > 0


def test_copies_of_batches_are_limited(monkeypatch):
    case = mlp()
    fake = elsewhere(case, monkeypatch)
    monkeypatch.setattr(placed, "free_memory", lambda device: 10 * case.data[0][0].nbytes + 1)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="autograd", memory_limit=1)
    v = torch.randn(H.shape[0], dtype=torch.float64)
    for _ in range(2):
        H @ v
    assert 0 < H.objective._moved.size <= case.data[0][0].nbytes
    see(fake)
    H @ v
    assert 0 < fake.copies <= 2 * len(case.data) - 1


def test_a_copy_of_the_operator_has_its_own(monkeypatch):
    case = mlp()
    elsewhere(case, monkeypatch)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="autograd")
    v = torch.randn(H.shape[0], dtype=torch.float64)
    expected = H @ v
    assert H.objective._values.size > 0
    for again in (copy.deepcopy(H), pickle.loads(pickle.dumps(H))):
        assert again.objective._values.size == 0
        assert torch.equal(again @ v, expected)


def test_other_dtypes_and_a_device_without_values():
    """`meta` is a device like any other, as far as copies go."""
    device = torch.device("meta")
    for dtype in (torch.bfloat16, torch.float32, torch.int64, torch.bool):
        found, tensor = Placed(device), torch.ones(3).to(dtype)
        one = found.trusted(tensor, torch.float64)
        assert (one.device, one.dtype) == (device, torch.float64 if dtype.is_floating_point else dtype)
        assert found.trusted(tensor, torch.float64) is one
        tensor.data.fill_(0)
        assert found.trusted(tensor, torch.float64) is one
        assert not found.unchanged()
        assert found.trusted(tensor, torch.float64) is not one
        assert found.unchanged()
        assert found.size == 3 * one.element_size()


@pytest.mark.gpu
@pytest.mark.parametrize(("engine", "limit"), ENGINES)
def test_a_model_on_the_cpu_and_products_on_a_gpu(engine, limit):
    case = CASES["cnn with batchnorm"]()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine=engine, memory_limit=limit, device="cuda")
    reference = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="autograd")
    V = torch.randn(H.shape[0], 2, dtype=torch.float64)
    for change in (step, through_data, rebound, statistics):
        for _ in range(2):
            assert torch.allclose(H @ V, reference @ V, rtol=1e-9, atol=1e-11)
        assert {p.device.type for p in case.model.parameters()} == {"cpu"}
        change(case)
    assert torch.allclose(H @ V, reference @ V, rtol=1e-9, atol=1e-11)


@pytest.mark.gpu
def test_a_second_product_copies_nothing_to_the_gpu():
    model = nn.Sequential(nn.Linear(50, 60), nn.Tanh(), nn.Linear(60, 3))
    data = [(torch.randn(20, 50), torch.randint(0, 3, (20,))) for _ in range(3)]
    H = hvpspec.HessianOperator(model, "cross_entropy", data, device="cuda", engine="autograd", memory_limit=1)
    v = torch.randn(H.shape[0], device="cuda")
    for _ in range(3):
        H @ v
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        H @ v
    assert not [event.name for event in profile.events() if "HtoD" in event.name and "Pageable" in event.name]
