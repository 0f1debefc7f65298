"""What is looked at once before an operator's first product: is the loss a function, and is its derivative right?

On the first batch, in float64 where the loss can be: the loss is evaluated again, one product by double backward is
compared with a central difference of the gradient, and the graph is searched for parameters that are not the model's.
Of a large model, on the first samples of that batch, where it can be cut: these go through the same operations as the
others, and float64 is expensive.

    H v ≈ (g(p + h v) − g(p − h v)) / 2h,        |v| = 1,
    off by at most about |g(p + h v) − 2 g(p) + g(p − h v)| / 2h + u |g| / h

The first term grows with whatever makes differences rough: curvature, kinks, single precision inside. With h = √u |p|
both are small, and few kinks are crossed. Where the product is further off than that, it is compared once more, by
steps of several sizes and with an error that is measured (`finite_difference.compared`), before it is called wrong.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.kernels.random_vectors import directions
from hvpspec.kernels.torch_kernels import holding_padding_rows
from hvpspec.objective.cutting import CannotCut, cut, length
from hvpspec.objective.noise import blaming_changes, is_random
from hvpspec.objective.objective import REPEATED, Objective
from hvpspec.objective.parameters import joined
from hvpspec.oracle.autograd import refuse_once_differentiable
from hvpspec.oracle.central_differences import coarsest_unit, gradient, least_error, moved, size
from hvpspec.oracle.chains import derivative
from hvpspec.oracle.checks.repeats import check_repeats
from hvpspec.oracle.checks.samples import refuse_mixed_samples
from hvpspec.oracle.columns import through
from hvpspec.oracle.finite_difference import NO_FUNCTION, compared, is_gradient
from hvpspec.oracle.graph_memory import graph_nodes
from hvpspec.results.preflight import agree
from hvpspec.system.out_of_memory import OutOfMemory, within_memory
from hvpspec.wording import two_digits_percent

_NOT_JUDGED = (
    "a product differs from differences of the gradient, and there is too little memory to find out which of them is "
    "wrong: its figures were not checked. Use smaller batches."
)
_LEAST_SAMPLES = 16  # of the first batch, where it has more
_SAMPLES_TIMES_PARAMETERS = 1 << 25  # up to here, the whole batch takes a second or less
_NAMED = 3  # tensors that a message names


def verify(objective: Objective) -> None:
    """Raises InputError for a loss that is random, that does not depend on the model's parameters but on others, or
    whose products by double backward are contradicted by its gradients; for the empirical Fisher matrix, one that mixes
    samples.

    Costs one product and two gradients of the first batch, or of its first samples, and a forward pass; 20 to 100
    gradients of that batch more where the product does not agree with these two.
    """
    objective.settle()
    refuse_mixed_samples(objective)
    # The Hessian's products contain all that those of other matrices differentiate.
    alone = objective.on_first_batch().with_(matrix="hessian")
    few = _first_samples(alone)
    for one in ([] if few is None else [few.in_float64()]) + [alone.in_float64(), alone]:
        with (
            contextlib.suppress(_CannotTell),
            _blaming_changes(one),
        ):  # no float64 of an operation or no memory for it, a batch without weight
            if _is_doubtful(one):
                _judge(alone)
            return


def verify_differences(objective: Objective) -> None:
    """The same for products by finite differences, which need no second derivatives but a function to differentiate.

    Raises InputError for a loss that is random, of another model, or without a function that its gradient belongs to;
    and for data that differ between two passes. Costs two forward passes over the data, and 14 gradients of the first
    batch where the loss is smooth.
    """
    objective.settle()
    alone = objective.on_first_batch()
    with contextlib.suppress(_CannotTell), _blaming_changes(alone), alone.evaluating() as parameters:
        loss = _repeated(alone, _evaluations(alone))
        if loss.requires_grad and not is_gradient(alone):
            raise InputError(
                f"{NO_FUNCTION}. Replace that operation, leave its parameters out, or pass verify=False to go on all "
                "the same."
            )
        others = other_leaves(loss, parameters)
        if others and not _reached(loss, parameters):
            raise InputError(_of_another_model(others))
    with objective.evaluating():
        for _ in range(2):
            check_repeats(objective, [(weight, float(loss.detach())) for _, loss, weight in objective.losses()])


def _first_samples(alone: Objective) -> Objective | None:
    """The objective on the first samples of its only batch; None where these are all, or it cannot be cut."""
    axis, few = alone.counting.axis, max(_LEAST_SAMPLES, _SAMPLES_TIMES_PARAMETERS // alone.space.n)
    try:
        batch = next(iter(alone.data))
        return alone.with_(data=[cut(batch, axis, 0, few)]) if length(batch, axis) > few else None
    except (StopIteration, CannotCut):
        return None


class _CannotTell(Exception):
    """The loss cannot be evaluated so; the product itself says what is wrong."""


def _judge(objective: Objective) -> None:
    """Raises InputError where differences of the gradient contradict products beyond their own error."""
    found = within_memory(lambda: compared(objective))
    if isinstance(found, OutOfMemory):
        return warnings.warn(_NOT_JUDGED, RuntimeWarning, stacklevel=2)
    off, bound = found.off, found.bound
    if agree(off, bound):
        return
    if is_gradient(objective):
        cause = (
            "Some operation's second derivative is wrong (a custom backward, a constant saved in forward). Use the "
            "engine finite-difference, which needs first derivatives alone"
        )
    else:
        cause = f"{NO_FUNCTION[0].upper()}{NO_FUNCTION[1:]}. Replace that operation, or leave its parameters out"
    raise InputError(
        f"products of this loss are wrong by {two_digits_percent(off)}: differences of its gradient, which are good "
        f"to {bound:.0e}, contradict them. {cause}, or pass verify=False to go on all the same."
    )


def _is_doubtful(objective: Objective) -> bool:
    """Whether a product is further from two gradients than these show themselves to be good for; other errors raise."""
    with objective.evaluating() as parameters, holding_padding_rows():
        evaluations = _evaluations(objective)
        loss = _repeated(objective, evaluations)
        others = other_leaves(loss, parameters)
        if not loss.requires_grad:
            return False
        refuse_once_differentiable(0, loss, objective)
        return _differs(objective, parameters, loss, evaluations, others)


def _blaming_changes(objective: Objective) -> contextlib.AbstractContextManager[None]:
    return blaming_changes(objective.model, objective.data, objective.place, objective.dtype)


def _repeated(objective: Objective, evaluate: Callable[[], Tensor]) -> Tensor:
    """The loss. Raises InputError where a second evaluation gives another one."""
    loss = evaluate()
    again = evaluate().detach()
    off = float((again - loss.detach()).abs())
    if off > REPEATED[objective.dtype] * max(float(loss.detach().abs()), float(again.abs())):
        raise is_random(float(loss.detach()), float(again))
    return loss


def _evaluations(objective: Objective) -> Callable[[], Tensor]:
    """A call that gives the first batch's loss."""

    def evaluate() -> Tensor:
        try:
            _, loss, _ = next(objective.losses())
        except (InputError, StopIteration, torch.OutOfMemoryError) as error:
            raise _CannotTell from error
        return loss

    return evaluate


def _differs(
    objective: Objective,
    parameters: Sequence[Tensor],
    loss: Tensor,
    evaluate: Callable[[], Tensor],
    others: Sequence[Tensor],
) -> bool:
    try:
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        if all(gradient is None for gradient in gradients):
            if others:
                raise InputError(_of_another_model(others))
            return False
        v = directions(objective.space.n, 1, dtype=objective.dtype, device=objective.device)[0]
        v /= v.norm()
        found = through(objective, derivative(gradients, tuple(parameters)), v[None])
        exact = torch.zeros_like(v) if found is None else found[0]
    except InputError:
        raise
    except Exception as error:  # the product itself says what cannot be differentiated, or needs too much memory
        raise _CannotTell from error
    reached = [gradient is not None for gradient in gradients]
    pieces = [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(parameters, gradients, strict=True)]
    centre = joined(pieces)
    unit = coarsest_unit(loss)
    step = unit**0.5 * size(parameters)
    sides = []
    for side in (1, -1):
        with moved(objective, parameters, v, side * step, reached):
            sides.append(gradient(objective, 0, evaluate(), parameters))
    difference = (sides[0] - sides[1]) / (2 * step)
    bound = float((sides[0] - 2 * centre + sides[1]).norm()) / (2 * step) + float(least_error(centre, step))
    return not float((difference - exact).norm()) <= 2 * bound + unit * float(exact.norm())


def other_leaves(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that the loss depends on and that require a gradient, but are none of the parameters."""
    mine = {id(parameter) for parameter in parameters}
    leaves = [getattr(node, "variable", None) for node in graph_nodes([loss])]
    others = [leaf for leaf in leaves if isinstance(leaf, Tensor) and id(leaf) not in mine]
    return sorted(others, key=lambda leaf: tuple(leaf.shape))  # in an order that does not change from run to run


def _reached(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Those of the parameters that the loss depends on."""
    leaves = {id(getattr(node, "variable", None)) for node in graph_nodes([loss])}
    return [parameter for parameter in parameters if id(parameter) in leaves]


def _of_another_model(others: Sequence[Tensor]) -> str:
    return (
        f"the loss does not depend on the model's parameters, but on others ({_described(others)}): is it computed "
        "with another model? It has to use the one that it is given."
    )


def _described(tensors: Sequence[Tensor]) -> str:
    shapes = ", ".join(f"shape {tuple(tensor.shape)}" for tensor in tensors[:_NAMED])
    return f"{shapes}, …" if len(tensors) > _NAMED else shapes
