"""The loss that a user gives, whatever its form, as one function of model and batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.errors import InputError
from hvpspec.objective.losses.conventions import UserLoss
from hvpspec.objective.losses.criteria import CRITERIA, of_criterion, said_reduction
from hvpspec.objective.losses.named import NAMED_LOSSES
from hvpspec.objective.losses.outputs import as_split
from hvpspec.options import LOSS_NAMES, Reduction
from hvpspec.raised import defined

LossFunction = Callable[..., Any]
"""`loss(model, batch)` or `loss(outputs, targets)`; it returns the mean loss, or (mean loss, weight)."""


@dataclass(frozen=True)
class Loss:
    """A loss as `function(model, batch)`.

    `weighs_exactly`: the weight that it returns is known to be what its mean is taken over. `given`: what it was made
    from. `criterion`: the module that computes it, if it is one, whose own values have to be in the model's dtype.
    `reduction`: what the objective is unless the user says otherwise; "sum" for criteria of torch that say so.
    """

    function: Callable[[nn.Module, Any], Any]
    weighs_exactly: bool
    given: Any
    criterion: nn.Module | None = None
    reduction: Reduction = "mean"

    @property
    def name(self) -> str:
        """As reports show it."""
        return loss_name(self.given)

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        return self.function(model, batch)


@dataclass
class BatchLoss:
    """A batch as the data give it; a call evaluates its mean loss and its weight, which is then known."""

    evaluate: Callable[[], tuple[Tensor, float]]
    batch: Any
    weight: float | None = None

    def __call__(self) -> tuple[Tensor, float]:
        loss, self.weight = self.evaluate()
        return loss, self.weight


@dataclass(frozen=True)
class LossValue:
    """The loss over the data.

    Parameters
    ----------
    value : float
        The weighted mean Σ w_b · loss_b / Σ w_b.
    weight : float
        The total weight Σ w_b.
    batches : int
        Number of batches.
    size : float
        The weighted mean of |loss_b|: rounding errors are relative to this, even where the losses cancel.
    samples : int or None
        Number of samples, the first dimension of the tensors in each batch; None where they differ.
    """

    value: float
    weight: float
    batches: int
    size: float = 0.0
    samples: int | None = None


def weighted_mean(losses: Iterable[tuple[float, float]]) -> LossValue:
    """The loss over the data from the loss and the weight of each batch; their samples are not known."""
    total = size = total_weight = 0.0
    batches = 0
    for value, weight in losses:
        total += weight * value
        size += weight * abs(value)
        total_weight += weight
        batches += 1
    return LossValue(total / total_weight, total_weight, batches, size / total_weight)


def loss_value(
    evaluating: Callable[[], AbstractContextManager[Any]], losses: Callable[[], Iterable[tuple[int, Tensor, float]]]
) -> LossValue:
    """The loss over the data. evaluating, losses: see `hvpspec.objective.objective.Objective`."""

    def found() -> LossValue:
        needs_gradients = torch.is_grad_enabled()
        with evaluating(), torch.set_grad_enabled(needs_gradients):
            return weighted_mean((float(loss.detach()), weight) for _, loss, weight in losses())

    try:
        with torch.no_grad():
            return found()
    except InputError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
        with torch.enable_grad():  # for a loss that differentiates; what else is wrong raises again
            return found()


def resolve_loss(loss: str | LossFunction | nn.Module | Loss) -> Loss:
    """The loss that a name, a torch criterion (such as `nn.CrossEntropyLoss()`), a module, a function or two stand for.

    Raises InputError for an unknown name, a criterion whose reduction is "none", or an object that is not callable.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        try:
            return Loss(NAMED_LOSSES[loss], loss != "model", loss)
        except KeyError:
            names = ", ".join(f"'{name}'" for name in LOSS_NAMES)
            raise InputError(
                f"no loss is named '{loss}'; choose one of {names}, or give a function loss(model, batch)."
            ) from None
    if type(loss) in CRITERIA and "forward" not in vars(loss):  # a subclass may compute anything
        return Loss(of_criterion(loss), True, loss, reduction=said_reduction(loss))
    if (split := as_split(loss)) is not None:
        criterion = split.loss if isinstance(split.loss, nn.Module) else None
        return Loss(split, False, split, criterion, said_reduction(split.loss))
    if not callable(loss):
        raise InputError(f"loss must be a name or a function loss(model, batch); got {type(loss).__name__}.")
    _refuse_signature(loss)
    return Loss(UserLoss(loss), False, loss, loss if isinstance(loss, nn.Module) else None, said_reduction(loss))


def _refuse_signature(loss: Callable[..., Any]) -> None:
    """Raises InputError for what cannot be called with two arguments."""
    if isinstance(loss, type):
        raise InputError(f"loss is the class {loss.__name__}; give an object of it, {loss.__name__}().")
    function = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function that Python does not know
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        at = f"; {where}" if (where := defined(function)) else ""
        raise InputError(
            f"the loss '{loss_name(loss)}' cannot be called with a model and a batch, or with outputs and targets "
            f"({error}{at}); give a function loss(model, batch) that takes the batch apart itself."
        ) from error


def loss_name(loss: str | LossFunction | nn.Module) -> str:
    """The name of a loss in reports."""
    if isinstance(loss, str):
        return loss
    if isinstance(loss, nn.Module):
        return repr(loss)
    return getattr(loss, "__qualname__", type(loss).__name__)
