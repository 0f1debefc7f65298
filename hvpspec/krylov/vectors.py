"""What is computed with long vectors, in full precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.distributed.shard import added, part, rows_of
from hvpspec.errors import InputError
from hvpspec.kernels.full_precision import in_full_precision
from hvpspec.kernels.random_vectors import CHUNK

_FLOAT32_SUM = 1 << 12  # entries whose products are summed in float32
_MOST_SUMS = 1 << 15  # in one call: CUDA has a limit of 65,535 on how many matrices are multiplied at once
_COPIED_ENTRIES = 1 << 24  # of an intermediate result: few launches, and little memory next to a longer vector
_SHORTEST_SUM = 1e-3  # length of a sum of unit vectors below which they are taken to cancel


def inner(A: Tensor, B: Tensor) -> Tensor:
    """AᵀB for A (n, a) and B (n, b): shape (a, b), in float64, computed on A's device and returned on B's.

    The sum over the ranks, where vectors are spread over them.
    """
    return added(inner_of_part(A, B))


@in_full_precision
def inner_of_part(A: Tensor, B: Tensor) -> Tensor:
    """The same of the rows that this rank has.

    float32 vectors are multiplied in pieces of 4,096 entries, and the sums of the pieces are added in float64. The
    error is 5e-9 of the product of the lengths where terms differ in sign, and at most two roundoffs of float32 where
    all have the same sign. Converting the entries to float64 would take two to eight times as long (measured with 10 to
    60 vectors of 943,000 entries on two cores).
    """
    here, B = B.device, B.to(A.device)
    if not A.shape[1] or not B.shape[1]:
        return torch.zeros(A.shape[1], B.shape[1], dtype=torch.float64, device=here)
    if A.dtype == B.dtype == torch.float64:
        total = A.T @ B
    elif A.dtype == B.dtype:
        total = _added(_inner_of_pieces(A[rows], B[rows]) for rows in pieces(len(A), _MOST_SUMS * _FLOAT32_SUM))
    else:
        parts = pieces(len(A), max(CHUNK, _COPIED_ENTRIES // (A.shape[1] + B.shape[1])))
        total = _added(A[rows].double().T @ B[rows].double() for rows in parts)
    return total.to(here)


def _inner_of_pieces(A: Tensor, B: Tensor) -> Tensor:
    if len(A) < _FLOAT32_SUM:
        return (A.T @ B).double()
    whole = len(A) - len(A) % _FLOAT32_SUM
    products = _pieces(A[:whole]).transpose(0, 1) @ _pieces(B[:whole]).permute(1, 2, 0)
    total: Tensor = products.sum(0, dtype=torch.float64)
    return total if whole == len(A) else total + A[whole:].T @ B[whole:]


@in_full_precision
def rough_inner(A: Tensor, B: Tensor) -> Tensor:
    """AᵀB in the precision of the vectors, on B's device: for quantities that need only a few digits.

    Of vectors that are spread over ranks, only of this rank's rows: see `hvpspec.distributed.shard.added`.
    """
    return (A.T @ B.to(A.device)).to(B.device)


def column_inner(A: Tensor, B: Tensor) -> Tensor:
    """The inner product of each column of A with the same column of B: shape (b,), in float64.

    The sum over the ranks, where vectors are spread over them.
    """
    return added(column_inner_of_part(A, B))


@in_full_precision
def column_inner_of_part(A: Tensor, B: Tensor) -> Tensor:
    """The same of the rows that this rank has."""
    parts = pieces(len(A), max(CHUNK, _COPIED_ENTRIES // max(A.shape[1], 1)))
    return _added(_column_inner_of_pieces(A[rows], B[rows]) for rows in parts)


def _column_inner_of_pieces(A: Tensor, B: Tensor) -> Tensor:
    products = A * B
    if products.dtype == torch.float64 or len(A) < _FLOAT32_SUM:
        return products.sum(0).double()
    whole = len(A) - len(A) % _FLOAT32_SUM
    total: Tensor = _pieces(products[:whole]).sum(2).sum(1, dtype=torch.float64)
    return total if whole == len(A) else total + products[whole:].sum(0)


@in_full_precision
def times(V: Tensor, small: Tensor | np.ndarray) -> Tensor:
    """V S for vectors V (n, m) and a small matrix S (m, k): shape (n, k)."""
    return (uploaded(small, V).T @ V.T).T


@in_full_precision
def subtract_times(W: Tensor, V: Tensor, small: Tensor | np.ndarray) -> None:
    """W ← W − V S, in place, for W (n, k), vectors V (n, m) and a small matrix S (m, k)."""
    small = uploaded(small, V)
    if W.shape[1] == 1 and W.device.type == "cuda":  # cublasLt refuses a product into one row, in place (PyTorch 2.11)
        W[:, 0].addmv_(V, small[:, 0], alpha=-1)
    else:
        W.T.addmm_(small.T, V.T, alpha=-1)


def uploaded(small: Tensor | np.ndarray, like: Tensor) -> Tensor:
    """A small matrix on the device and in the dtype of the vectors, without waiting for what the device still does."""
    if not isinstance(small, Tensor):
        small = torch.from_numpy(np.ascontiguousarray(small))
    return small.to(like.device, like.dtype, non_blocking=like.device.type != "cpu")


def pieces(n: int, most: int) -> Iterator[slice]:
    """Slices of at most so many positions that make up n."""
    return (slice(start, min(start + most, n)) for start in range(0, max(n, 1), most))


def _added(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts)
    for each in parts:
        total = total + each
    return total


def _pieces(A: Tensor) -> Tensor:
    """A (n, a) as (a, n / 4,096, 4,096), a view."""
    return torch.unflatten(A.T, 1, (len(A) // _FLOAT32_SUM, _FLOAT32_SUM))


def warm_direction(start: Any, n: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """The sum of the vectors in `start`, (n,) or (n, p), each scaled to unit length: shape (n, 1), of unit length.

    They are whole, or this rank's part of them.

    None where `start` is None, where the vectors cancel, and below three dimensions. Raises InputError unless they are
    finite, nonzero vectors of n real numbers.
    """
    if start is None:
        return None
    try:
        X = torch.as_tensor(start).detach()
    except (TypeError, ValueError, RuntimeError):
        X = torch.empty(0)
    if X.ndim == 1:
        X = X[:, None]
    own = len(rows_of(n))
    if X.ndim != 2 or X.shape[0] not in (n, own) or X.shape[1] == 0 or X.is_complex():
        raise InputError(f"start must hold vectors of {n:,} real numbers, shape ({n},) or ({n}, p).")
    X = (X if X.shape[0] == own else part(X)).to(device, dtype)
    lengths = column_inner(X, X).sqrt()
    if not bool(torch.isfinite(lengths).all()) or not bool((lengths > 0).all()):
        raise InputError("start contains a vector that is zero or not finite; leave it out.")
    total = times(X, (1 / lengths).to(dtype)[:, None])
    length = float(column_inner(total, total).sqrt())
    return total / length if length > _SHORTEST_SUM and n > 2 else None
