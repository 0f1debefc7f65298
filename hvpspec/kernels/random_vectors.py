"""Random vectors, whose entries depend on (seed, number, position) alone: not on ranks, threads or the device.

Each chunk of positions has a counter-based generator of its own (Philox, doi:10.1145/2063384.2063405), so that chunks
are computed in any order, by as many threads as PyTorch would use.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 16  # positions that share one counter stream. Part of the meaning of a seed: never change it.
_SIGN_STREAM, _GAUSSIAN_STREAM, _PROBE_STREAM, _CHECK_STREAM = 0, 1, 2, 3  # separate streams of one seed
_COPIED_TOGETHER = 64 * CHUNK  # entries that are on the CPU at once, of a vector that is elsewhere
_CHUNKS_OF_A_TASK = 4  # of a thread; where more threads are idle, fewer


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
    stream_at = _streams(seed, number, _SIGN_STREAM)
    for start in range(rows.start - rows.start % CHUNK, rows.stop, CHUNK):
        stop = min(start + CHUNK, rows.stop)
        words = stream_at(start).random_raw(-(-(stop - start) // 64))
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


def directions(n: int, count: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal rows, shape (count, n), always the same: along which products are checked or timed."""
    rows = torch.empty(count, n, dtype=dtype, device=device)
    for number, row in enumerate(rows):
        _fill_normal(row, range(n), number, 0, _CHECK_STREAM)
    return rows


def _positions(rows: int | range) -> range:
    return range(rows) if isinstance(rows, int) else rows


def _fill_normal(vector: Tensor, rows: range, number: int, seed: int, kind: int) -> None:
    """Writes standard normal numbers into a contiguous vector.

    Where it is not on the CPU, part by part: none of it is there as a whole, and a GPU copies one part while the next
    one is computed.
    """
    threads = max(min(torch.get_num_threads(), len(rows) // CHUNK), 1)
    with contextlib.ExitStack() as stack:
        run: Callable[..., Iterable[None]] = map
        if threads > 1:
            run = stack.enter_context(ThreadPoolExecutor(threads)).map

        def write(part: Tensor, positions: range) -> None:
            first = positions.start - positions.start % CHUNK
            step = CHUNK * min(_CHUNKS_OF_A_TASK, max(len(positions) // (CHUNK * threads), 1))
            array = part.numpy()

            def fill(start: int) -> None:
                own = range(max(start, positions.start), min(start + step, positions.stop))
                _fill_array(array[own.start - positions.start : own.stop - positions.start], own, number, seed, kind)

            deque(run(fill, range(first, positions.stop, step)), maxlen=0)

        if vector.device.type == "cpu":
            write(vector, rows)
        else:
            _fill_by_copies(vector, rows, write, pinned=threads > 1 and vector.device.type == "cuda")


def _fill_by_copies(vector: Tensor, rows: range, write: Callable[[Tensor, range], None], *, pinned: bool) -> None:
    """Has parts of a vector on another device written to two pieces of memory on the CPU in turn, and copies them."""
    size = min(len(rows), _COPIED_TOGETHER)
    buffers = [torch.empty(size, dtype=vector.dtype, pin_memory=pinned) for _ in range(2 if pinned else 1)]
    copied: list[torch.cuda.Event] = []
    for turn, first in enumerate(range(rows.start - rows.start % CHUNK, rows.stop, _COPIED_TOGETHER)):
        part = range(max(first, rows.start), min(first + _COPIED_TOGETHER, rows.stop))
        buffer = buffers[turn % len(buffers)][: len(part)]
        if turn >= len(buffers) and pinned:
            copied[turn - len(buffers)].synchronize()
        write(buffer, part)
        vector[part.start - rows.start : part.stop - rows.start].copy_(buffer, non_blocking=pinned)
        if pinned:
            copied.append(torch.cuda.current_stream(vector.device).record_event())


def _fill_array(array: np.ndarray, rows: range, number: int, seed: int, kind: int) -> None:
    """Normal numbers are made in float64, whatever the array's dtype, so that all dtypes have the same numbers."""
    stream_at = _streams(seed, number, kind)
    values = np.empty(min(CHUNK, rows.stop - rows.start + rows.start % CHUNK))
    for start in range(rows.start - rows.start % CHUNK, rows.stop, CHUNK):
        stop, skipped = min(start + CHUNK, rows.stop), max(rows.start - start, 0)
        np.random.Generator(stream_at(start)).standard_normal(out=values[: stop - start])
        array[start + skipped - rows.start : stop - rows.start] = values[skipped : stop - start]


def _streams(seed: int, number: int, kind: int) -> Callable[[int], np.random.Philox]:
    """For the first position of a chunk, its generator; that of the chunk before is used up then.

    A generator that is set to another state takes a tenth of the time of a new one.
    """
    key = np.array([seed, number], dtype=np.uint64)  # a list with a seed of 2**63 or more would be rounded to float64
    generator = np.random.Philox(key=key, counter=[0, 0, 0, kind])
    state: Any = generator.state

    def stream_at(start: int) -> np.random.Philox:
        state["state"]["counter"][2] = start // CHUNK
        generator.state = state
        return generator

    return stream_at
