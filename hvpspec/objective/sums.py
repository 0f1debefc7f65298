"""Sums of losses, written as weighted means: engines, error bars and folds of the data know only these.

With the weights w_b of the batches, and W = Σ_b w_b,

    Σ_b w_b · mean_b = (Σ_b w_b · (W · mean_b)) / W

so that the sum is the mean of losses that are W times as large. What a user's own loss gives without a weight is
summed as it is: w_b = 1, and W is the number of batches.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.objective.weights import BATCHES, Counting, Measurement, Place, best_place, first_evaluation, measured
from hvpspec.options import Matrix, Reduction
from hvpspec.validation import check_choice


def chosen_reduction(given: Reduction | None, said: Reduction, matrix: Matrix) -> Reduction:
    """What the user gives, or else what the loss says of itself. Raises InputError for what is neither."""
    if given is not None:
        check_choice("reduction", given, Reduction)
    if (reduction := given or said) == "sum" and matrix == "empirical-fisher":
        raise InputError(
            'the empirical Fisher matrix is the mean over the samples; it has no sum. Give reduction="mean", and '
            "multiply by the number of samples."
        )
    return reduction


def times(factor: float, result: Any) -> Any:
    """What a loss returned, its loss so many times as large; whatever else it is, to be refused later."""
    if isinstance(result, Tensor):
        return result * factor
    if isinstance(result, (tuple, list)) and len(result) == 2 and isinstance(result[0], Tensor):
        return result[0] * factor, result[1]
    return result


def counting_of_sums(
    data: Iterable[Any], place: Place, dtype: torch.dtype, *, guessed: bool, seeded: bool, trust: bool
) -> Counting:
    """How the batches of a user's own loss are weighed where the objective is a sum: see `weights.measured`.

    A loss with a weight is a mean, as elsewhere; one whose weight is `guessed` may be a mean or a sum, which is
    measured. Raises InputError for a loss without a weight that is a mean all the same: a sum of means would depend on
    how the data are split into batches.
    """
    for first in data:
        gradients, given = first_evaluation(first, place, dtype)
        if guessed and not trust:
            with contextlib.ExitStack() as stack:
                dtype, evaluate = best_place(first, place, dtype, gradients, stack)
                return _mean_or_sum(data, Measurement(evaluate, dtype, given is not None, seeded, guessed=True))
        if given is not None:
            return measured(data, place, dtype, guessed=guessed, seeded=seeded, trust=trust)
        if not trust:
            with contextlib.ExitStack() as stack:
                dtype, evaluate = best_place(first, place, dtype, gradients, stack)
                _refuse_mean(first, Measurement(evaluate, dtype, given=False, seeded=seeded))
        return Counting(BATCHES)
    return Counting(BATCHES)


def _mean_or_sum(data: Iterable[Any], measurement: Measurement) -> Counting:
    try:
        counting = measurement.over(data)
    except InputError:
        if not measurement.is_sum:
            raise
    return Counting(BATCHES) if measurement.is_sum else counting


def _refuse_mean(batch: Any, measurement: Measurement) -> None:
    measurement.over([batch])
    counts, loss = measurement.possible(), measurement.evaluate(0, batch)[0]
    if counts and loss and math.isfinite(loss):  # a loss of 0 is both
        raise InputError(
            f"batch 0: the loss is a mean over {counts[0]} already, so that its sum over the batches would depend on "
            "how the data are split; return the sum over the batch, or (mean loss, weight), or leave out "
            'reduction="sum" (--reduction sum).'
        )
