"""Central differences of a batch's gradient, with an error that is measured from the same gradients.

Along a unit vector v, from g at p ± h v, p ± h v / 2 and p:

    D(h) = (g(p + h v) − g(p − h v)) / 2h,          H v ≈ (4 D(h/2) − D(h)) / 3
    S(h) = g(p + h v) − 2 g(p) + g(p − h v),        apart = D(h/2) − D(h),     rough = (S(h) − 4 S(h/2)) / 2h

The extrapolated value (Richardson 1911, doi:10.1098/rsta.1911.0009) is off by O(h⁴) where g is smooth; `apart` is
O(h²), `rough` O(h³). Noise of size σ in each gradient puts the value off by 1.9 σ/h and makes `rough` about 4.2 σ/h, so
that no size of the noise need be assumed (differences of higher order measure it: Moré and Wild 2011,
doi:10.1137/100786125). Where the gradient jumps by J between p and p ± h v/2, the value is off by 7 J / 6h and `rough`
is 3 J / 2h; between p ± h v/2 and p ± h v, J / 6h and J / 2h. Two jumps that cancel in `rough` show in `apart`, such as
those at a kink in p itself: 7/3 of it is then the error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.kernels.deferred import Deferred, not_finite
from hvpspec.kernels.torch_kernels import holding_padding_rows
from hvpspec.objective.live_model import set_data
from hvpspec.objective.objective import Objective
from hvpspec.objective.parameters import as_real, joined
from hvpspec.oracle.autograd import OnBatch, refused_derivative
from hvpspec.oracle.graph_memory import graph_nodes
from hvpspec.system.undoing import run_all
from hvpspec.validation import all_finite, not_finite_in

Evaluate = Callable[[], tuple[Tensor, float]]
"""A batch's loss and its weight."""
GradientAt = Callable[[float], Tensor]
"""A batch's gradient as a function of the way along v."""
Estimate = Callable[[float], tuple[Tensor, Tensor]]
"""From a step: what `estimated` gives for a batch and a vector, and its least error."""
Improve = Callable[[Estimate, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From this and what it gave: something better, or the same."""

_WEIGHT_OF_APART, _WEIGHT_OF_ROUGH = 7 / 3, 1.5  # in the error


@dataclass(frozen=True)
class Differences:
    """Products with unit vectors, (b, n), by steps of one size; bounds of their errors, (b,); and how much of the error
    of the worst batch is noise, which becomes larger as the step becomes smaller."""

    step: float
    products: Tensor
    errors: Tensor
    noise: Tensor


def differences(
    objective: Objective,
    units: Tensor,
    step: float,
    on_batch: OnBatch | None = None,
    improve: Improve = lambda estimate, found, least: (found, least),
    deferred: Deferred | None = None,
) -> Differences:
    """Products with unit vectors (b, n), in one pass over the data and at 4 b + 1 gradients.

    The gradients of a batch are computed one after the other, so that only one graph is held at a time. deferred: is
    read at the end; it raises Doubtful where something is wrong then.
    """
    with objective.evaluating(deferred) as parameters, holding_padding_rows():
        try:
            found = _one_pass(objective, parameters, units, step, on_batch, improve, deferred)
        except InputError:
            if deferred is not None:
                deferred.read()  # what was wrong before that
            raise
        if deferred is not None:
            deferred.read()
        return found


def _one_pass(
    objective: Objective,
    parameters: Sequence[Tensor],
    units: Tensor,
    step: float,
    on_batch: OnBatch | None,
    improve: Improve,
    deferred: Deferred | None,
) -> Differences:
    total = torch.zeros(3, *units.shape, dtype=objective.dtype, device=objective.device)
    least, weights, loudest = torch.zeros_like(total[0, :, 0]), 0.0, total.new_zeros(())
    length = size_of(parameters)
    for index, evaluate in objective.batch_losses(deferred):
        loss, weight = evaluate()
        if weight == 0:
            continue
        pieces = _gradients(objective, index, loss, parameters)
        reached = [piece is not None for piece in pieces]
        centre = _as_vector(parameters, pieces)
        check_finite(objective, index, "the gradient", centre, deferred)
        del loss, pieces  # frees memory for the next
        shares = torch.zeros_like(units) if on_batch is not None else None
        for row, v in enumerate(units):

            def gradient_at(
                way: float,
                v: Tensor = v,
                index: int = index,
                evaluate: Evaluate = evaluate,
                reached: Sequence[bool] = reached,
            ) -> Tensor:
                with moved(objective, parameters, v, way, reached):
                    return gradient(objective, index, evaluate()[0], parameters)

            def estimate(step: float, at: GradientAt = gradient_at, centre: Tensor = centre) -> tuple[Tensor, Tensor]:
                found = estimated(at, centre, step)
                return found, least_error(centre, step) + least_error(found[0], step) * length

            found, off = estimate(step)
            loudest = torch.maximum(loudest, noise(found, off))
            found, off = improve(estimate, found, off)
            check_finite(objective, index, "the gradient near the parameters", found[0], deferred)
            total[:, row].add_(found, alpha=weight)
            least[row] += weight * off
            if shares is not None:
                shares[row] = found[0]
        weights += weight
        if on_batch is not None:
            on_batch(index, weight, shares)
    total /= weights
    return Differences(step, total[0], error(total) + least / weights, loudest)


def check_finite(objective: Objective, index: int, what: str, vector: Tensor, deferred: Deferred | None = None) -> None:
    """Raises InputError, naming batch and parameter, where it is not; later where that is deferred."""
    if deferred is not None:
        return deferred.forbid(not_finite(vector))
    if all_finite(vector):
        return None
    where = not_finite_in(zip(objective.space.names, objective.space.split(vector), strict=True))
    raise InputError(
        f"batch {index}: {what} is not finite, although the loss is: it has {where}; look for a square root, a norm "
        "or a logarithm of 0 in that batch, or try float64."
    )


def estimated(gradient_at: GradientAt, centre: Tensor, step: float) -> Tensor:
    """The product, `apart` and `rough`, shape (3, n); centre: the gradient at p. Costs 4 gradients."""
    found = centre.new_zeros(3, len(centre))
    found[2].add_(centre, alpha=3 / step)
    for side in (1, -1):
        _add(found, gradient_at(side * step), (-side / 6, -side / 2, 1 / 2), step)
        _add(found, gradient_at(side * step / 2), (side * 4 / 3, side, -2), step)
    return found


def _add(found: Tensor, gradient: Tensor, factors: tuple[float, float, float], step: float) -> None:
    """(As numbers: a GPU waits for factors in a tensor from the CPU.)"""
    for row, factor in zip(found, factors, strict=True):
        row.add_(gradient, alpha=factor / step)


def error(found: Tensor) -> Tensor:
    """A bound of the error of what `estimated` gives, (3, n), or of several, (3, b, n), without the least error."""
    _, apart, rough = found.norm(dim=-1)
    off: Tensor = _WEIGHT_OF_APART * apart + _WEIGHT_OF_ROUGH * rough
    return off


def noise(found: Tensor, least: Tensor) -> Tensor:
    """The part of the error that becomes larger as the step becomes smaller."""
    size: Tensor = found[2].norm()
    return _WEIGHT_OF_ROUGH * size + least


def least_error(rounded: Tensor, step: float) -> Tensor:
    """From rounding in the last digit of a gradient, or of p where a product says what that changes, over the step.

    It is part of the error whatever is measured: a few numbers may happen to be rounded alike.
    """
    size: Tensor = rounded.norm()
    return 2 * torch.finfo(rounded.dtype).eps * size / step


def gradient(objective: Objective, index: int, loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The gradient of a batch's loss as one vector. Raises InputError where there is none."""
    return _as_vector(parameters, _gradients(objective, index, loss, parameters))


def _as_vector(parameters: Sequence[Tensor], pieces: Sequence[Tensor | None]) -> Tensor:
    return joined([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, pieces, strict=True)])


def _gradients(objective: Objective, index: int, loss: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The gradient's pieces; None for parameters that it does not reach. Raises InputError."""
    if not loss.requires_grad:
        return [None] * len(parameters)
    try:
        return torch.autograd.grad(loss, parameters, allow_unused=True)
    except (InputError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # a Function of the user's own may raise anything in its backward
        raise refused_derivative(objective, index, error) from error


@contextlib.contextmanager
def moved(
    objective: Objective, parameters: Sequence[Tensor], v: Tensor, step: float, reached: Sequence[bool]
) -> Iterator[None]:
    """The model's own parameters at p + step · v, and back at p afterwards.

    Those that no gradient has reached stay where they are: what is used under no_grad is a constant.
    """
    centre = [parameter.data for parameter in parameters]
    undo = map(set_data, parameters, centre)
    try:
        each = zip(parameters, centre, objective.space.pieces(v), reached, strict=True)
        for parameter, middle, piece, moves in each:
            if moves:
                parameter.data = middle + step * piece
        yield
    finally:
        run_all(undo)


def size(parameters: Sequence[Tensor]) -> float:
    """|p|, or 1 where that is 0."""
    return float(size_of(parameters))


def size_of(parameters: Sequence[Tensor]) -> Tensor:
    """The same without waiting for it."""
    found: Tensor = torch.stack(torch._foreach_norm([as_real(p.detach()) for p in parameters])).norm()
    return torch.where(found == 0, 1, found)


def coarsest_unit(loss: Tensor) -> float:
    """The unit roundoff of the coarsest numbers that a loss is computed with, between the parameters and the loss.

    A model may compute a norm in float32 whatever its parameters are: steps that change nothing there show nothing.
    """
    outputs = [each for node in graph_nodes([loss]) for each in getattr(node, "_input_metadata", ())]
    dtypes = {loss.dtype, *(output.dtype for output in outputs)}
    return max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point or dtype.is_complex)
