"""Two passes over the data must give the same losses: batches are not augmented at random, nor shuffled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hvpspec.errors import InputError
from hvpspec.objective.objective import REPEATED, Objective


def check_repeats(objective: Objective, losses: Sequence[tuple[float, float]]) -> None:
    """Compares a pass over the data with the one before, at the same parameters; use within `objective.evaluating()`.

    losses: each batch's weight and loss. Raises InputError where the data have changed: they are augmented at random,
    say, or shuffled, which matters to a loss that couples the samples of a batch.
    """
    total = math.fsum(weight for weight, _ in losses)
    value = math.fsum(weight * loss for weight, loss in losses) / total
    if (last := objective.last_pass) is not None and value == last[1]:
        return
    size = math.fsum(weight * abs(loss) for weight, loss in losses) / total
    place = float(torch.stack(torch._foreach_norm([p.detach() for p in objective.parameters])).double().sum())
    objective.last_pass = (place, value)
    allowed = REPEATED[objective.dtype] * size
    if last is None or last[0] != place or abs(value - last[1]) <= allowed:
        return
    again = objective.value().value
    if abs(value - again) <= allowed:
        return  # something else has changed, such as a number that the loss reads
    raise InputError(
        f"two passes over the data give different losses ({value:.9g}, {again:.9g}); turn shuffling and "
        "augmentation off, or give the batches of one pass (list(data), --freeze-data)."
    )
