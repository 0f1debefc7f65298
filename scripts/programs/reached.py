"""Losses that reach parameters by another way than through the model's forward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from programs.program import Case, Program, mlp, points, refused, split


def penalty_in_a_closure() -> Case:
    model, (x, y) = mlp(), points()
    kept = list(model.parameters())

    def loss(m: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(m(batch[0]), batch[1]) + 0.1 * sum(p.pow(4).sum() for p in kept)

    return Case(model, loss, split(x, y), lambda m: loss(m, (x, y)))


def penalty_through_an_optimizer() -> Case:
    model, (x, y) = mlp(), points()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(m: nn.Module, batch: Any) -> Tensor:
        norm = sum(p.square().sum() for group in optimizer.param_groups for p in group["params"]).sqrt()
        return F.cross_entropy(m(batch[0]), batch[1]) + norm

    return Case(model, loss, split(x, y), lambda m: loss(m, (x, y)))


def a_method_of_a_trainer() -> Case:
    class Trainer:
        def __init__(self) -> None:
            self.net, self.decay = mlp(), 0.3

        def loss(self, model: nn.Module, batch: Any) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1]) + self.decay * self.net[0].weight.pow(4).sum()

    trainer, (x, y) = Trainer(), points()
    return Case(trainer.net, trainer.loss, split(x, y), lambda m: trainer.loss(m, (x, y)))


def another_model() -> Case:
    other, (x, y) = mlp(), points()
    return Case(mlp(), lambda m, batch: F.cross_entropy(other(batch[0]), batch[1]), split(x, y))


def a_teacher() -> Case:
    teacher, model, (x, _) = mlp(), mlp(), points()

    def loss(m: nn.Module, batch: Any) -> Tensor:
        return F.kl_div(m(batch[0]).log_softmax(1), teacher(batch[0]).softmax(1), reduction="batchmean")

    return Case(model, loss, split(x, x), lambda m: loss(m, (x, x)))


def a_part_of_the_model() -> Case:
    model = nn.ModuleDict({"encoder": mlp(4, 5, 2), "decoder": mlp(2, 5, 4)})
    x = torch.randn(8, 4)

    def loss(m: nn.Module, batch: Tensor) -> Tensor:
        code = m["encoder"](batch)
        return F.mse_loss(m["decoder"](code), batch) + 0.1 * code.abs().pow(3).mean()

    return Case(model, loss, list(x.split([3, 5])), lambda m: loss(m, x))


class Adjoint(torch.autograd.Function):
    """As torchdiffeq's adjoint: the backward evaluates the module again."""

    @staticmethod
    def forward(ctx: Any, f: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.f = f
        ctx.save_for_backward(x, *parameters)
        with torch.no_grad():
            return x + f(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *parameters = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            grads = torch.autograd.grad(x + ctx.f(x), (x, *parameters), grad)
        return None, *grads


class Euler(nn.Module):
    """One step of an equation whose right-hand side is a network."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.head = mlp(2, 5, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Adjoint.apply(self.f, x, *self.f.parameters()))


def an_adjoint_that_evaluates_the_module_again() -> Case:
    x, y = torch.randn(6, 2), torch.randn(6, 2)
    return Case(Euler(), "mse", split(x, y, sizes=(2, 4)), lambda m: F.mse_loss(m.head(x + m.f(x)), y))


def functional_call_in_the_loss() -> Case:
    model, (x, y) = mlp(), points()

    def loss(m: nn.Module, batch: Any) -> Tensor:
        doubled = {name: 2 * p for name, p in m.named_parameters()}
        return F.cross_entropy(torch.func.functional_call(m, doubled, (batch[0],)), batch[1])

    return Case(model, loss, split(x, y), lambda m: loss(m, (x, y)))


def an_ensemble_by_vmap() -> Case:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.func.vmap(lambda w: (x @ w).tanh())(self.weight).mean(0)

    x, y = points()
    return Case(Ensemble(), "cross_entropy", split(x, y), lambda m: F.cross_entropy((x @ m.weight).tanh().mean(0), y))


PROGRAMS = (
    Program("a penalty on captured parameters", penalty_in_a_closure),
    Program("a penalty through optimizer.param_groups", penalty_through_an_optimizer),
    Program("a method of a trainer that holds the model", a_method_of_a_trainer),
    Program("a loss of another model", another_model, refused("another model")),
    Program("distillation from a teacher", a_teacher),
    Program("an autoencoder of two parts", a_part_of_the_model),
    Program(
        "an adjoint that evaluates the module again",
        an_adjoint_that_evaluates_the_module_again,
        refused("", "autograd", "linearized"),
    ),
    Program("functional_call in the loss", functional_call_in_the_loss),
    Program("an ensemble by vmap", an_ensemble_by_vmap),
)
