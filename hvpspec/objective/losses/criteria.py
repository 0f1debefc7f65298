"""torch's criteria as losses: the same means, with what they are taken over."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvpspec.errors import InputError
from hvpspec.objective.losses.outputs import announce_samples
from hvpspec.objective.losses.pairs import (
    class_weight,
    class_weights,
    on_device_of,
    outputs_and_targets,
    same_shape,
    softmax_cross_entropy,
)
from hvpspec.options import Reduction

_ELEMENTWISE = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
)  # fmt: skip
CRITERIA = (nn.CrossEntropyLoss, nn.NLLLoss, *_ELEMENTWISE)


def said_reduction(loss: Any) -> Reduction:
    """What a criterion of torch's says of itself; "mean" for all else, which is measured."""
    return "sum" if isinstance(loss, nn.modules.loss._Loss) and loss.reduction == "sum" else "mean"


def of_criterion(criterion: Any) -> Callable[[nn.Module, Any], Any]:
    """The criterion as a mean with its weight, whose product is the sum."""
    name = type(criterion).__name__
    if criterion.reduction not in ("mean", "sum"):
        raise InputError(f'{name} has reduction="{criterion.reduction}"; hvpspec needs reduction="mean" or "sum".')
    criterion = copy(criterion)
    criterion.reduction = "mean"

    def classes(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | int]:
        outputs, targets = outputs_and_targets(model, batch, name)
        weight = on_device_of(criterion.weight, outputs)
        if isinstance(criterion, nn.NLLLoss):
            compute = partial(F.nll_loss, outputs, targets, weight, ignore_index=criterion.ignore_index)
            weights = partial(class_weights, targets, weight, criterion.ignore_index)
            announce_samples(lambda: (compute(reduction="none"), weights()))
            return compute(), class_weight(outputs, targets, weight, criterion.ignore_index)
        return softmax_cross_entropy(outputs, targets, weight, criterion.ignore_index, criterion.label_smoothing)

    def elements(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        outputs, targets = same_shape(*outputs_and_targets(model, batch, name))
        buffers: Any = {key: on_device_of(value, outputs) for key, value in criterion.named_buffers()}
        compute = partial(torch.func.functional_call, parameter_and_buffer_dicts=buffers, args=(outputs, targets))
        each = copy(criterion)
        each.reduction = "none"
        announce_samples(lambda: (compute(each), None))
        return compute(criterion), targets.numel()

    return elements if isinstance(criterion, _ELEMENTWISE) else classes
