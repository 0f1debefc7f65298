"""The gradient of the loss, batch by batch: g = Σ_b w_b g_b / Σ_b w_b.

Of ranks, each adds up its own batches, and the sums of all are added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hvpspec.kernels.torch_kernels import EXCLUSIVE
from hvpspec.objective.losses.conventions import NoWeight
from hvpspec.objective.objective import Objective
from hvpspec.objective.weights import BATCHES, samples_or_nan
from hvpspec.oracle.central_differences import check_finite, gradient
from hvpspec.system.out_of_memory import giving_up
from hvpspec.system.time_limit import check_time, interruptible

Receive = Callable[[int, float, Tensor], None]
"""Is told each batch's number, its weight and its gradient, shape (n, 1), whose memory is used again afterwards."""


class LossGradient(NamedTuple):
    """The gradient of the loss, and what its spread over the batches needs besides.

    columns: of shape (n, 2), the gradient, and Σ w_b² g_b / Σ w_b²; of ranks, this one's rows. samples: how many there
    are in the data; NaN where that is not clear. by_samples: whether the weights say how much of the data a batch is,
    so that its gradient is a mean over that; not where the loss is a sum without weights.
    """

    columns: Tensor
    samples: float
    by_samples: bool


@dataclass
class Sums:
    """What batches add up to: Σ w_b g_b and Σ w_b² g_b, shape (n, 2) in float64, Σ w_b and Σ w_b², and their samples.

    sizes: the numbers of samples that batches have, as texts.
    """

    columns: Tensor
    weight: float = 0.0
    squares: float = 0.0
    samples: float = 0.0
    sizes: set[str] = field(default_factory=set)

    def mean(self, objective: Objective) -> LossGradient:
        """The gradient, of all batches."""
        if self.weight == 0:
            raise NoWeight
        by_samples = objective.reduction == "mean" or objective.counting.by != BATCHES or len(self.sizes) == 1
        columns = self.columns / self.columns.new_tensor([self.weight, self.squares])
        return LossGradient(columns.to(objective.dtype), self.samples, by_samples)


def no_batches(objective: Objective) -> Sums:
    """Before the first one."""
    return Sums(torch.zeros(2, objective.space.n, dtype=torch.float64, device=objective.device).T)


def loss_gradient(objective: Objective, receive: Receive) -> LossGradient:
    """Costs one gradient. Raises InputError, naming the batch, where the loss has none or it is not finite."""
    return sums(objective, receive).mean(objective)


def sums(objective: Objective, receive: Receive) -> Sums:
    """Over the objective's own batches."""
    with interruptible():
        return giving_up(lambda: _one_pass(objective, receive))


def _one_pass(objective: Objective, receive: Receive) -> Sums:
    found = no_batches(objective)
    total, of_squares = found.columns.T
    with EXCLUSIVE, objective.evaluating() as parameters:
        for index, evaluate in objective.batch_losses():
            check_time()
            loss, weight = evaluate()
            if weight == 0:
                continue
            own = gradient(objective, loss, parameters)
            del loss  # frees memory for the next
            check_finite(objective, index, "the gradient", own)
            total.add_(own, alpha=weight)
            of_squares.add_(own, alpha=weight**2)
            receive(index, weight, own[:, None])
            samples = samples_or_nan(evaluate.batch, objective.counting.axis)
            found.weight, found.squares = found.weight + weight, found.squares + weight**2
            found.samples += samples
            found.sizes.add(repr(samples))
    return found
