"""Distances between the points of two sets, and between those of one.

As in torch, distance 0 has the gradient 0: that of a point to itself is 0 wherever the point is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MOST_POINTS_BY_DIFFERENCES = 25  # beyond, torch takes matrix products for Euclidean distances unless told not to
_ALWAYS_PRODUCTS = ("use_mm_for_euclid_dist", 1)
_NEVER_PRODUCTS = ("donot_use_mm_for_euclid_dist", 2)


def cdist(
    x1: Tensor,
    x2: Tensor,
    p: float = 2.0,
    compute_mode: str | int | None = "use_mm_for_euclid_dist_if_necessary",
) -> Tensor:
    """torch.cdist. Where torch takes matrix products, so that differences need not be held, so does this."""
    torch.cdist(x1.detach()[..., :0, :], x2.detach()[..., :0, :], p)  # refuses what it always refuses
    few = max(x1.shape[-2], x2.shape[-2]) <= _MOST_POINTS_BY_DIFFERENCES
    if p != 2 or compute_mode in _NEVER_PRODUCTS or (few and compute_mode not in _ALWAYS_PRODUCTS):
        return _norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)
    return _root(_squares(x1, x2))


def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """torch.pdist."""
    torch.pdist(input.detach()[:0], p)
    first, second = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _norm(input[first] - input[second], p)


def _norm(difference: Tensor, p: float) -> Tensor:
    """The p-norm over the last dimension, for p = 0 the number of entries that are not 0."""
    apart, size = difference != 0, difference.abs()
    if p == 0:
        return (apart + 0 * size).sum(-1)
    if p == 1 or size.shape[-1] == 0:
        return size.sum(-1)
    if math.isinf(p):
        return size.amax(-1)
    if p == 2:
        return _root(difference.square().sum(-1))
    # Where an entry is 0, its power has no derivatives, or infinite ones: it is left out.
    return _root((torch.where(apart, size, 1) ** p * apart).sum(-1), p)


def _root(power: Tensor, p: float = 2.0) -> Tensor:
    """The p-th root; 0 with derivatives 0 where the power is 0."""
    positive = power > 0
    inside = torch.where(positive, power, 1)
    return torch.where(positive, inside.sqrt() if p == 2 else inside ** (1 / p), 0)


def _squares(x1: Tensor, x2: Tensor) -> Tensor:
    """The squares of Euclidean distances, whose derivatives are those of |x|² + |y|² − 2 x·y.

    The values are computed from differences: rounding of the sum would make distances 0 of what is equal positive.
    """
    value = torch.cdist(x1.detach(), x2.detach(), 2.0, "donot_use_mm_for_euclid_dist").square()
    if x2.shape[-2]:
        centre = x2.detach().mean(-2, keepdim=True)  # the nearer to 0 the points are, the less is lost in the sum
        x1, x2 = x1 - centre, x2 - centre
    product = x1 @ x2.mT
    found = x1.square().sum(-1)[..., None] + x2.square().sum(-1)[..., None, :] - 2 * product
    return value + (found - found.detach())
