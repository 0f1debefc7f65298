"""Against curvlinops 3.0.1's operators, on cases such as its own tests have; skipped where it is not installed.

Its empirical Fisher matrix is c Σ g gᵀ, with the gradients g of the samples' losses *summed* over their C outputs, and
the c of the loss: 1/N, 1/(N C) for means over all elements, 1 for sums. hvpspec's is (1/N) Σ of the samples' *mean*
losses, whose gradients are g/C there.
"""

import pytest
import torch
from torch import nn

from hvpspec import EmpiricalFisherOperator, GGNOperator, HessianOperator

curvlinops = pytest.importorskip("curvlinops")

N = 11


def mlp(outputs):
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, outputs))


def cnn(outputs):
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), nn.Flatten(),
        nn.Linear(8, outputs),
    )  # fmt: skip


class WeightShared(nn.Module):
    """Uses a layer twice."""

    def __init__(self, outputs):
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, outputs)

    def forward(self, x):
        return self.last(torch.tanh(self.twice(torch.tanh(self.twice(torch.tanh(self.first(x)))))))


MODELS = {"mlp": (mlp, (4,)), "cnn": (cnn, (2, 6, 6)), "shared": (WeightShared, (4,))}
LOSSES = {
    "CE": (nn.CrossEntropyLoss, 3, lambda n, c: torch.randint(0, c, (n,))),
    "MSE": (nn.MSELoss, 2, lambda n, c: torch.randn(n, c, dtype=torch.float64)),
    "BCE": (nn.BCEWithLogitsLoss, 2, lambda n, c: torch.randint(0, 2, (n, c)).double()),
    "CE of two classes": (nn.CrossEntropyLoss, 2, lambda n, c: torch.randint(0, c, (n,))),
}


def case(model, loss, reduction):
    torch.manual_seed(0)
    build, shape = MODELS[model]
    criterion, outputs, targets = LOSSES[loss]
    x, y = torch.randn(N, *shape, dtype=torch.float64), targets(N, outputs)
    network = build(outputs).double().eval()
    data = list(zip(x.split(4), y.split(4), strict=True))  # ragged: 4, 4, 3
    return network, criterion(reduction=reduction), data, outputs


def both(model, loss, of_criterion, ours, theirs, **options):
    network, criterion, data, outputs = case(model, loss, of_criterion)
    A = ours(network, criterion, data, dtype="float64", **options)
    parameters = [p for p in network.parameters() if p.requires_grad]
    B = theirs(network, criterion, parameters, data)
    identity = torch.eye(A.shape[0], dtype=torch.float64)
    return A @ identity, B @ identity, outputs


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pair", [(HessianOperator, "HessianLinearOperator"), (GGNOperator, "GGNLinearOperator")])
def test_hessian_and_gauss_newton_matrix(pair, model, loss, reduction):
    mine, theirs, _ = both(model, loss, reduction, pair[0], getattr(curvlinops, pair[1]))
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12 * float(theirs.abs().max()))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_empirical_fisher_matrix(model, loss, reduction):
    pair = EmpiricalFisherOperator, curvlinops.EFLinearOperator
    mine, theirs, outputs = both(model, loss, reduction, *pair, reduction="mean")
    terms = 1 if loss.startswith("CE") else outputs
    factor = terms if reduction == "mean" else N * terms**2
    torch.testing.assert_close(mine * factor, theirs, rtol=1e-10, atol=1e-12 * float(theirs.abs().max()))
