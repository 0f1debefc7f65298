"""What losses of outputs and targets share: how they get these from a batch, and cross-entropy."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvpspec.errors import InputError
from hvpspec.objective.losses.calls import call_model
from hvpspec.objective.losses.conventions import logits_of
from hvpspec.objective.losses.described import described
from hvpspec.objective.losses.outputs import announce, announce_samples


def softmax_cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    samples: int | None = None,
) -> tuple[Tensor, Tensor | int]:
    """Mean and weight. samples: how many there are, where the rows are parts of samples."""
    if targets.is_floating_point():
        targets = targets.to(outputs.dtype)
    compute = partial(
        F.cross_entropy, outputs, targets, weight, ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    announce_samples(lambda: (compute(reduction="none"), class_weights(targets, weight, ignore_index)), samples)
    mean = compute()
    return mean, class_weight(outputs, targets, weight, ignore_index)


def class_weight(outputs: Tensor, targets: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor | int:
    """What the "mean" of F.cross_entropy divides by."""
    weights = class_weights(targets, weight, ignore_index)
    if weights is None:  # class probabilities: the number of positions, with any class weights
        return targets.numel() // outputs.shape[1 if outputs.ndim > 1 else 0]
    return weights.sum()


def class_weights(targets: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor | None:
    """What each target counts in that, in their shape; None for 1 each."""
    if targets.is_floating_point():
        return None
    kept = targets != ignore_index
    return kept if weight is None else weight[torch.where(kept, targets, 0)] * kept


def outputs_and_targets(model: nn.Module, batch: Any, name: str) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InputError(
            f'the loss "{name}" needs batches that are pairs (inputs, targets); got {described(batch)}. '
            "For one batch, give data=[(inputs, targets)]."
        )
    inputs, targets = batch
    outputs = call_model(model, inputs)
    if not isinstance(targets, Tensor):
        raise InputError(
            f'the loss "{name}" needs targets that are a tensor; got {described(targets)}. Make them one in the data.'
        )
    logits = logits_of(outputs)
    announce(logits)
    return logits, targets


def same_shape(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if outputs.shape != targets.shape:  # broadcasting (n, 1) against (n,) is a well-known silent error
        raise InputError(
            f"outputs have shape {tuple(outputs.shape)} and targets {tuple(targets.shape)}; the two must be equal. "
            "Reshape the targets in the data, or the outputs in the model."
        )
    return outputs, targets.to(outputs.dtype)


def on_device_of(value: Tensor | None, like: Tensor) -> Tensor | None:
    return None if value is None else value.to(like.device, like.dtype if value.is_floating_point() else None)
