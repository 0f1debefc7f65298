"""What hvpspec itself does with the user's tensors makes torch warn of nothing."""

import warnings

import pytest
import torch
from torch import nn

import hvpspec


def weight_with_a_gradient(model, batch):
    """Its weight is a count, but one that is computed with the parameters."""
    x, y = batch
    count = len(x) + 0 * model[0].weight.sum()
    return nn.functional.cross_entropy(model(x), y), count


@pytest.mark.parametrize("engine", ["autograd", "linearized", "finite-difference"])
@pytest.mark.parametrize("loss", [weight_with_a_gradient, "cross_entropy"])
def test_no_tensor_with_a_gradient_becomes_a_number(engine, loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data = [(torch.randn(rows, 4, dtype=torch.float64, requires_grad=True), torch.arange(rows) % 3) for rows in (6, 9)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Converting a tensor with requires_grad=True")
        H = hvpspec.HessianOperator(model, loss, data, engine=engine)
        H.loss()
        hvpspec.spectrum(H, 2, rtol=0.2, max_hvps=20)
