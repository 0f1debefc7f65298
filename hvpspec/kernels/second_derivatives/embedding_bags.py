"""Sums, means and maxima of rows of a table of embeddings."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """torch.nn.functional.embedding_bag, with dense, unscaled gradients."""
    fixed = None if per_sample_weights is None else per_sample_weights.detach()
    named: dict[str, Any] = {"include_last_offset": include_last_offset, "padding_idx": padding_idx}
    table = weight.detach()  # the call refuses what it refuses, and applies max_norm to the values
    F.embedding_bag(input, table, offsets, max_norm, norm_type, mode=mode, per_sample_weights=fixed, **named)
    ids = input.reshape(-1)
    if offsets is None:
        offsets = torch.arange(len(input), device=input.device) * input.shape[1]
        named["include_last_offset"] = False
    if mode == "max":
        return _largest(ids, weight, offsets.to(ids.dtype), named)
    rows = F.embedding(ids, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1, 1)
    counted = torch.ones_like(ids, dtype=torch.bool) if padding_idx is None else ids != padding_idx % len(weight)
    rows = torch.where(counted[:, None], rows, 0)
    starts = offsets[:-1] if named["include_last_offset"] else offsets
    bag = torch.searchsorted(starts.contiguous(), torch.arange(len(ids), device=ids.device).to(starts), right=True) - 1
    found = rows.new_zeros(len(starts), weight.shape[1]).index_add(0, bag, rows)
    if mode == "mean":
        sizes = rows.new_zeros(len(starts)).index_add(0, bag, counted.to(rows.dtype))
        found = found / sizes.clamp_min(1)[:, None]
    return found


def _largest(ids: Tensor, weight: Tensor, offsets: Tensor, named: dict[str, Any]) -> Tensor:
    """The largest entries of each bag, where torch finds them; 0 of an empty bag."""
    values, _, _, places = torch.embedding_bag(weight.detach(), ids, offsets, False, 2, False, None, **named)
    found = weight.gather(0, places.long().clamp_min(0))
    return torch.where(found == values, found, values)
