"""Modes and attributes of the user's modules: renewed before each batch, and few steps where there is little to do."""

from collections import OrderedDict, deque

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import BertConfig, BertForSequenceClassification

from hvpspec.kernels import torch_kernels
from hvpspec.objective.modes import in_mode
from hvpspec.objective.objective import Objective
from hvpspec.oracle import autograd


class Cache:
    """An object that is no module's attribute by itself, and so is not restored."""

    value = None


class Trained(nn.Linear):
    """Drops in training mode what it keeps in eval mode."""

    def __init__(self, inputs=4, outputs=4):
        super().__init__(inputs, outputs)
        self.kept = Cache()

    def train(self, mode=True):
        self.kept.value = None if mode else self.kept.value
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return F.linear(x, self.weight**2, self.bias)
        if self.kept.value is None:
            self.kept.value = self.weight**2
        return F.linear(x, self.kept.value, self.bias)


class Evaluated(Trained):
    """The same by an `eval` of its own."""

    train = nn.Module.train

    def eval(self):
        self.kept.value = self.weight**2
        return super().eval()


class Observed(Trained):
    """The same where `training` is set."""

    train = nn.Module.train

    def __setattr__(self, name, value):
        if name == "training" and hasattr(self, "kept"):
            self.kept.value = None
        super().__setattr__(name, value)


class Asked(Trained):
    """The same by a property."""

    train = nn.Module.train

    @property
    def training(self):
        return vars(self)["mode"]

    @training.setter
    def training(self, mode):
        vars(self)["mode"] = mode
        if "kept" in vars(self):
            self.kept.value = None


class Instance(Trained):
    """The same by a `train` that belongs to the object."""

    train = nn.Module.train

    def __init__(self):
        super().__init__()
        vars(self)["train"] = self.its_own

    def its_own(self, mode=True):
        self.kept.value = None if mode else self.kept.value
        return nn.Module.train(self, mode)


def explicit(model, x, y):
    """The Hessian of the loss in training mode, by double autograd loops."""
    parameters = list(model.train().parameters())
    gradient = torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(F.mse_loss(model(x), y), parameters, create_graph=True)]
    )
    rows = [
        torch.autograd.grad(g, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        for g in gradient
    ]
    return torch.stack([torch.cat([piece.reshape(-1) for piece in row]) for row in rows])


@pytest.mark.parametrize("kind", [Trained, Evaluated, Observed, Asked, Instance])
def test_what_a_layer_does_when_its_mode_is_set_is_done_for_each_batch(kind):
    model = nn.Sequential(nn.Linear(3, 4), kind(), nn.Tanh()).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    expected = explicit(model, x, y)
    objective = Objective(model, "mse", list(zip(x.split(2), y.split(2), strict=True)))
    v = torch.randn(objective.space.n, 2, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(autograd.hvp(objective, v), expected @ v, rtol=1e-10, atol=1e-12)
    assert model.training
    assert model[1].training


def nested(depth):
    return nn.Linear(3, 3) if depth == 0 else nn.Sequential(nested(depth - 1), nn.Dropout(0.5), nested(depth - 1))


def bert():
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    return BertForSequenceClassification(config)


@pytest.mark.parametrize("make", [lambda: nested(3), bert])
def test_ordinary_modules_are_not_asked_one_by_one(make, monkeypatch):
    model, calls = make(), []
    model.train()
    monkeypatch.setattr(nn.Module, "__setattr__", lambda self, name, value: calls.append(name))
    with in_mode(model) as afresh:
        afresh()
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())
    assert calls == []


def test_attributes_are_as_they_were():
    model = nested(1)
    layer, inner = model[0], model[2]
    layer.none, layer.number, layer.same = None, 1.0, [1]
    layer.filled, layer.empty, layer.deep = {"a": 1}, [], {"a": [1, {2}, deque([3])]}
    layer.ordered, layer.state = OrderedDict(b=2), torch.zeros(2)
    objects = {name: id(value) for name, value in vars(layer).items()}
    with in_mode(model) as afresh:
        for _ in range(2):
            del layer.none
            layer.another = 3  # as many as before
            layer.number, layer.same = 2.0, [1]
            layer.filled["b"] = 2
            layer.empty.append(1)
            layer.deep["a"][1].add(4)
            layer.deep["a"][2].clear()
            layer.ordered.clear()
            layer.state.add_(1)
            inner.register_forward_hook(print)
            afresh()
            assert {name: id(value) for name, value in vars(layer).items() if name != "training"} == {
                name: key for name, key in objects.items() if name != "training"
            }
            assert (layer.filled, layer.empty, layer.ordered) == ({"a": 1}, [], {"b": 2})
            assert layer.deep == {"a": [1, {2}, deque([3])]}
            assert layer.state.tolist() == [0, 0]
            assert not inner._forward_hooks


class Counting(TorchFunctionMode):
    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_the_package_does_not_intercept_its_own_calls(monkeypatch):
    """What is replaced is looked for in the user's loss alone: each interception takes as long as a small operation."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    batches = [(torch.randn(5, 3), torch.randint(0, 2, (5,))) for _ in range(3)]
    objective = Objective(model, "cross_entropy", batches)
    objective.settle()
    with Counting() as direct:
        F.cross_entropy(model(batches[0][0]), batches[0][1])
    count, real = [0], torch_kernels._Replacements.__torch_function__

    def counted(self, *args):
        count[0] += 1
        return real(self, *args)

    monkeypatch.setattr(torch_kernels._Replacements, "__torch_function__", counted)
    autograd.hvp(objective, torch.randn(objective.space.n, 1))
    buffers = len(list(model.buffers()))
    assert count[0] <= len(batches) * (direct.calls + 2 * buffers + 5)  # each buffer is copied, and the loss is checked
