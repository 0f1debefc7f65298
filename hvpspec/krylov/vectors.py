"""The one inner-product function, and random vectors that depend only on (seed, number, position)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.errors import InputError

CHUNK = 1 << 16  # positions that share one counter stream. Part of the meaning of a seed: never change it.
_SIGN_STREAM, _GAUSSIAN_STREAM, _PROBE_STREAM = 0, 1, 2  # separate streams of one seed
_FLOAT32_SUM = 1 << 12  # entries whose products are summed in float32
_SHORTEST_SUM = 1e-3  # length of a sum of unit vectors below which they are taken to cancel


def inner(A: Tensor, B: Tensor) -> Tensor:
    """AᵀB for A (n, a) and B (n, b): shape (a, b), in float64, on B's device.

    float32 vectors on the CPU are multiplied in pieces of 4,096 entries, and the sums of the pieces are added in
    float64. The error is 5e-9 of the product of the lengths where terms differ in sign, and at most two roundoffs of
    float32 where all have the same sign. Converting the entries to float64 would take two to eight times as long
    (measured with 10 to 60 vectors of 943,000 entries on two cores).
    """
    if A.dtype == torch.float64 and B.dtype == torch.float64 and A.device == B.device:
        return A.T @ B
    if A.dtype == B.dtype and A.device.type == B.device.type == "cpu":
        if len(A) < _FLOAT32_SUM:
            return (A.T @ B).double()
        whole = len(A) - len(A) % _FLOAT32_SUM
        products = _pieces(A[:whole]).transpose(0, 1) @ _pieces(B[:whole]).permute(1, 2, 0)
        return products.sum(0, dtype=torch.float64) + A[whole:].T @ B[whole:]
    total = torch.zeros(A.shape[1], B.shape[1], dtype=torch.float64, device=B.device)
    for start in range(0, A.shape[0], CHUNK):  # in chunks: a float64 copy of a whole basis would be too large
        rows = slice(start, start + CHUNK)
        total += A[rows].to(B.device).double().T @ B[rows].double()
    return total


def column_inner(A: Tensor, B: Tensor) -> Tensor:
    """The inner product of each column of A with the same column of B: shape (b,), in float64."""
    if A.dtype == B.dtype and A.device.type == B.device.type == "cpu":
        if len(A) < _FLOAT32_SUM:
            short: Tensor = torch.linalg.vecdot(A, B, dim=0).double()
            return short
        whole = len(A) - len(A) % _FLOAT32_SUM
        products: Tensor = torch.linalg.vecdot(_pieces(A[:whole]), _pieces(B[:whole]))
        last: Tensor = torch.linalg.vecdot(A[whole:], B[whole:], dim=0)
        return products.sum(1, dtype=torch.float64) + last
    total = torch.zeros(A.shape[1], dtype=torch.float64, device=A.device)
    for start in range(0, A.shape[0], CHUNK):
        rows = slice(start, start + CHUNK)
        total += (A[rows].double() * B[rows].double()).sum(0)
    return total


def _pieces(A: Tensor) -> Tensor:
    """A (n, a) as (a, n / 4,096, 4,096), a view."""
    return torch.unflatten(A.T, 1, (len(A) // _FLOAT32_SUM, _FLOAT32_SUM))


def warm_direction(start: Any, n: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """The sum of the vectors in `start`, (n,) or (n, p), each scaled to unit length: shape (n, 1), of unit length.

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
    if X.ndim != 2 or X.shape[0] != n or X.shape[1] == 0 or X.is_complex():
        raise InputError(f"start must hold vectors of {n:,} real numbers, shape ({n},) or ({n}, p).")
    X = X.to(device, dtype)
    lengths = column_inner(X, X).sqrt()
    if not bool(torch.isfinite(lengths).all()) or not bool((lengths > 0).all()):
        raise InputError("start contains a vector that is zero or not finite; leave it out.")
    total = X @ (1 / lengths).to(dtype)[:, None]
    length = float(column_inner(total, total).sqrt())
    return total / length if length > _SHORTEST_SUM and n > 2 else None


def rademacher(n: int, numbers: Sequence[int], *, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random signs, shape (n, len(numbers)): column j is probe number `numbers[j]` of the seed."""
    columns = np.empty((len(numbers), n), dtype=np.int8)
    for column, number in zip(columns, numbers, strict=True):
        for start in range(0, n, CHUNK):
            length = min(CHUNK, n - start)
            words = _stream(seed, number, start, _SIGN_STREAM).random_raw((length + 63) // 64)
            bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=length)
            column[start : start + length] = 2 * bits.astype(np.int8) - 1
    return torch.from_numpy(columns).to(device, dtype).T


def probes(n: int, numbers: Sequence[int], *, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal probes, shape (n, len(numbers)): column j is probe number `numbers[j]` of the seed."""
    columns = np.empty((len(numbers), n))
    for column, number in zip(columns, numbers, strict=True):
        column[:] = _normal(n, number, seed, _PROBE_STREAM)
    return torch.from_numpy(columns).to(device, dtype).T


def gaussian(n: int, number: int, *, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A standard normal vector, shape (n, 1): Gaussian number `number` of the seed."""
    return torch.from_numpy(_normal(n, number, seed, _GAUSSIAN_STREAM)[:, None]).to(device, dtype)


def _normal(n: int, number: int, seed: int, kind: int) -> np.ndarray:
    vector = np.empty(n)
    for start in range(0, n, CHUNK):
        length = min(CHUNK, n - start)
        generator = np.random.Generator(_stream(seed, number, start, kind))
        vector[start : start + length] = generator.standard_normal(length)
    return vector


def _stream(seed: int, number: int, start: int, kind: int) -> np.random.Philox:
    """The counter-based generator for one chunk of one vector (Philox, doi:10.1145/2063384.2063405)."""
    key = np.array([seed, number], dtype=np.uint64)  # a list with a seed of 2**63 or more would be rounded to float64
    return np.random.Philox(key=key, counter=[0, 0, start // CHUNK, kind])
