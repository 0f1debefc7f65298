"""A recording keeps the dtypes in which it was made, whatever the default dtype is when it runs."""

import torch
from torch import nn

import hvpspec


def test_a_recording_does_not_depend_on_the_default_dtype():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2), torch.randn(5, 3)

    def loss(model, batch):
        return (model(batch).tanh() * torch.linspace(0, 1, 2) + torch.ones(2)).square().mean()

    H = hvpspec.HessianOperator(model, loss, [x], engine="linearized")
    v = torch.randn(8)
    first = H @ v
    assert H.engine == "linearized", H.plan
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(H @ v, first)
    finally:
        torch.set_default_dtype(torch.float32)
