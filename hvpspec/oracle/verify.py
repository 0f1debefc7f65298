"""What is looked at once before an operator's first product: is the loss a function, and is its derivative right?

On the first batch, in float64 where the loss can be: the loss is evaluated again, one product by double backward is
compared with a central difference of the gradient, and the graph is searched for parameters that are not the model's.

    H v ≈ (g(p + h v) − g(p − h v)) / 2h,        off by about |g(p + h v) − 2 g(p) + g(p − h v)| / 2h + u |g| / h

The first term of that bound grows with whatever makes differences rough: truncation, kinks, single precision inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.objective.objective import Objective
from hvpspec.objective.torch_kernels import holding_padding_rows
from hvpspec.objective.weights import is_random
from hvpspec.oracle.autograd import graph_nodes, products, refuse_once_differentiable

_TOLERATED = {torch.float64: 1e-6, torch.float32: 2e-2}  # relative difference beyond ten bounds that proves nothing
_REPEATED = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative: sums in another order differ by less
_NAMED = 3  # tensors that a message names


def verify(objective: Objective) -> None:
    """Raises InputError for a loss that is random, that does not depend on the model's parameters but on others, or
    whose products by double backward are contradicted by its gradients.

    Costs one product and two gradients of the first batch, and a forward pass.
    """
    objective.settle()
    first = next(iter(objective.data), None)
    if first is None:
        return  # the product itself says so
    alone = objective.with_(data=[first])
    try:
        _verify(alone.in_float64())
    except _CannotTell:  # an operation that has no float64, a batch without weight
        with contextlib.suppress(_CannotTell):
            _verify(alone)


class _CannotTell(Exception):
    """The loss cannot be evaluated so; the product itself says what is wrong."""


def _verify(objective: Objective) -> None:
    with objective.evaluating() as parameters, holding_padding_rows():
        evaluations = _evaluations(objective)
        loss = evaluations()
        again = evaluations().detach()
        off = float((again - loss.detach()).abs())
        if off > _REPEATED[objective.dtype] * max(float(loss.detach().abs()), float(again.abs())):
            raise InputError(is_random(float(loss.detach()), float(again)))
        others = _other_leaves(loss, parameters)
        if not loss.requires_grad:
            return
        refuse_once_differentiable(0, loss)
        _compare(objective, parameters, loss, evaluations, others)


def _evaluations(objective: Objective) -> Callable[[], Tensor]:
    """A call that gives the first batch's loss."""

    def evaluate() -> Tensor:
        try:
            _, loss, _ = next(objective.losses())
        except (InputError, StopIteration) as error:
            raise _CannotTell from error
        return loss

    return evaluate


def _compare(
    objective: Objective,
    parameters: Sequence[Tensor],
    loss: Tensor,
    evaluate: Callable[[], Tensor],
    others: Sequence[Tensor],
) -> None:
    try:
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        if all(gradient is None for gradient in gradients):
            if others:
                raise InputError(
                    f"the loss does not depend on the model's parameters, but on others ({_described(others)}): is it "
                    "computed with another model?"
                )
            return
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(objective.space.n, generator=generator, dtype=torch.float64)
        v = (v / v.norm()).to(objective.device, objective.dtype)
        found = products(objective, gradients, parameters, v[None])
        exact = torch.zeros_like(v) if found is None else found[0]
    except torch.OutOfMemoryError as error:
        raise _CannotTell from error
    except RuntimeError as error:  # the product itself says what cannot be differentiated
        raise _CannotTell from error
    unit = torch.finfo(objective.dtype).eps
    size = sum(float(p.detach().square().sum()) for p in parameters) ** 0.5 or 1.0
    step = unit ** (1 / 3) * size
    centre = _flat(parameters, gradients)
    plus, minus = (_gradient(objective, parameters, evaluate, v, side * step) for side in (1, -1))
    difference = (plus - minus) / (2 * step)
    bound = float((plus - 2 * centre + minus).norm()) / (2 * step) + 4 * unit * float(centre.norm()) / step
    off, scale = float((difference - exact).norm()), max(float(exact.norm()), float(difference.norm()))
    if off > 10 * bound + _TOLERATED[objective.dtype] * scale:
        raise InputError(
            f"products of this loss are wrong by {off / scale:.1%}: differences of its gradient, which are good to "
            f"{bound / scale:.0e}, contradict them. Some operation's second derivative is wrong (a custom backward, a "
            "constant saved in forward), or no function has that gradient (detach(), straight-through estimators). Use "
            "the engine finite-difference, which needs first derivatives alone, or verify=False to go on all the same."
        )


def _flat(parameters: Sequence[Tensor], pieces: Sequence[Tensor | None]) -> Tensor:
    found = [
        torch.zeros_like(p) if piece is None else piece.detach() for p, piece in zip(parameters, pieces, strict=True)
    ]
    return torch.cat([piece.reshape(-1) for piece in found])


def _gradient(
    objective: Objective, parameters: Sequence[Tensor], evaluate: Callable[[], Tensor], v: Tensor, step: float
) -> Tensor:
    with moved(objective, parameters, v, step):
        loss = evaluate()
        if not loss.requires_grad:
            return torch.zeros_like(v)
        return _flat(parameters, torch.autograd.grad(loss, parameters, allow_unused=True))


@contextlib.contextmanager
def moved(objective: Objective, parameters: Sequence[Tensor], v: Tensor, step: float) -> Iterator[None]:
    """The model's own parameters at p + step · v, and back at p afterwards."""
    centre = [parameter.data for parameter in parameters]
    try:
        for parameter, middle, piece in zip(parameters, centre, objective.space.pieces(v), strict=True):
            parameter.data = middle + step * piece
        yield
    finally:
        for parameter, middle in zip(parameters, centre, strict=True):
            parameter.data = middle


def _other_leaves(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that the loss depends on and that require a gradient, but are none of the parameters."""
    mine = {id(parameter) for parameter in parameters}
    leaves = [getattr(node, "variable", None) for node in graph_nodes([loss])]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and id(leaf) not in mine]


def _described(tensors: Sequence[Tensor]) -> str:
    shapes = ", ".join(f"shape {tuple(tensor.shape)}" for tensor in tensors[:_NAMED])
    return f"{shapes}, …" if len(tensors) > _NAMED else shapes
