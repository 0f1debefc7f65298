"""Tensors whose values are not all in one place: the strided tensors that sparse ones consist of."""

from __future__ import annotations

import torch
from torch import Tensor

_BY_ROWS = (torch.sparse_csr, torch.sparse_bsr)
_BY_COLUMNS = (torch.sparse_csc, torch.sparse_bsc)


def parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The indices and values of a sparse tensor as they are held; the tensor itself in any other layout."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in _BY_ROWS:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in _BY_COLUMNS:
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor,)
