"""Programs whose Python code asks for values of tensors: recorded batch by batch, and equal to plain autograd."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
from oracle.comparison import Shuffled, operators, relative
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.distributions import Gamma, Normal
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import hvpspec
from hvpspec.oracle.recorded import recordings, tracing
from hvpspec.oracle.recorded.tracing import NotRecordable


@dataclass
class Program:
    model: nn.Module
    mean: Any
    data: list[Any]

    @cached_property
    def loss(self):
        mean = self.mean
        return lambda model, batch: (mean(model, batch), 2.0)


def _mlp(outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


def _pairs(count=2, size=7, outputs=1):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [(draw(size, 3), draw(size, outputs)) for _ in range(count)]


def distributions():
    """Their arguments are validated."""

    def loss(model, batch):
        mean, scale = model(batch[0]).unbind(1)
        normal = Normal(mean, mean.exp()).log_prob(batch[1][:, 0])
        return -(normal + Gamma(scale.exp(), 1.0).log_prob(batch[0][:, 0].exp())).mean()

    return Program(_mlp(2), loss, _pairs())


def counts():
    """Divided by a number of positives that is read from the batch, and is another one in each."""

    def focal(model, batch):
        logits, target = model(batch[0]), (batch[1] > 0).double()
        p = torch.sigmoid(logits)
        bce = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return ((1 - p) ** 2 * bce).sum() / max(int((batch[1] > 0).sum()), 1)

    return Program(_mlp(1), focal, _pairs())


def masked():
    """A size that depends on the data, and one that depends on the parameters."""

    def loss(model, batch):
        out = model(batch[0])
        kept = out[batch[1] > 0]
        return (kept**2).sum() / len(batch[0]) + torch.tanh(out[out > 0.1]).pow(2).sum()

    return Program(_mlp(1), loss, _pairs())


def branches():
    """One branch depends on the data, the other one on the parameters."""

    def loss(model, batch):
        out = model(batch[0])
        value = out.pow(2).mean() if batch[1].mean() > 0 else out.exp().mean()
        return value + (out.cos().mean() if next(model.parameters())[0, 0] > 0 else out.pow(4).mean())

    return Program(_mlp(1), loss, _pairs())


def packed():
    """An LSTM of sequences with lengths."""

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(2, 2, batch_first=True), nn.Linear(2, 1)

        def forward(self, x, lengths):
            sequence = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            return self.head(pad_packed_sequence(self.lstm(sequence)[0], batch_first=True)[0])

    def loss(model, batch):
        x, lengths = batch
        return model(x, lengths).sin().pow(2).mean()

    torch.manual_seed(0)
    data = [(torch.randn(3, 3, 2).double(), torch.tensor(lengths)) for lengths in ([1, 3, 2], [2, 1, 3])]
    return Program(Tagger().double(), loss, data)


def matching():
    """Predictions are assigned to targets by SciPy, at the present parameters."""

    def loss(model, batch):
        out = model(batch[0])
        cost = (out[:, None] - batch[1][None]).abs().sum(2)
        rows, columns = linear_sum_assignment(cost.detach().cpu().numpy())
        return (out[rows] - batch[1][columns]).pow(2).mean()

    return Program(_mlp(2), loss, _pairs(outputs=2))


def by_double_backward(case, V):
    """The products, batch by batch and vector by vector, without hvpspec."""
    parameters = list(case.model.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    columns = []
    for v in V.T:
        pieces = [piece.view_as(p) for piece, p in zip(v.split(sizes), parameters, strict=True)]
        total = torch.zeros_like(v)
        for batch in case.data:
            gradient = torch.autograd.grad(case.mean(case.model, batch), parameters, create_graph=True)
            second = torch.autograd.grad(gradient, parameters, pieces, materialize_grads=True)
            total += torch.cat([piece.flatten() for piece in second]) / len(case.data)
        columns.append(total)
    return torch.stack(columns, 1)


PROGRAMS = (distributions, counts, masked, branches, packed, matching)


@pytest.mark.parametrize("program", PROGRAMS)
def test_recorded_batch_by_batch(program):
    compare(program, None)


def test_recorded_batch_by_batch_where_nothing_is_saved():
    compare(masked, 1)


def compare(program, limit):
    """At first; with other parameters, at which branches flip; and with other data."""
    case = program()
    _, fast = operators(case, memory_limit=limit)
    V = torch.randn(fast.shape[0], 21, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def check():
        expected = by_double_backward(case, V[:, :3])
        assert relative((fast @ V)[:, :3], expected) <= 1e-12
        assert fast.engine == "linearized", fast.plan
        assert "recorded batch by batch" in fast.plan
        return expected

    before = check()
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.neg_().add_(0.1)
    after = check()
    assert relative(after, before) > 0.01
    if program in (counts, packed, matching):
        with torch.no_grad():
            for batch in case.data:
                changed = batch[1] if program is packed else batch[0]
                changed.copy_(changed.flip(0) if program is packed else -changed)
        assert relative(check(), after) > 1e-6


def test_branch_of_a_single_parameter_flips():
    """By so little that nothing else changes: only the branch tells."""
    case = branches()
    reference, fast = operators(case)
    V = torch.randn(fast.shape[0], 21, dtype=torch.float64)
    for first in (1e-9, -1e-9):
        with torch.no_grad():
            case.model[0].weight[0, 0] = first
        assert relative(fast @ V, reference @ V) <= 1e-12
        assert "recorded batch by batch" in fast.plan


def test_gives_way_where_recording_again_does_not_pay():
    """Values that change with each product; data that are shuffled; many batches."""
    case = counts()
    reference, fast = operators(case)
    v = torch.randn(fast.shape[0], dtype=torch.float64)
    assert relative(fast @ v, reference @ v) <= 1e-12
    with torch.no_grad():
        case.model[0].weight.mul_(1.1)
    assert relative(fast @ v, reference @ v) <= 1e-12
    assert fast.engine == "autograd"
    assert "change too often" in fast.plan

    x, y = (torch.cat(part) for part in zip(*case.data, strict=True))
    shuffled = Program(case.model, masked().mean, Shuffled(x, y, 7))
    _, fast = operators(shuffled, memory_limit=1)
    for _ in range(2):
        fast @ v
    assert fast.engine == "autograd"
    assert "now there are others" in fast.plan


def test_at_most_so_many_batches(monkeypatch):
    monkeypatch.setattr(recordings, "MOST_BATCHES", 1)
    reference, fast = operators(counts())
    v = torch.randn(fast.shape[0], dtype=torch.float64)
    assert relative(fast @ v, reference @ v) <= 1e-12
    assert fast.plan.startswith("autograd (recording failed: ")


def test_auto_does_not_record_batches_for_longer_than_it_is_worth(monkeypatch):
    case = counts()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    monkeypatch.setattr(recordings, "MOST_BATCHES", 10**9)
    monkeypatch.setattr(H.objective, "_batches", 10**9)
    with recordings.within(1e4), H.objective.evaluating(), pytest.raises(NotRecordable, match="than it is worth"):
        recordings.recorded(H.objective, H.objective.snapshot(), case.data[0], ())


def test_a_wrong_recording_for_other_values_is_not_used(monkeypatch):
    """Each time that batches are recorded again, the product is compared with plain autograd."""
    case = branches()
    reference, fast = operators(case)
    V = torch.randn(fast.shape[0], 21, dtype=torch.float64)
    fast @ V
    monkeypatch.setattr(tracing.Values, "are_of", lambda self, snapshot: True)  # the former ones are taken for these
    with torch.no_grad():
        case.model[0].weight.neg_()
    assert relative(fast @ V, reference @ V) <= 1e-12
    assert "disagrees with autograd" in fast.plan
