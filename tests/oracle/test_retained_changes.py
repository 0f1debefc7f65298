"""What changes between products is seen: graphs of another model or of other data are never used.

Without the checks of `oracle/retained.py` each of these tests fails.
"""

import copy
import types

import pytest
import torch
from oracle.comparison import Shuffled, fresh, kept, share
from torch import nn
from zoo import CASES, Case, mlp

import hvpspec
from hvpspec.errors import InputError
from hvpspec.oracle import retained


def step(case):
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    for p in case.model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def in_place(case):
    with torch.no_grad():
        next(case.model.parameters()).add_(0.1)


def through_data(case):
    next(case.model.parameters()).data.mul_(1.3)


def new_data(case):
    p = next(case.model.parameters())
    p.data = p.data + 0.2


def new_parameter(case):
    layer = next(m for m in case.model.modules() if isinstance(m, nn.Linear))
    layer.weight = nn.Parameter(layer.weight.detach() * 1.1)


def same_values_in_a_new_parameter(case):
    layer = next(m for m in case.model.modules() if isinstance(m, nn.Linear))
    layer.weight = nn.Parameter(layer.weight.detach().clone())


def loaded(case):
    case.model.load_state_dict({name: 1.1 * value for name, value in case.model.state_dict().items()})


def loaded_again(case):
    case.model.load_state_dict(copy.deepcopy(case.model.state_dict()))


def written_batch(case):
    case.data[1][0].mul_(1.5)


def batch_through_data(case):
    case.data[1][0].data.mul_(1.5)


def other_batch(case):
    case.data[1] = (case.data[1][0] + 1, case.data[1][1])


def other_targets(case):
    case.data[0] = (case.data[0][0], (case.data[0][1] + 1) % 3)


def swapped(case):
    case.data[0], case.data[1] = case.data[1], case.data[0]


def longer(case):
    case.data.append(tuple(t * 2 if t.is_floating_point() else t for t in case.data[0]))


def training(case):
    case.model.train()


SAME = (same_values_in_a_new_parameter, loaded_again, swapped, training)
CHANGES = (
    *(step, in_place, through_data, new_data, new_parameter, loaded, written_batch, batch_through_data, other_batch),
    *(other_targets, *SAME),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_is_seen(change):
    case = mlp()
    H, V = kept(case)
    before = H @ V
    assert share(H) == 1
    change(case)
    for _ in range(3):
        product = H @ V
        assert torch.equal(product, fresh(H, V))
    assert share(H) == 1
    assert (float((product - before).norm()) > 1e-6) == (change not in SAME)


def test_more_data_are_refused_as_before():
    case = mlp()
    H, V = kept(case)
    longer(case)
    with pytest.raises(InputError, match="data changed between two passes"):
        H @ V


def test_buffers_that_change_are_seen():
    case = CASES["cnn with batchnorm"]()
    H, V = kept(case)
    before = H @ V
    case.model[1].running_var.mul_(2)
    assert torch.equal(H @ V, fresh(H, V))
    assert float((H @ V - before).norm()) > 1e-6
    case.model[1].running_mean = torch.ones_like(case.model[1].running_mean)
    assert torch.equal(H @ V, fresh(H, V))


def test_arrays_that_are_written_to_are_seen():
    """torch.from_numpy shares their memory, so that no version counts the writes."""
    case = mlp()
    arrays = [(x.numpy(), y.numpy()) for x, y in case.data]
    H, V = kept(Case(case.model, case.loss, arrays, case.whole))
    before = H @ V
    arrays[0][0][:] *= 2
    assert torch.equal(H @ V, fresh(H, V))
    assert float((H @ V - before).norm()) > 1e-6


class Tempered(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.temperature, self._hidden = nn.Linear(4, 3), 1.0, 1.0
        self.config = types.SimpleNamespace(scale=1.0)

    def forward(self, x):
        return self.inside(x).tanh() * (self.temperature * self._hidden * self.config.scale)


@pytest.mark.parametrize("name", ["temperature", "_hidden", "config"])
def test_attributes_that_change_are_seen(name):
    case = mlp()
    case.model = Tempered().double()
    H, V = kept(case)
    before = H @ V
    if name == "config":
        case.model.config.scale = 2.0
    else:
        setattr(case.model, name, 2.0)
    assert torch.equal(H @ V, fresh(H, V))
    assert float((H @ V - before).norm()) > 1e-6


@pytest.mark.parametrize("announced", [True, False])
def test_changes_that_only_the_loss_shows_are_seen_when_a_run_begins_or_after_a_pause(monkeypatch, announced):
    deep = {"one": {"two": {"three": {"four": 1.0}}}}  # deeper than anything looks
    case = mlp()
    case.loss = lambda model, batch: nn.functional.cross_entropy(
        model(batch[0]) * deep["one"]["two"]["three"]["four"], batch[1]
    )
    H, V = kept(case)
    before = H @ V
    deep["one"]["two"]["three"]["four"] = 2.0
    if announced:
        H.expect(5)
    else:
        monkeypatch.setattr(retained, "_PAUSE", -1.0)
        monkeypatch.setattr(retained, "_PAUSE_IN_PRODUCTS", 0)
    assert torch.equal(H @ V, fresh(H, V))
    assert float((H @ V - before).norm()) > 1e-6


def test_data_in_another_order_each_time_are_not_kept_for_long():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(40, 3).double(), torch.randint(0, 2, (40,))
    H = hvpspec.HessianOperator(model, "cross_entropy", Shuffled(x, y, 8), engine="autograd")
    whole = hvpspec.HessianOperator(model, "cross_entropy", [(x, y)], engine="autograd")
    V = torch.randn(32, 2).double()
    for _ in range(8):
        assert float((H @ V - fresh(whole, V)).norm()) < 1e-13
    assert H._product._plain._off
    assert share(H) == 0
