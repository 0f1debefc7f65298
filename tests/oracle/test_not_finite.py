"""NaN and Inf are named by batch and parameter, whatever the engine."""

import pytest
import torch
from torch import nn

import hvpspec
from hvpspec.errors import InputError
from hvpspec.options import ENGINES


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_not_finite_is_named_by_batch_and_parameter(engine):
    """In a batch other than the first: of the parameters, of the loss, of the gradient and of a product."""
    if engine == "cudagraph" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    with torch.no_grad():
        model[2].bias.zero_()

    def loss(model, batch):
        x, root = batch
        return model(x).square().mean() + model[0].weight[1, 0] * 0 + (model[2].bias + 1 - root).abs().pow(1.5).sum()

    data = [(torch.ones(2, 2), torch.tensor(0.0)), (torch.ones(2, 2), torch.tensor(1.0))]
    smooth = [(x, torch.tensor(0.0)) for x, _ in data]
    v = torch.ones(sum(p.numel() for p in model.parameters()), dtype=torch.float64)

    def product(data):
        H = hvpspec.HessianOperator(model, loss, data, engine=engine, dtype="float64", verify=False)
        return H @ v

    if engine != "finite-difference":  # which finds a second derivative there, if not a good one
        with pytest.raises(
            InputError, match=r"^batch 1: the Hessian-vector product .* has (nan|inf) at \[0\] of '2.bias'; "
        ):
            product(data)
    assert product(smooth).isfinite().all()
    with torch.no_grad():
        model[0].weight[1, 0] = torch.inf
    with pytest.raises(InputError, match=r"^batch 0: the loss is nan; the model has inf at \[1, 0\] of '0.weight'\.$"):
        product(smooth)
    with torch.no_grad():
        model[0].weight[1, 0] = 0.0

    def root(model, batch):
        return model(batch[0]).square().mean() + (model[2].bias + 1 - batch[1]).abs().sqrt().sum()

    H = hvpspec.HessianOperator(model, root, data, engine=engine, dtype="float64", verify=False)
    said = r"the gradient (is not finite.* it has|\()" if engine == "finite-difference" else r"so has the gradient \("
    with pytest.raises(InputError, match=rf"^batch 1: .*{said} ?(nan|inf) at \[0\] of '2.bias'"):
        H @ v
