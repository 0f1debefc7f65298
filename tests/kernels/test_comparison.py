"""Tensors are compared to the bit: once, and as far as it can be prepared for many times."""

import gc
import pickle

import pytest
import torch
from torch import nn

from hvpspec.kernels import comparison
from hvpspec.kernels.comparison import differ, prepared, same
from hvpspec.kernels.deferred import Deferred, Doubtful
from hvpspec.kernels.placed import Placed
from hvpspec.objective.live_model import LiveValues, named_tensors

SHAPES = [(3,), (), (0,), (5, 7), (1 << 15,), (70_001,), (300, 301), (1 << 17,)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_are_compared_to_the_bit(dtype):
    tensors = [(100 * torch.randn(shape)).to(dtype) for shape in SHAPES]
    tensors += [tensors[6].T, tensors[7][3:], tensors[4][1:][::2]]
    copies = [tensor.clone() for tensor in tensors]
    assert same(tensors, copies)
    assert not bool(differ([tensors[7][1:]], [tensors[7][1:].clone()]))
    assert bool(differ([tensors[0]], [tensors[0].to(torch.complex64)]))
    assert bool(differ(tensors, [*copies[:-1], copies[-1][1:]]))
    for tensor, changed in zip(tensors, copies, strict=True):
        for place in (0, -1):
            if not changed.numel():
                continue
            flat = changed if changed.ndim == 1 else changed.reshape(-1)
            before = flat[place].clone()
            flat[place] = ~before if dtype == torch.bool else before + 1 if before.abs() < 200 else 0
            changed.copy_(flat.reshape(changed.shape))
            assert not same(tensors, copies), (tuple(tensor.shape), place)
            flat[place] = before
            changed.copy_(flat.reshape(changed.shape))
            assert same(tensors, copies)
    assert not same(tensors, copies[:-1])
    assert not same([tensors[0]], [tensors[0][:2]])


def test_what_is_not_a_number_is_what_it_was():
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])
    assert same([values], [values.clone()])


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_prepared_comparison_sees_each_bit(monkeypatch, dtype, on_gpu):
    """on_gpu: in the groups that are compared on a GPU."""
    if on_gpu:
        joined = comparison._joined_up_to
        monkeypatch.setattr(comparison, "_joined_up_to", lambda most, pairs: joined(1 << 20, pairs))
    tensors = [(100 * torch.randn(shape)).to(dtype) for shape in SHAPES]
    tensors += [tensors[6].T, (100 * torch.randn(9, 5, 7, 11)).to(dtype, memory_format=torch.channels_last)]
    ready = prepared(tensors, [tensor.clone() for tensor in tensors])
    assert ready.is_of(tensors)
    assert ready.same()
    for tensor in tensors:
        for place in (0, tensor.numel() // 2, -1) if tensor.numel() else ():
            entry = torch.as_strided(tensor, (tensor.numel(),), (1,))
            before = entry[place].clone()
            entry[place] = ~before if dtype == torch.bool else before + 1 if before.abs() < 200 else 0
            assert not ready.same(), (tuple(tensor.shape), place)
            deferred = Deferred()
            assert ready.same(deferred)
            with pytest.raises(Doubtful):
                deferred.read()
            entry[place] = before
            assert ready.same()


def test_what_has_no_order_of_bytes_cannot_be_prepared():
    square = torch.randn(40, 40)
    for tensor in (
        square[:, :20],
        square[0].expand(40, 40),
        torch.randn(9)[1:],
        square.to_sparse(),
        square.cfloat().conj(),
    ):
        assert prepared([square, tensor], [square.clone(), tensor]) is None
    assert prepared([square], [square.clone().T]) is None
    assert prepared([], []).same()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 40, 3), nn.BatchNorm2d(40), nn.Linear(30, 200))
        self.tied = self.inner[2]
        self.inner[1].running_var.add_(1)
        self.first, self.second = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))


def write_by_numpy(net):
    net.inner[2].weight.detach().numpy()[3, 4] += 1


def exchange(net):
    net.first, net.second = net.second, net.first


def rename(net):
    net.third = net.second
    del net.second


CHANGES = {
    "in place": lambda net: net.first.data.mul_(2),
    "unseen by torch": write_by_numpy,
    "other memory": lambda net: setattr(net.inner[0].weight, "data", net.inner[0].weight.data + 1),
    "another module": lambda net: net.inner.__setitem__(1, nn.BatchNorm2d(40, eps=1.0, momentum=None)),
    "statistics": lambda net: net.inner[1].running_mean.add_(1),
    "another shape": lambda net: setattr(net.first, "data", net.first.data[None]),
    "exchanged": exchange,
    "renamed": rename,
    "a further one": lambda net: net.register_buffer("further", torch.zeros(3)),
}


def values_of(net):
    return {name: tensor.detach().clone() for name, tensor in named_tensors(net)}


def moment():
    """Anything that can be referred to weakly."""
    return Placed(torch.device("cpu"))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", [1, 3])
def test_a_change_of_a_model_is_seen(change, before):
    """Whether or not the comparison has been prepared."""
    net, then = Net(), moment()
    values, live = values_of(net), LiveValues(net, Placed(torch.device("cpu")), torch.float32)
    for _ in range(before):
        assert live.are(then, lambda: values, None)
    CHANGES[change](net)
    deferred = Deferred()
    if live.are(then, lambda: values, deferred):
        with pytest.raises(Doubtful):
            deferred.read()
    assert not live.are(then, lambda: values, None)
    again = values_of(net)
    assert live.are(moment(), lambda: again, None)


def test_a_model_in_another_precision_has_the_same_values():
    net, then = Net(), moment()
    values, live = values_of(net), LiveValues(net, Placed(torch.device("cpu")), torch.float32)
    for _ in range(3):
        assert live.are(then, lambda: values, None)
        net.double()
    net.first.data[0] += 1e-3
    assert not live.are(then, lambda: values, None)


def test_same_values_in_other_memory_are_the_same():
    net, then = Net(), moment()
    values, live = values_of(net), LiveValues(net, Placed(torch.device("cpu")), torch.float32)
    for _ in range(3):
        assert live.are(then, lambda: values, None)
        net.first.data = net.first.data.clone()


def test_a_comparison_keeps_no_values_that_are_dropped():
    net, then = Net(), moment()
    values, live = values_of(net), LiveValues(net, Placed(torch.device("cpu")), torch.float32)
    for _ in range(2):
        assert live.are(then, values.copy, None)
    assert live._prepared is not None
    del then
    gc.collect()
    assert live._prepared is None
    assert pickle.loads(pickle.dumps(live)).are(moment(), values.copy, None)
