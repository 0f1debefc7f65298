"""What is computed with long vectors, in full precision; and random ones, which depend on (seed, number, position)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.distributed.shard import added, part, rows_of
from hvpspec.errors import InputError
from hvpspec.kernels.full_precision import in_full_precision

CHUNK = 1 << 16  # positions that share one counter stream. Part of the meaning of a seed: never change it.
_SIGN_STREAM, _GAUSSIAN_STREAM, _PROBE_STREAM = 0, 1, 2  # separate streams of one seed
_FLOAT32_SUM = 1 << 12  # entries whose products are summed in float32
_MOST_SUMS = 1 << 15  # in one call: CUDA has a limit of 65,535 on how many matrices are multiplied at once
_COPIED_ENTRIES = 1 << 24  # of an intermediate result: few launches, and little memory next to a longer vector
_FILLED_TOGETHER = 64 * CHUNK  # entries of a random vector that are in float64 on the CPU at once
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


def rademacher(
    rows: int | range, numbers: Sequence[int], *, seed: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Random signs, shape (n, len(numbers)): column j is probe number `numbers[j]` of the seed.

    rows: the positions in the whole vectors; n for the first n. The bits go to the device packed, and become numbers
    there.
    """
    rows = _positions(rows)
    before = rows.start % 8  # signs of the first byte that belong to earlier positions
    columns = torch.empty(len(numbers), -(-(before + len(rows)) // 8), 8, dtype=dtype, device=device)
    signs = torch.from_numpy(2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.int8) - 1)
    signs = signs.to(device, dtype)  # of the eight bits of each byte
    for column, number in zip(columns, numbers, strict=True):
        packed = torch.from_numpy(_packed_bits(rows, seed, number)).to(device)
        torch.index_select(signs, 0, packed.int(), out=column)
    return columns.view(len(numbers), columns.shape[1] * 8)[:, before : before + len(rows)].T


def _packed_bits(rows: range, seed: int, number: int) -> np.ndarray:
    """From the byte of the first position to that of the last."""
    first, last = rows.start // 8, -(-rows.stop // 8)
    bits = np.empty(last - first, dtype=np.uint8)
    for start in range(rows.start - rows.start % CHUNK, rows.stop, CHUNK):
        stop = min(start + CHUNK, rows.stop)
        words = _stream(seed, number, start, _SIGN_STREAM).random_raw(-(-(stop - start) // 64))
        own = words.astype("<u8").view(np.uint8)[: -(-(stop - start) // 8)]
        skipped = max(first - start // 8, 0)
        bits[max(start // 8 - first, 0) : -(-stop // 8) - first] = own[skipped:]
    return bits


def probes(rows: int | range, numbers: Sequence[int], *, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal probes, shape (n, len(numbers)): column j is probe number `numbers[j]` of the seed.

    rows: the positions in the whole vectors; n for the first n.
    """
    rows = _positions(rows)
    columns = torch.empty(len(numbers), len(rows), dtype=dtype, device=device)
    for column, number in zip(columns, numbers, strict=True):
        _fill_normal(column, rows, number, seed, _PROBE_STREAM)
    return columns.T


def gaussian(rows: int | range, number: int, *, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A standard normal vector, shape (n, 1): Gaussian number `number` of the seed. rows: see `probes`."""
    rows = _positions(rows)
    vector = torch.empty(len(rows), dtype=dtype, device=device)
    _fill_normal(vector, rows, number, seed, _GAUSSIAN_STREAM)
    return vector[:, None]


def _positions(rows: int | range) -> range:
    return range(rows) if isinstance(rows, int) else rows


def _fill_normal(vector: Tensor, rows: range, number: int, seed: int, kind: int) -> None:
    """Writes standard normal numbers into the vector, part by part: none of it is on the CPU as a whole.

    Chunks do not depend on one another, so that as many threads compute them as PyTorch would use.
    """
    threads = torch.get_num_threads()
    values = np.empty(min(len(rows) + rows.start % CHUNK, _FILLED_TOGETHER))
    origin = rows.start - rows.start % CHUNK  # of the chunk that the first position is in

    def fill(start: int) -> None:
        generator = np.random.Generator(_stream(seed, number, start, kind))
        first = (start - origin) % _FILLED_TOGETHER
        generator.standard_normal(out=values[first : first + min(CHUNK, rows.stop - start)])

    for piece in pieces(rows.stop - origin, _FILLED_TOGETHER):
        starts = range(origin + piece.start, origin + piece.stop, CHUNK)
        if threads > 1 and len(starts) > 1:
            with ThreadPoolExecutor(min(threads, len(starts))) as pool:
                list(pool.map(fill, starts))
        else:
            for start in starts:
                fill(start)
        skipped = max(rows.start - origin - piece.start, 0)
        found = torch.from_numpy(values[skipped : piece.stop - piece.start])
        first = max(origin + piece.start - rows.start, 0)
        vector[first : first + len(found)] = found.to(vector.dtype)


def _stream(seed: int, number: int, start: int, kind: int) -> np.random.Philox:
    """The counter-based generator for one chunk of one vector (Philox, doi:10.1145/2063384.2063405)."""
    key = np.array([seed, number], dtype=np.uint64)  # a list with a seed of 2**63 or more would be rounded to float64
    return np.random.Philox(key=key, counter=[0, 0, start // CHUNK, kind])
