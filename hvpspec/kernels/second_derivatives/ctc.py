"""Connectionist temporal classification, by its forward recursion (Graves et al. 2006, equations 6 and 7).

In the log domain, over the states of a target l_1 … l_S with blanks b around: b l_1 b l_2 b … l_S b,

    α_t(s) = log Σ exp(α_{t−1}(s), α_{t−1}(s − 1), α_{t−1}(s − 2) where state s may follow s − 2) + log p_t(s)
    −log likelihood = −log(exp α_T(2S) + exp α_T(2S − 1))

torch's gradient takes for granted that the probabilities of each step sum to 1: it is p − γ, with the probabilities γ
of the states, and not −γ. This is the gradient of the same value if Σ p, less itself as a constant, is added. Where
the probabilities are a softmax the two have the same derivatives with respect to what that is taken of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from hvpspec.kernels.second_derivatives.reduction import reduced

_NOTHING = -1e30
"""The logarithm of probability 0, in any precision: −inf would make NaN in derivatives."""

Lengths = Tensor | Sequence[int]


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """torch.nn.functional.ctc_loss."""
    if not (isinstance(log_probs, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(log_probs)):
        given: Any = (log_probs.detach(), targets, input_lengths, target_lengths, blank)
        F.ctc_loss(*given)  # refuses what it refuses, for which it needs values
    x = log_probs if log_probs.ndim == 3 else log_probs[:, None]
    steps, sizes = (
        torch.as_tensor(lengths).to(x.device, torch.long).reshape(-1) for lengths in (input_lengths, target_lengths)
    )
    width = targets.shape[1] if targets.ndim == 2 else int(torch.as_tensor(target_lengths).max())
    labels = _padded(targets.to(x.device, torch.long), sizes, width, blank)
    found = _log_likelihood(x.clamp_min(_NOTHING), labels, steps, sizes, blank)
    impossible = found < _NOTHING / 2
    counted = torch.arange(len(x), device=x.device)[:, None] < steps
    total = torch.where(counted, x.exp().sum(2), 0).sum(0)
    loss = torch.where(impossible, 0 if zero_infinity else torch.inf, -found + (total - total.detach()))
    if reduction == "mean":
        loss = loss / sizes.clamp_min(1)
    return reduced(loss if log_probs.ndim == 3 else loss[0], reduction)


def _padded(targets: Tensor, sizes: Tensor, width: int, blank: int) -> Tensor:
    """The labels of each target in a row (n, width), then blanks. Targets are given so, or one after the other."""
    columns = torch.arange(width, device=targets.device)
    if targets.ndim == 1 and len(targets):
        starts = sizes.cumsum(0) - sizes
        targets = targets[(starts[:, None] + columns).clamp_max(len(targets) - 1)]
    return torch.where(columns < sizes[:, None], targets.reshape(len(sizes), width), blank)


def _log_likelihood(x: Tensor, labels: Tensor, steps: Tensor, sizes: Tensor, blank: int) -> Tensor:
    """The logarithm of each target's probability, from those of all classes at all steps, (T, n, C)."""
    blanks = torch.full_like(labels, blank)
    states = F.pad(torch.stack([blanks, labels], 2).flatten(1), (0, 1), value=blank)
    number = torch.arange(states.shape[1], device=x.device)
    may_skip = F.pad((states[:, 2:] != states[:, :-2]) & (states[:, 2:] != blank), (min(2, len(number)), 0))
    emitted = x.gather(2, states.expand(len(x), -1, -1))
    before_all = torch.where(number == 0, 0, x.new_tensor(_NOTHING)).expand(len(states), -1)
    alpha = before_all
    for step, of_states in enumerate(emitted):
        if step == 0:
            new = torch.where(number < 2, of_states, _NOTHING)
        else:
            others = F.pad(alpha, (2, 0), value=_NOTHING)
            skipping = torch.where(may_skip, others[:, :-2], _NOTHING)
            new = torch.stack([alpha, others[:, 1:-1], skipping]).logsumexp(0) + of_states
        alpha = torch.where((step < steps)[:, None], new, alpha)
    ends = torch.stack([2 * sizes, (2 * sizes - 1).clamp_min(0)], 1)
    reached = torch.stack([torch.ones_like(sizes), sizes], 1) > 0  # no label, no state of one
    return torch.where(reached, alpha.gather(1, ends), _NOTHING).logsumexp(1)
