"""Whether the loss of a sample depends on the other samples of its batch: then there is no gradient of a sample.

The losses of the first samples of a batch are compared with what the same samples give in a batch of half the size.
"""

from __future__ import annotations

from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.objective.cutting import CannotCut, cut, length
from hvpspec.objective.losses.outputs import listening
from hvpspec.objective.objective import Objective
from hvpspec.oracle.central_differences import coarsest_unit

_MOST_SAMPLES = 32  # of the first batch, that are looked at


def refuse_mixed_samples(objective: Objective) -> None:
    """Raises InputError where samples are mixed, and each is to have a gradient of its own: of the empirical Fisher.

    Costs forward passes of some samples of the first batch. Where these cannot be taken apart, or draw random numbers,
    nothing is refused.
    """
    if objective.matrix != "empirical-fisher" or objective.noise_seed is not None:
        return
    objective.settle()
    axis = objective.counting.axis
    try:
        batch = next(iter(objective.data))
        many = min(length(batch, axis), _MOST_SAMPLES) // 2
        parts = [cut(batch, axis, 0, size) for size in (2 * many, many)] if many else []
    except (StopIteration, CannotCut):
        return
    found = [_losses(objective, part) for part in parts]
    if not found or any(losses is None for losses in found):
        return
    whole, half = (losses for losses in found if losses is not None)
    if len(whole) != 2 * many or len(half) != many:
        return
    off, scale = float((whole[:many] - half).detach().abs().max()), float(whole.detach().abs().max())
    if off > coarsest_unit(whole.sum()) ** 0.5 * scale:
        raise InputError(
            "the loss of a sample depends on the other samples of its batch (BatchNorm in training mode, a mean over "
            "the batch inside the model), so that samples have no gradients of their own and there is no empirical "
            "Fisher matrix; use eval mode, or a model that looks at each sample by itself."
        )


def _losses(objective: Objective, part: object) -> Tensor | None:
    """Those of the samples in some part of a batch; None where they are not told apart."""
    alone = objective.with_(data=[part], reduction="mean")
    with alone.evaluating(), listening() as heard:
        for _ in alone.losses():
            break
        return None if heard.samples is None else heard.samples()[0]
