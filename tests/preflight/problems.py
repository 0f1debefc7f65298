"""A small problem to inspect, data that change from pass to pass, and an explicit Hessian to compare with."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

import hvpspec


def problem(loss="cross_entropy", model=None, data=None, **options):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    data = data or list(zip(x.split(16), y.split(16), strict=True))
    return hvpspec.HessianOperator(model, loss, data, **options)


def kinds(preflight, *severities):
    return {finding.kind for finding in preflight.of(*severities or ("fixed", "note", "refused"))}


class Shuffled:
    """Batches of other samples on each pass, as a shuffling loader that drops the last batch gives them."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(40, 4, generator=self.generator), torch.arange(40) % 3

    def __iter__(self):
        order = torch.randperm(40, generator=self.generator)[:32]
        return zip(self.x[order].split(16), self.y[order].split(16), strict=True)


def explicit(model, loss, batches):
    """The Hessian of the weighted mean of a loss over batches, by torch.func, in float64."""
    model = copy.deepcopy(model).double()
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def whole(flat):
        pieces = flat.split([shape.numel() for shape in shapes])
        values = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        total = sum(
            len(x) * loss(lambda x: torch.func.functional_call(model, values, (x,)), (x.double(), y))
            for x, y in batches
        )
        return total / sum(len(x) for x, _ in batches)

    return torch.func.jacrev(torch.func.jacrev(whole))(flat).numpy()


def network(kind, **options):
    """A small classifier: untrained, or trained for a while."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    x, y = torch.randn(512, 64), torch.arange(512) % 10
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(300 if kind == "trained" else 0):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return hvpspec.HessianOperator(model, "cross_entropy", [(x, y)], **options)
