"""What losses have in common: the reduction of their values."""

from __future__ import annotations

from torch import Tensor


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """The values of a loss, their mean or their sum."""
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss
