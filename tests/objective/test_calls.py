"""How models are called with what batches hold, and what is said where a loss exists in training mode only."""

from __future__ import annotations

import copy
from collections import UserDict
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from hvpspec import HessianOperator, InputError
from hvpspec.objective.losses.calls import call_model


class OfOne(nn.Module):
    def forward(self, inputs):
        return type(inputs)


class OfTwo(nn.Module):
    def forward(self, user, item=None):
        return "spread"


class OfAny(nn.Module):
    def forward(self, *args, **kwargs):
        return len(args), sorted(kwargs)


class OfOneAndOptions(nn.Module):
    def forward(self, features, **options):
        return type(features)


@pytest.mark.parametrize("kind", [dict, UserDict, MappingProxyType])
def test_a_dict_is_spread_unless_it_is_the_only_argument(kind):
    inputs = kind({"user": 1, "item": 2})
    assert call_model(OfTwo(), inputs) == "spread"
    assert call_model(OfAny(), inputs) == (0, ["item", "user"])
    assert call_model(OfOne(), inputs) is kind
    assert call_model(OfOneAndOptions(), inputs) is kind
    assert call_model(OfOne(), kind({3: 1})) is kind
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        call_model(OfTwo(), kind({"user": 1, "other": 2}))


def test_tuples():
    assert call_model(OfTwo(), (1, 2)) == "spread"
    assert call_model(OfOne(), (1, 2)) is tuple
    assert call_model(OfAny(), [1, 2]) == (2, [])
    assert call_model(OfOne(), [1]) is int
    packed = pack_sequence([torch.zeros(2), torch.zeros(1)])
    assert call_model(OfOne(), packed) is PackedSequence
    assert call_model(OfAny(), packed) == (1, [])


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, inputs):
        entry = inputs.get if hasattr(inputs, "get") else lambda name: getattr(inputs, name)
        return (self.user(entry("user")) * self.item(entry("item"))).sum(1)


@dataclass
class Record:
    user: Tensor
    item: Tensor


@pytest.mark.parametrize("kind", [dict, lambda **e: UserDict(e), Record, SimpleNamespace])
def test_products_with_one_argument_of_any_kind(kind):
    torch.manual_seed(0)
    model, user, item, y = Towers().double(), *torch.randn(2, 5, 3, dtype=torch.float64).unbind(), torch.ones(5)
    item = item[:, :2].contiguous()
    plain = HessianOperator(
        model, lambda m, b: ((m.user(b[0]) * m.item(b[1])).sum(1) - b[2]).square().mean(), [(user, item, y)]
    )
    v = torch.randn(plain.shape[0], dtype=torch.float64)
    H = HessianOperator(model, "mse", [(kind(user=user, item=item), y)])
    assert torch.allclose(H @ v, plain @ v)
    record = kind(user=user, item=item)  # the whole batch, as graph libraries have it
    H = HessianOperator(model, lambda m, b: (m(b) - 1).square().mean(), [record])
    assert torch.allclose(H @ v, plain @ v)


class Detector(nn.Module):
    """Losses in training mode, predictions in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 1)

    def forward(self, x, y):
        out = self.head(x).tanh()
        return {"box": (out - y).square().mean()} if self.training else [out]


def detector_loss(model, batch):
    return sum(model(*batch).values())


def test_a_loss_that_exists_in_training_mode_only():
    torch.manual_seed(0)
    model, data = Detector().double(), [(torch.randn(4, 2, dtype=torch.float64), torch.ones(4, 1))]
    with pytest.raises(
        InputError, match=r"no attribute 'values' \(.*\); the model is in eval mode.*True or --train-mode\.$"
    ):
        HessianOperator(model, detector_loss, data).loss()
    assert model.training
    H = HessianOperator(model, detector_loss, data, train_mode=True)
    same = HessianOperator(model, lambda m, b: (m.head(b[0]).tanh() - b[1]).square().mean(), data)
    v = torch.randn(3, dtype=torch.float64)
    assert torch.allclose(H @ v, same @ v)
    with pytest.raises(InputError, match=r"'items' \(.*, in a lambda\); the batch is "):  # as in either mode
        HessianOperator(model, lambda m, b: m.head(b[0]).items(), data).loss()


def test_training_mode_with_dropout_and_batch_normalization():
    torch.manual_seed(0)
    data = [(torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64))]
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    columns = torch.randn(29, 2, dtype=torch.float64)
    found = HessianOperator(model, "mse", data, train_mode=True, engine="autograd") @ columns
    explicit = copy.deepcopy(model).train()
    own = list(explicit.parameters())
    gradient = torch.autograd.grad(nn.functional.mse_loss(explicit(data[0][0]), data[0][1]), own, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for column, product in zip(columns.T, found.T, strict=True):
        expected = torch.autograd.grad(flat @ column, own, retain_graph=True)
        assert torch.allclose(product, torch.cat([p.flatten() for p in expected]), atol=1e-10)
    model[2] = nn.Dropout(0.5)
    with pytest.raises(InputError, match=r"the loss is random: dropout in 2; fix .* noise_seed=0 \(--noise-seed 0\)"):
        HessianOperator(model, "mse", data, train_mode=True) @ columns
    H = HessianOperator(model, "mse", data, train_mode=True, noise_seed=0)
    assert torch.equal(H @ columns, H @ columns)
    with pytest.raises(InputError, match="train_mode must be True or False"):
        HessianOperator(model, "mse", data, train_mode="yes")


def test_a_loss_of_outputs_for_batches_that_are_no_pairs():
    data = [(torch.ones(2, 2), torch.ones(2, 1), torch.ones(2, 1))]
    with pytest.raises(InputError, match=r"before it evaluated the model; a loss\(outputs, targets\) .* tuple of 3"):
        HessianOperator(nn.Linear(2, 1), lambda z, y: (z - y).square().mean(), data).loss()


def test_a_whole_output_as_the_loss():
    data = [torch.ones(2, 2)]
    loss = lambda model, x: SimpleNamespace(loss=model(x).square().mean())  # noqa: E731
    with pytest.raises(InputError, match=r"the loss is a SimpleNamespace; .*: return its loss"):
        HessianOperator(nn.Linear(2, 1), loss, data).loss()
