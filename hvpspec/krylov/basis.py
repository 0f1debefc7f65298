"""The Krylov basis, which is on the operator's device, in CPU memory, or in a memory-mapped file; and Gram-Schmidt."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.kernels.full_precision import in_full_precision
from hvpspec.kernels.random_vectors import CHUNK
from hvpspec.krylov.vectors import (
    column_inner,
    inner,
    pieces,
    rough_inner,
    subtract_times,
    times,
    uploaded,
)
from hvpspec.memory import check_size, free_memory
from hvpspec.options import Place
from hvpspec.system.out_of_memory import OutOfMemory, giving_up, within_memory
from hvpspec.validation import check_choice

_SHARE_OF_FREE_MEMORY = 0.25  # for long vectors, where no budget was given
_FIRST_CAPACITY = 32  # vectors
_LARGEST_GROWTH = 128  # vectors that a basis grows by at most, when it is full
_SECOND_PASS_SHARE = 0.5  # of the squared length: if less is left after Gram-Schmidt, it is applied once more
_ENTRIES_TOGETHER = 1 << 22  # that are copied or combined at once: enough to keep a device busy, and little memory


@dataclass(frozen=True)
class Storage:
    """How much memory long vectors may take (in bytes; None: a quarter of what is free) and where they are kept."""

    memory: int | None = None
    place: Place = "device"

    def vectors(self, n: int, dtype: torch.dtype, device: torch.device) -> int:
        """How many vectors of n numbers fit in the budget."""
        available = _free(self.place, device) * _SHARE_OF_FREE_MEMORY if self.memory is None else self.memory
        return int(available // (n * dtype.itemsize))


def check_storage(basis_memory: Any, basis_on: Any) -> Storage:
    """The options `basis_memory` (bytes, or a string such as "2GiB") and `basis_on` as a Storage, or InputError."""
    check_choice("basis_on", basis_on, Place)
    return Storage(check_size("basis_memory", basis_memory), basis_on)


def next_capacity(capacity: int, needed: int) -> int:
    """How many vectors a full basis of that capacity makes room for when `needed` are to be held."""
    return max(needed, _FIRST_CAPACITY, min(2 * capacity, capacity + _LARGEST_GROWTH))


def peak_vectors(m: int) -> int:
    """The most vectors held at once while a basis grows to m vectors: it is copied each time that it is full."""
    capacity = next_capacity(0, 1)
    full = 0  # vectors at the last copy
    while capacity < m:
        full, capacity = capacity, next_capacity(capacity, capacity + 1)
    return max(m, 2 * full)


class Basis:
    """m orthonormal vectors of n numbers, the rows of `rows`; results computed from them are on `device`.

    Whatever is computed from them is computed where they are: one vector is sent there or back, and not the basis.
    """

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device, place: Place = "device") -> None:
        self.m = 0
        self.device = device
        self._file: Path | None = None
        self._handle: int | None = None
        self._place = place
        if place == "disk":
            self._handle, name = tempfile.mkstemp(prefix="hvpspec-basis-")
            self._file = Path(name)
            if (nameless := Path(f"/proc/self/fd/{self._handle}")).exists():
                self._file.unlink()  # the file goes with the process, however that ends
                self._file = nameless
        home = device if place == "device" else torch.device("cpu")
        self._empty = torch.empty(0, n, dtype=dtype, device=home)
        self._storage = self._empty

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            self.release()  # unmaps it first
            if self._handle is not None:
                os.close(self._handle)
            if file.parent == Path(tempfile.gettempdir()):
                file.unlink(missing_ok=True)

    @property
    def rows(self) -> Tensor:
        """Shape (m, n), on the device where the basis is kept."""
        return self._storage[: self.m]

    @property
    def matrix(self) -> Tensor:
        """Q, shape (n, m), on the device where the basis is kept."""
        return self.rows.T

    def append(self, X: Tensor) -> None:
        """Adds the columns of X (n, b)."""
        needed = self.m + X.shape[1]
        if needed > len(self._storage):
            capacity = next_capacity(len(self._storage), needed)
            if isinstance(within_memory(lambda: self._grow(capacity)), OutOfMemory):
                giving_up(lambda: self._grow(needed))
        self._storage[self.m : needed] = X.T
        self.m = needed

    def inner(self, X: Tensor) -> Tensor:
        """QᵀX for X (n, b): shape (m, b), in float64, on the device of X."""
        return inner(self.matrix, X)

    def rough_inner(self, X: Tensor) -> Tensor:
        """QᵀX in the precision of X, for quantities that need only a few digits."""
        return rough_inner(self.matrix, X)

    def combine(self, coefficients: Tensor | np.ndarray, first: int = 0) -> Tensor:
        """Q S with the basis vectors from number `first` on and S (m − first, k): shape (n, k), on the device."""
        return times(self.matrix[:, first:], coefficients).to(self.device)

    def subtract(self, W: Tensor, coefficients: Tensor | np.ndarray, first: int = 0) -> None:
        """W ← W − Q S for W (n, k), in place; S as for `combine`."""
        Q = self.matrix[:, first:]
        if Q.device == W.device:
            subtract_times(W, Q, coefficients)
            return
        small = uploaded(coefficients, Q)
        for part in pieces(len(W), max(CHUNK, _ENTRIES_TOGETHER // W.shape[1])):
            W[part] -= times(Q[part], small).to(W.device)

    def compress(self, coefficients: np.ndarray) -> None:
        """Q ← Q S for S (m, k) with k ≤ m, in place, with sums in float64."""
        small = torch.as_tensor(coefficients, dtype=torch.float64, device=self._storage.device)
        k = small.shape[1]
        for part in pieces(self._storage.shape[1], max(CHUNK, _ENTRIES_TOGETHER // self.m)):
            self._storage[:k, part] = (small.T @ self.rows[:, part].double()).to(self._storage.dtype)
        self.m = k

    def release(self) -> None:
        """Frees the memory; the vectors are lost."""
        self._storage = self._empty

    def _grow(self, capacity: int) -> None:
        n, dtype = self._storage.shape[1], self._storage.dtype
        if self._file is None:
            grown = self._storage.new_empty(capacity, n)
            grown[: self.m] = self.rows
        else:
            self._storage = self._empty
            try:
                _reserve(self._file, capacity * n * dtype.itemsize)
                flat = torch.from_file(str(self._file), shared=True, size=capacity * n, dtype=dtype)
            except (OSError, RuntimeError) as error:
                raise InputError(
                    f"no room for the basis in {tempfile.gettempdir()} ({error}); choose another folder with TMPDIR, "
                    "or set basis_memory."
                ) from error
            grown = flat.view(capacity, n)
        self._storage = grown


@dataclass(frozen=True)
class Removed:
    """The coefficients of what was subtracted, (m + p, b), and the lengths of what is left, (b,); both in float64."""

    coefficients: np.ndarray
    lengths: np.ndarray


@in_full_precision
def orthogonalise(basis: Basis, others: Tensor, W: Tensor, known: np.ndarray | None = None) -> Removed:
    """Subtracts from W (n, b), in place, its components in the basis and the others.

    known (m' ≤ m, b): coefficients of the first m' basis vectors that are known beforehand. Subtracting them first,
    with those of the few vectors after them, usually saves the second pass, which is needed only where much cancels.
    What a pass has found is read at its end, where that decides about another one: a GPU is waited for only there.
    """
    m, total = basis.m, np.zeros((basis.m + others.shape[1], W.shape[1]))
    found = torch.zeros(total.shape, dtype=torch.float64, device=W.device)  # what is to be added to the total
    if known is not None and len(known):
        first = int(np.flatnonzero(known.any(1))[0]) if known.any() else len(known)
        recent = found[len(known) : m] = inner(basis.matrix[:, len(known) :], W)
        basis.subtract(W, torch.cat([uploaded(known[first:], recent), recent]), first)
        total[first : len(known)] = known[first:]
    left = column_inner(W, W)
    if not len(total):
        return Removed(total, left.sqrt().cpu().numpy())
    for last in (False, True):
        before, inside = left, basis.inner(W)
        basis.subtract(W, inside)
        outside = inner(others, W)
        if others.shape[1]:
            subtract_times(W, others, outside)
        left = column_inner(W, W)
        found += torch.cat([inside, outside])
        if known is None and not last:
            continue
        read = torch.cat([found, before[None], left[None]]).cpu().numpy()
        if last or bool((read[-1] > _SECOND_PASS_SHARE * read[-2]).all()):
            break
    return Removed(total + read[:-2], np.sqrt(read[-1]))


def _reserve(file: Path, size: int) -> None:
    """Allocates that many bytes for the file: a full disk is then an error here, and not a crash later."""
    with file.open("r+b") as handle:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle.fileno(), 0, size)
        else:
            handle.truncate(size)


def _free(place: Place, device: torch.device) -> int:
    if place == "disk":
        return shutil.disk_usage(tempfile.gettempdir()).free
    return free_memory(device if place == "device" else torch.device("cpu"))
