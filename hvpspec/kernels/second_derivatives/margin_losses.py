"""Losses that compare the scores of classes with a margin."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction

from hvpspec.kernels.second_derivatives.reduction import reduced


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """torch.nn.functional.multi_margin_loss: w_y Σ_{j ≠ y} max(0, margin − x_y + x_j)^p / C."""
    reduction = _as_string(size_average, reduce, reduction)
    F.multi_margin_loss(input.detach(), target, p, margin, weight, reduction=reduction)  # refuses what it refuses
    x = input.reshape(-1, input.shape[-1] if input.ndim else 1)
    y = target.reshape(-1, 1)
    short = (margin - x.gather(1, y) + x).relu() ** p
    other = torch.ones_like(x, dtype=torch.bool).scatter(1, y, False)
    loss = torch.where(other, short, 0).sum(1) / x.shape[1]
    loss = loss if weight is None else loss * weight[y[:, 0]]
    return reduced(loss.reshape(target.shape if input.ndim > 1 else ()), reduction)


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """torch.nn.functional.multilabel_margin_loss: Σ_y Σ_{j no label} max(0, 1 − x_y + x_j) / C.

    The labels of a sample are the entries of its target before the first −1.
    """
    reduction = _as_string(size_average, reduce, reduction)
    F.multilabel_margin_loss(input.detach(), target, reduction=reduction)
    x = input.reshape(-1, input.shape[-1] if input.ndim else 1)
    given = (target.reshape(x.shape) >= 0).long().cumprod(1)
    labels = target.reshape(x.shape) * given
    is_label = torch.zeros_like(given).scatter_add(1, labels, given) > 0
    short = (1 - x.gather(1, labels)[:, :, None] + x[:, None, :]).relu()
    counted = given.bool()[:, :, None] & ~is_label[:, None, :]
    loss = torch.where(counted, short, 0).sum((1, 2)) / max(x.shape[1], 1)
    return reduced(loss.reshape(input.shape[:-1]), reduction)


def _as_string(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The reduction, also where it is given in the older way."""
    if size_average is None and reduce is None:
        return reduction
    found: Any = _reduction.legacy_get_string(size_average, reduce, False)
    return str(found)
