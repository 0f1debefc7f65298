"""Losses that differentiate inside: their Hessian needs third derivatives of the network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from programs.program import Case, Program, mlp, points, split


def pinn(m: nn.Module, batch: Tensor) -> Tensor:
    """Burgers' equation."""
    x = batch.detach().requires_grad_(True)
    u = m(x)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)
    return (first[:, 1] - 0.3 * second[:, 0] + u[:, 0] * first[:, 0]).square().mean()


def gradient_penalty(m: nn.Module, batch: Tensor) -> Tensor:
    x = batch.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
    return m(x).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()


def forces(m: nn.Module, batch: Any) -> Tensor:
    """Energies and forces of molecules."""
    positions = batch["positions"].detach().requires_grad_(True)
    energy = m(positions).sum(1)
    (force,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    return F.mse_loss(energy, batch["energy"]) + F.mse_loss(-force, batch["forces"])


def inner_step(m: nn.Module, batch: Any) -> Tensor:
    """MAML: the loss after a step of gradient descent on the same batch's first sample (fixed for all)."""
    parameters = dict(m.named_parameters())
    support, query, y = batch

    def one(s: Tensor, q: Tensor, target: Tensor) -> Tensor:
        def inner(p: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(m, p, (s[None],)), target[None])

        slopes = torch.func.grad(inner)(parameters)
        moved = {name: p - 0.1 * slopes[name] for name, p in parameters.items()}
        return F.cross_entropy(torch.func.functional_call(m, moved, (q[None],)), target[None])

    return torch.stack([one(*sample) for sample in zip(support, query, y, strict=True)]).mean()


def jacobian_by_func(m: nn.Module, batch: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.jacrev(lambda x: m(x)))(batch).square().sum((1, 2)).mean()


def laplacian_by_func(m: nn.Module, batch: Tensor) -> Tensor:
    traces = torch.func.vmap(lambda x: torch.func.hessian(lambda z: m(z).sum())(x).trace())(batch)
    return (traces - 1).square().mean()


def on_points(loss: Any, model: nn.Module, width: int = 2) -> Case:
    x = torch.randn(8, width)
    return Case(model, loss, list(x.split([3, 5])), lambda m: loss(m, x))


def force_matching() -> Case:
    whole = {"positions": torch.randn(8, 3), "energy": torch.randn(8), "forces": torch.randn(8, 3)}
    data = [{key: value[s] for key, value in whole.items()} for s in (slice(0, 3), slice(3, 8))]
    return Case(mlp(3, 6, 1), forces, data, lambda m: forces(m, whole))


def meta_learning() -> Case:
    (s, _), (q, y) = points(), points()
    return Case(mlp(), inner_step, split(s, q, y), lambda m: inner_step(m, (s, q, y)))


class Normalised(nn.Module):
    """Layer norm written out: torch's own has a wrong third derivative (torch 2.13)."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def pinn_with(norm: nn.Module) -> Case:
    model = nn.Sequential(nn.Linear(2, 6), norm, nn.Tanh(), nn.Linear(6, 1))
    x = torch.randn(8, 2)
    written_out = Normalised()

    def whole(m: nn.Module) -> Tensor:
        return pinn(nn.Sequential(m[0], written_out, m[2], m[3]), x)

    return Case(model, pinn, list(x.split([3, 5])), whole)


PROGRAMS = (
    Program("a physics-informed network", lambda: on_points(pinn, mlp(2, 6, 1))),
    Program("a gradient penalty", lambda: on_points(gradient_penalty, mlp(2, 6, 1))),
    Program("energies and forces", force_matching),
    Program("a step of gradient descent inside (MAML)", meta_learning),
    Program("a Jacobian by torch.func", lambda: on_points(jacobian_by_func, mlp(2, 5, 2))),
    Program("a Laplacian by torch.func", lambda: on_points(laplacian_by_func, mlp(2, 5, 2))),
    Program("layer norm in a physics-informed network", lambda: pinn_with(nn.LayerNorm(6, elementwise_affine=False))),
    Program("group norm in a physics-informed network", lambda: pinn_with(nn.GroupNorm(1, 6, affine=False))),
)
