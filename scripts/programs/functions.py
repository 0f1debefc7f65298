"""Operations of people's own: custom backward functions, stopped gradients, checkpoints."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from programs.program import Case, Program, mlp, points, refused, split

EXACT = ("autograd", "linearized")


class Activated(nn.Module):
    """A network with an operation in the middle."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.first, self.last, self.operation = nn.Linear(4, 6), nn.Linear(6, 3), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(self.first(x)))


def case_of(operation: Any, reference: Any = None) -> Case:
    x, y = points()
    whole = None
    if reference is not None:

        def whole(m: nn.Module) -> Tensor:
            return F.cross_entropy(m.last(reference(m.first(x))), y)

    return Case(Activated(operation), "cross_entropy", split(x, y), whole)


class Swish(torch.autograd.Function):
    """A memory-saving activation with a differentiable backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * (s + x * s * (1 - s))


class OnceSwish(Swish):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return Swish.backward(ctx, grad)


class DetachedSwish(torch.autograd.Function):
    """As entmax: what the backward needs is computed in the forward and saved, where autograd does not see it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s = x.sigmoid()
        ctx.slope = s + x * s * (1 - s)
        return x * s

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.slope


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class FixedPoint(nn.Module):
    """A deep equilibrium layer z = tanh(W z + x) with the implicit gradient by a hook, as in the tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(80):
                z = (z @ self.weight + x).tanh()
        z = (z @ self.weight + x).tanh()
        z0 = z.clone().detach().requires_grad_()
        f0 = (z0 @ self.weight + x).tanh()

        def backward(grad: Tensor) -> Tensor:
            g = grad
            for _ in range(80):
                g = torch.autograd.grad(f0, z0, g, retain_graph=True)[0] + grad
            return g

        if z.requires_grad:
            z.register_hook(backward)
        return z


def a_deep_equilibrium() -> Case:
    model, (x, y) = nn.Sequential(nn.Linear(4, 6), FixedPoint(), nn.Linear(6, 3)), points()

    def whole(m: nn.Module) -> Tensor:
        z = hidden = m[0](x)
        for _ in range(80):
            z = (z @ m[1].weight + hidden).tanh()
        return F.cross_entropy(m[2](z), y)

    return Case(model, "cross_entropy", split(x, y), whole)


def stopped_gradient() -> Case:
    x = torch.randn(8, 4)

    def loss(m: nn.Module, batch: Tensor) -> Tensor:  # SimSiam
        out = m(batch)
        return -F.cosine_similarity(out, m(batch.flip(1)).detach()).mean()

    return Case(mlp(), loss, list(x.split([3, 5])))


def vector_quantised() -> Case:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder, self.codes = mlp(4, 5, 3), mlp(3, 5, 4), nn.Parameter(torch.randn(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            z = self.encoder(x)
            code = self.codes[torch.cdist(z, self.codes).argmin(1)]
            return self.decoder(z + (code - z).detach())

    x = torch.randn(8, 4)
    return Case(Quantised(), "mse", split(x, x))


def checkpointed(use_reentrant: bool) -> Case:
    def operation(x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(lambda h: (h * h.sigmoid()).tanh(), x, use_reentrant=use_reentrant)

    return case_of(operation, lambda h: (h * h.sigmoid()).tanh())


def scripted() -> Case:
    model, (x, y) = nn.Sequential(torch.jit.script(mlp(4, 5, 5)), nn.Tanh(), nn.Linear(5, 3)), points()
    return Case(model, "cross_entropy", split(x, y), lambda m: F.cross_entropy(m(x), y))


def a_data_dependent_branch() -> Case:
    def operation(h: Tensor) -> Tensor:
        return h.tanh() if float(h.detach().mean()) > -100 else h.sigmoid()

    return case_of(operation, torch.tanh)


def numbers_read_from_tensors() -> Case:
    x, y = points()

    def loss(m: nn.Module, batch: Any) -> Any:
        count = int((batch[1] >= 0).sum().item())
        return F.cross_entropy(m(batch[0]), batch[1], reduction="sum") / count

    return Case(mlp(), loss, split(x, y), lambda m: F.cross_entropy(m(x), y))


PROGRAMS = (
    Program("a custom Function that can be differentiated twice", lambda: case_of(Swish.apply, F.silu)),
    Program("a Function marked once_differentiable", lambda: case_of(OnceSwish.apply, F.silu), refused("", *EXACT)),
    Program("constants saved in forward (entmax)", lambda: case_of(DetachedSwish.apply, F.silu), refused("", *EXACT)),
    Program("straight-through rounding", lambda: case_of(StraightThrough.apply), refused("")),
    Program("a straight-through trick by detach", lambda: case_of(lambda h: h + (h.round() - h).detach()), refused("")),
    Program("a deep equilibrium with a hook", a_deep_equilibrium, refused("", *EXACT)),
    Program("stop-gradient (SimSiam)", stopped_gradient, refused("")),
    Program("vector quantisation", vector_quantised, refused("")),
    Program("checkpointing, reentrant", lambda: checkpointed(True)),
    Program("checkpointing", lambda: checkpointed(False)),
    Program("a scripted submodule", scripted),
    Program("a branch on data", a_data_dependent_branch),
    Program("numbers read by .item()", numbers_read_from_tensors),
)
