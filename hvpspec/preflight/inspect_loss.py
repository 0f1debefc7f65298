"""What the user should know of how the loss is evaluated and its batches are weighed."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from hvpspec.errors import InputError
from hvpspec.objective.cutting import GIVEN, SAMPLES
from hvpspec.objective.objective import Objective
from hvpspec.objective.weights import BATCHES
from hvpspec.oracle.checks.verify import other_leaves
from hvpspec.results.preflight import Finding
from hvpspec.wording import listed

_MAX_LISTED_TENSORS = 3
_STOCHASTIC = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)  # they have findings of their own
_NOTEWORTHY = 1e-4  # relative difference of the losses in training and eval mode


def loss_findings(objective: Objective) -> Iterator[Finding]:
    """Notes on a loss that has been evaluated on all data."""
    if objective.noise_seed is not None:
        yield Finding(
            "noise",
            f"random numbers of the model and the loss are fixed by the seed {objective.noise_seed}",
            "the results are those of this one sample of the noise",
            "note",
        )
    if objective.train_mode:
        yield Finding(
            "train_mode", "the model is evaluated in training mode", "the Hessian is that of this loss", "note"
        )
    counting = objective.counting
    if objective.reduction == "sum":
        done = "the results grow with the number of samples"
        yield Finding("sum", "the loss is the sum over the data, not the mean", done, "note")
    elif counting.is_sum:
        yield Finding(
            "sum",
            "the loss is a sum over the batch, not a mean",
            "the results grow with the number of samples; divide them by it, or return the mean, to compare runs",
            "note",
        )
    elif counting.by not in (GIVEN, SAMPLES, BATCHES):
        yield Finding(
            "weights", f"as measured, the loss is a mean over {counting.by}", "batches are weighed by that", "note"
        )


def captured(objective: Objective) -> Iterator[Finding]:
    """A note on tensors that the first batch's loss depends on, that require a gradient, and that are no parameters of
    the model: those of a criterion, or of another model. Costs a forward pass."""
    criterion = objective.loss.criterion
    names = {} if criterion is None else {id(p): f"loss.{name}" for name, p in criterion.named_parameters()}
    with objective.evaluating() as parameters:
        loss = next(objective.losses())[1]
        others = other_leaves(loss, parameters)
    if others:
        shown = listed(
            (names.get(id(tensor), f"a tensor of shape {tuple(tensor.shape)}") for tensor in others),
            _MAX_LISTED_TENSORS,
        )
        yield Finding(
            "captured",
            f"the loss depends on tensors that are no parameters of the model, but require a gradient: {shown}",
            "they are constants here; put them into the model to have their rows and columns in the Hessian",
            "note",
        )


def other_in_training(objective: Objective) -> Iterator[Finding]:
    """A note where the loss is another function in training mode, not by dropout or batch normalisation: models that
    predict, sample or cache in eval mode. Costs three forward passes of the first batch."""
    if objective.train_mode or any(isinstance(module, _STOCHASTIC) for module in objective.model.modules()):
        return
    usual = objective.value().value
    try:
        other, again = (objective.with_(train_mode=True).value().value for _ in range(2))
    except InputError:  # a loss that needs targets in training mode, say
        return
    if abs(other - again) > _NOTEWORTHY * abs(other):  # dropout that is no layer of its own
        return
    if abs(other - usual) <= _NOTEWORTHY * max(abs(other), abs(usual)):
        return
    yield Finding(
        "modes",
        f"in training mode the first batch has the loss {other:.6g}, in eval mode {usual:.6g}",
        "the Hessian is that of the loss in eval mode; --train-mode (train_mode=True) measures the other one",
        "note",
    )
