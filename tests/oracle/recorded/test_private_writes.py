"""Writes to memory that nothing else sees become operations that return their result; all others stay."""

import pytest
import torch
from oracle.comparison import relative
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import hvpspec
from hvpspec.oracle.recorded import tracing
from hvpspec.oracle.recorded.private_writes import without_private_writes


def divided(x):
    y = x + 1
    y.div_(3)
    return y * y


def read_before(x):
    y = x + 1
    z = y * 2
    y.div_(3).neg_()
    return y + z


def of_another_shape(x):
    y = x + 1
    y.unsqueeze_(0).mul_(2)
    return y * y


def seen_by_a_view(x):
    y = x + 1
    row = y[0]
    y.mul_(3)
    return y.sum() + row


def through_a_view(x):
    y = x + 1
    y[0].mul_(3)
    return y * y


def part_of_several(x):
    y = x + 1
    first, _ = y.split(2)
    y.mul_(3)
    return y.sum() + first


def of_the_input(x):
    x.mul_(3)
    return x * x


def of_a_narrower_dtype(x):
    y = x.float()
    y.add_(x.cos())
    return y.double() * x


@pytest.mark.parametrize(
    ("function", "stays"),
    [(divided, False), (read_before, False), (of_another_shape, False), (seen_by_a_view, True), (through_a_view, True),
     (part_of_several, True), (of_the_input, True), (of_a_narrower_dtype, True)],
)  # fmt: skip
def test_the_values_stay_the_same(function, stays):
    x = torch.randn(4, 3, dtype=torch.float64)
    graph = make_fx(function, tracing_mode="fake")(x.clone())
    assert any(map(tracing._writes, graph.graph.nodes))
    without_private_writes(graph)
    assert any(map(tracing._writes, graph.graph.nodes)) == stays
    torch.testing.assert_close(graph(x.clone()), function(x.clone()), rtol=0, atol=0)


def test_the_backward_pass_of_a_norm_is_recorded_once(monkeypatch):
    """It divides in place."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    data = [(torch.randn(5, 4).double(), torch.randn(5, 2).double())]
    recorded, kept = [], tracing.without_private_writes

    def counted(graph):
        recorded.append(sum(map(tracing._writes, graph.graph.nodes)))
        kept(graph)

    monkeypatch.setattr(tracing, "without_private_writes", counted)
    how, passes = tracing._recorded, []
    monkeypatch.setattr(tracing, "_recorded", lambda *given: passes.append(1) or how(*given))
    reference, fast = (
        hvpspec.HessianOperator(model, "mse", data, engine=engine) for engine in ("autograd", "linearized")
    )
    V = torch.randn(fast.shape[0], 3, dtype=torch.float64)
    assert relative(fast @ V, reference @ V) <= 1e-12
    assert fast.engine == "linearized"
    assert recorded[0] > 0
    assert len(passes) == 1
