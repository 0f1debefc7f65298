"""A network with its data, and whether a loaded model has the Hessian-vector products of the one that was saved."""

import torch
import torch.nn.functional as F
from torch import nn

import hvpspec

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))


Y = torch.arange(12) % 2


DATA = list(zip(X.split(5), Y.split(5), strict=True))


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 2))


def reference(model, loss, count=3):
    """`count` products of the Hessian of loss(model) with random vectors, in float64, in the order of the names."""
    model = model.eval().double()
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def value(vector):
        pieces = zip(names, vector.split(sizes), model.parameters(), strict=True)
        return loss(model, {name: piece.view(p.shape) for name, piece, p in pieces})

    V = torch.randn(len(start), count, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        HV = [torch.func.jvp(torch.func.grad(value), (start,), (v,))[1] for v in V.T]
    return V, torch.stack(HV, 1)


def classify(model, parameters):
    return F.cross_entropy(torch.func.functional_call(model, parameters, (X.double(),)), Y)


def agrees(loaded, saved, loss="cross_entropy", data=DATA, whole=classify, atol=1e-9):
    """Whether products of the loaded model are those of the saved one, in whatever order each keeps its parameters."""
    names = [name for name, _ in saved.named_parameters()]
    V, HV = reference(saved, whole)
    assert HV.norm() > 1e-3
    H = hvpspec.HessianOperator(loaded, loss, data, dtype="float64")
    shapes = dict(zip(H.parameters.names, H.parameters.shapes, strict=True))
    assert sorted(shapes) == sorted(names)
    for v, expected in zip(V.T, HV.T, strict=True):
        pieces = dict(zip(names, v.split([shapes[name].numel() for name in names]), strict=True))
        product = H.parameters.unflatten(H @ H.parameters.flatten({n: p.view(shapes[n]) for n, p in pieces.items()}))
        torch.testing.assert_close(
            torch.cat([product[name].reshape(-1) for name in names]), expected, rtol=atol, atol=atol
        )
