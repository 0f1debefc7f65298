"""The gradient of the loss, batch by batch: g = Σ_b w_b g_b / Σ_b w_b."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hvpspec.kernels.torch_kernels import EXCLUSIVE
from hvpspec.objective.objective import Objective
from hvpspec.objective.weights import BATCHES, samples_or_nan
from hvpspec.oracle.central_differences import check_finite, gradient
from hvpspec.system.out_of_memory import giving_up
from hvpspec.system.time_limit import check_time

Receive = Callable[[int, float, Tensor], None]
"""Is told each batch's number, its weight and its gradient, shape (n, 1), whose memory is used again afterwards."""


class LossGradient(NamedTuple):
    """The gradient of the loss, and what its spread over the batches needs besides.

    columns: of shape (n, 2), the gradient, and Σ w_b² g_b / Σ w_b². samples: how many there are in the data; NaN where
    that is not clear. by_samples: whether the weights say how much of the data a batch is, so that its gradient is a
    mean over that; not where the loss is a sum without weights.
    """

    columns: Tensor
    samples: float
    by_samples: bool


def loss_gradient(objective: Objective, receive: Receive) -> LossGradient:
    """Costs one gradient. Raises InputError, naming the batch, where the loss has none or it is not finite."""
    return giving_up(lambda: _one_pass(objective, receive))


def _one_pass(objective: Objective, receive: Receive) -> LossGradient:
    total = torch.zeros(2, objective.space.n, dtype=torch.float64, device=objective.device)
    weights, samples = list[float](), list[float]()
    with EXCLUSIVE, objective.evaluating() as parameters:
        for index, evaluate in objective.batch_losses():
            check_time()
            loss, weight = evaluate()
            if weight == 0:
                continue
            found = gradient(objective, index, loss, parameters)
            del loss  # frees memory for the next
            check_finite(objective, index, "the gradient", found)
            total[0].add_(found, alpha=weight)
            total[1].add_(found, alpha=weight**2)
            receive(index, weight, found[:, None])
            weights.append(weight)
            samples.append(samples_or_nan(evaluate.batch, objective.counting.axis))
        alike = len(set(samples)) == 1
        by_samples = objective.reduction == "mean" or objective.counting.by != BATCHES or alike
    total[0] /= sum(weights)
    total[1] /= sum(weight**2 for weight in weights)
    return LossGradient(total.T.to(objective.dtype), sum(samples), by_samples)
