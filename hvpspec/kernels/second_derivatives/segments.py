"""Reductions over segments of a dimension, as graph networks have them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def segment_reduce(
    data: Tensor,
    reduce: str,
    *,
    lengths: Tensor | None = None,
    indices: Tensor | None = None,
    offsets: Tensor | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: Any = None,
) -> Tensor:
    """torch.segment_reduce."""
    named: dict[str, Any] = {"lengths": lengths, "indices": indices, "offsets": offsets, "axis": axis}
    values = torch.segment_reduce(data.detach(), reduce, **named, unsafe=unsafe, initial=initial)
    axis %= data.ndim
    ends = lengths.cumsum(axis) if lengths is not None else offsets[..., 1:]  # type: ignore[index]
    places = torch.arange(data.shape[axis], device=data.device).expand(*data.shape[: axis + 1])
    segment = torch.searchsorted(ends.contiguous(), places.to(ends.dtype).contiguous(), right=True)
    index = segment.reshape(*segment.shape, *[1] * (data.ndim - axis - 1)).expand_as(data)
    first = float(reduce == "prod") if initial is None else float(initial)
    return _reduced(data, index, axis, reduce, values, first)


def sparse_mm(A: Tensor, B: Tensor, *reduce: str, **named: str) -> Tensor:
    """torch.sparse.mm, where it reduces the rows of a constant A of layout CSR in its own way."""
    kinds = [*reduce, *named.values()]
    if not kinds or A.requires_grad or A.layout != torch.sparse_csr:
        product: Tensor = torch.sparse.mm(A, B, *reduce, **named)
        return product
    values = torch.sparse.mm(A, B.detach(), *kinds)
    crow = A.crow_indices()
    row = torch.repeat_interleave(torch.arange(len(crow) - 1, device=crow.device), crow.diff())
    products = A.values()[:, None] * B[A.col_indices().long()]
    index = row[:, None].expand_as(products)
    return _reduced(products, index, 0, kinds[0], values, 0.0)


def _reduced(data: Tensor, index: Tensor, axis: int, reduce: str, values: Tensor, initial: float) -> Tensor:
    """What torch finds with `values`; index: the segment of each entry along the axis, of the shape of the data."""
    like: dict[str, Any] = {"dtype": data.dtype, "device": data.device}
    counts = torch.zeros(values.shape, **like).scatter_add(axis, index, torch.ones(index.shape, **like))
    if reduce == "prod":
        return initial * _products(data, index, axis, counts.long())
    if reduce in ("sum", "mean"):
        found = torch.full_like(values, initial).scatter_add(axis, index, data)
        return found if reduce == "sum" else torch.where(counts > 0, found / counts.clamp_min(1), values)
    # The largest or smallest: the mean of those that are; where none is, the segment is empty or the initial value is.
    wins = data == values.gather(axis, index)
    winners = torch.zeros_like(values).scatter_add(axis, index, wins.to(data.dtype))
    found = torch.zeros_like(values).scatter_add(axis, index, torch.where(wins, data, 0))
    return torch.where(winners > 0, found / winners.clamp_min(1), values)


def _products(data: Tensor, index: Tensor, axis: int, counts: Tensor) -> Tensor:
    """Of each segment, in rows as long as the longest: torch's scatter_reduce is wrong in forward mode (torch 2.13)."""
    longest, number = int(counts.max()) if counts.numel() else 0, counts.shape[axis]
    shape = [1] * axis + [-1] + [1] * (data.ndim - axis - 1)
    places = torch.arange(data.shape[axis], device=data.device).reshape(shape)
    starts = counts.cumsum(axis) - counts
    column = places - starts.gather(axis, index)
    rows = data.new_ones(*data.shape[:axis], number * longest, *data.shape[axis + 1 :])
    rows = rows.scatter(axis, index * longest + column, data)
    return rows.reshape(*data.shape[:axis], number, longest, *data.shape[axis + 1 :]).prod(axis + 1)
