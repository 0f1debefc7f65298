"""A recording keeps the dtypes in which it was made, whatever the default dtype is when it runs."""

import pytest
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


class Router(nn.Module):
    """Casts a layer of its own to float32 in each forward, as those of Switch Transformers do."""

    def __init__(self):
        super().__init__()
        self.body, self.router = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.body(x).tanh()
        self.router = self.router.to(torch.float32)
        return self.router(x.to(torch.float32)).softmax(1).to(x.dtype)


@pytest.mark.parametrize("engine", ["autograd", "linearized", "finite-difference"])
def test_a_layer_that_the_forward_casts(engine):
    torch.manual_seed(0)
    model = Router().double()
    data = [(torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)) for _ in range(2)]
    H = hvpspec.HessianOperator(model, "mse", data, engine=engine)
    v = torch.randn(H.shape[0], dtype=torch.float64)
    found = [H @ v, H @ v]
    assert model.router.weight.dtype == torch.float64
    if engine == "linearized":
        assert H.engine == "linearized", H.plan
    plain = lambda model, batch: (model.router(model.body(batch[0]).tanh()).softmax(1) - batch[1]).square().mean()  # noqa: E731
    expected = hvpspec.HessianOperator(model, plain, data) @ v
    for product in found:
        assert float((product - expected).norm() / expected.norm()) < (1e-2 if engine == "finite-difference" else 1e-6)
