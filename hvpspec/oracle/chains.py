"""The matrices that there are products of, each as a chain of vector-Jacobian products.

With the loss ℓ(z) of the outputs z(p), slopes s = dℓ/dz, J = dz/dp and the gradient g = Jᵀs:

    Hessian            v ↦ (dg/dp)ᵀ v
    Gauss-Newton       v ↦ (d(Jᵀu)/du)ᵀ v = J v  ↦ (ds/dz)ᵀ J v  ↦ Jᵀ (∇²ℓ J v)
    residual           v ↦ (d(Jᵀs)/dp)ᵀ v with s fixed, which is the Hessian without the Gauss-Newton matrix
    empirical Fisher   v ↦ S v ↦ Sᵀ S v,  where row i of S is √(wᵢ/Σw) dℓᵢ/dp of sample i

A step of a chain is one pass through a graph that is computed once. The Jacobian times a vector is a product with a
transpose as well, that of u ↦ Jᵀu, which is linear in u (the "double backward trick"): no forward mode is needed,
and whatever has a second derivative will do. Schraudolph, doi:10.1162/08997660260028683; Martens, arXiv:1412.1193.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hvpspec.errors import InputError
from hvpspec.objective.losses.outputs import Heard
from hvpspec.options import Matrix

Place = Tensor | GradientEdge
"""A tensor with its graph, or only its place in that, which does not keep the tensor itself alive."""
ProductThrough = Callable[[Sequence[Any], Sequence[Any], Sequence[Tensor]], Sequence[Tensor | None]]
"""Σ vectors[i]ᵀ d outputs[i] / d inputs, from outputs, inputs and vectors."""

_ROUNDING_OF_MEANS = 1e3  # in units of the last digit: sums are in another order

NOT_SPLIT = (
    "needs to know the model's outputs and the loss of these apart: give a loss by name, a torch criterion, a function "
    "loss(outputs, targets), or two functions, hvpspec.SplitLoss(outputs, loss)"
)


@dataclass(frozen=True)
class Link:
    """A vector for each of the outputs ↦ Σ vᵢᵀ d outputs[i] / d inputs."""

    outputs: tuple[Place, ...]
    inputs: tuple[Place, ...]

    def places(self) -> Link:
        """The same without the tensors themselves."""
        return Link(tuple(map(_place, self.outputs)), tuple(map(_place, self.inputs)))


@dataclass(frozen=True)
class Chain:
    """A batch's product. `entries`: the numbers of the parameters whose part of a vector enters the first link; none
    where the matrix is zero. The last link's inputs are the parameters."""

    entries: tuple[int, ...]
    links: tuple[Link, ...]

    def places(self) -> Chain:
        """The same without the tensors themselves."""
        return Chain(self.entries, tuple(link.places() for link in self.links))

    def tensors(self) -> list[Tensor]:
        """All the tensors that have graphs."""
        return [tensor for link in self.links for tensor in link.outputs if isinstance(tensor, Tensor)]

    def __call__(self, pieces: Sequence[Tensor], through: ProductThrough) -> list[Tensor | None]:
        """The product, a tensor or None for each parameter, from a vector's parts for all parameters."""
        vectors: list[Tensor | None] = [pieces[i] for i in self.entries]
        for link in self.links:
            known = [(o, v) for o, v in zip(link.outputs, vectors, strict=True) if v is not None]
            if not known:
                return [None] * len(self.links[-1].inputs)
            vectors = list(through([o for o, _ in known], link.inputs, [v for _, v in known]))
        return vectors


NOTHING = Chain((), ())


def chain(matrix: Matrix, loss: Tensor, heard: Heard, parameters: tuple[Tensor, ...]) -> Chain:
    """The chain of a batch's product, from its mean loss with the graph and what it has announced.

    Raises InputError where the loss cannot be taken apart, and whatever autograd raises.
    """
    if matrix == "hessian":
        return derivative(torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True), parameters)
    if matrix == "empirical-fisher":
        return _of_samples(loss, heard, parameters)
    outputs = _outputs(matrix, loss, heard, parameters)
    if not outputs:
        return NOTHING
    slopes = torch.autograd.grad(loss, outputs, create_graph=True, allow_unused=True)
    known = [(z, s) for z, s in zip(outputs, slopes, strict=True) if s is not None]
    if not known:
        return NOTHING
    if matrix == "residual":
        along = torch.autograd.grad(
            [z for z, _ in known], parameters, [s.detach() for _, s in known], create_graph=True, allow_unused=True
        )
        return derivative(along, parameters)
    curved = [(z, s) for z, s in known if s.requires_grad]
    outputs, bent = tuple(z for z, _ in curved), tuple(s for _, s in curved)
    return _squared(outputs, parameters, Link(bent, outputs)) if curved else NOTHING


def derivative(gradients: Sequence[Tensor | None], parameters: tuple[Tensor, ...]) -> Chain:
    """The derivative of a gradient. Entries that do not depend on the parameters are constants: affine there."""
    curved = [(i, g) for i, g in enumerate(gradients) if g is not None and g.requires_grad]
    if not curved:
        return NOTHING
    return Chain(tuple(i for i, _ in curved), (Link(tuple(g for _, g in curved), parameters),))


def _squared(outputs: tuple[Tensor, ...], parameters: tuple[Tensor, ...], middle: Link | None) -> Chain:
    """Jᵀ M J, with the Jacobian J of the outputs; without a middle link M is the identity."""
    vectors = tuple(torch.zeros_like(z, requires_grad=True) for z in outputs)
    transposed = torch.autograd.grad(outputs, parameters, vectors, create_graph=True, allow_unused=True)
    reached = [(i, t) for i, t in enumerate(transposed) if t is not None]
    if not reached:
        return NOTHING
    times_j = Link(tuple(t for _, t in reached), vectors)
    times_jt = Link(outputs, parameters)
    links = (times_j, times_jt) if middle is None else (times_j, middle, times_jt)
    return Chain(tuple(i for i, _ in reached), links)


def _of_samples(loss: Tensor, heard: Heard, parameters: tuple[Tensor, ...]) -> Chain:
    """For the samples' losses, each times the square root of its share of the weight."""
    if heard.samples is None:
        raise InputError("the loss does not tell its samples apart.")
    losses, weights = heard.samples()
    shares = (weights / weights.sum()).to(losses.dtype)
    if type(loss) is Tensor:  # which has no value while it is recorded
        _check_mean(loss, losses, shares)
    return _squared((losses * shares.sqrt(),), parameters, None) if losses.requires_grad else NOTHING


def _check_mean(loss: Tensor, losses: Tensor, shares: Tensor) -> None:
    """Raises InputError where the samples' losses do not make up the loss of the batch."""
    batch, each = float(loss.detach()), losses.detach()
    mean, size = float(each @ shares), float(each.abs() @ shares)
    if not abs(mean - batch) <= _ROUNDING_OF_MEANS * torch.finfo(losses.dtype).eps * size:
        raise InputError(
            f"the loss ({batch:.6g}) is not the mean of the losses of its samples ({mean:.6g}), so that there is no "
            "empirical Fisher matrix; give a loss that is such a mean."
        )


def _outputs(matrix: Matrix, loss: Tensor, heard: Heard, parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs that a loss has announced. Raises InputError where it depends on the parameters in other ways too."""
    name = "the Gauss-Newton matrix" if matrix == "ggn" else "the Hessian without its Gauss-Newton part"
    if heard.outputs is None:
        raise InputError(f"{name} {NOT_SPLIT}.")
    if _reaches(loss, heard.outputs, parameters):
        raise InputError(
            "the loss depends on the parameters in other ways than through the outputs (weight decay, say), so that it "
            f"cannot be taken apart; {name} {NOT_SPLIT}."
        )
    return heard.outputs


def _reaches(loss: Tensor, outputs: tuple[Tensor, ...], parameters: tuple[Tensor, ...]) -> bool:
    """Whether the graph of the loss leads to the parameters without passing through the outputs."""
    barriers = {(z.grad_fn, z.output_nr) for z in outputs}
    mine = {id(parameter) for parameter in parameters}
    stack, seen = [(loss.grad_fn, loss.output_nr)], set()
    while stack:
        place = stack.pop()
        if place[0] is None or place in barriers or place[0] in seen:
            continue
        seen.add(place[0])
        if id(getattr(place[0], "variable", None)) in mine:
            return True
        stack += list(place[0].next_functions)
    return False


def _place(place: Place) -> Place:
    return get_gradient_edge(place) if isinstance(place, Tensor) else place
