"""The memory of tensors in files: read once, whole, and never looked at outside its bounds."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from hvpspec.checkpoint.formats.archive import STORAGE_DTYPES, Archive
from hvpspec.checkpoint.formats.limits import Budget

_READ_BYTES = 1 << 20  # at once

_MAX_DIMENSIONS = 64  # torch's own limit

# What pickles call the memory of tensors of a dtype: torch.FloatStorage, torch.storage.UntypedStorage.
_QUANTISED = {"QINT8": torch.qint8, "QUINT8": torch.quint8, "QINT32": torch.qint32}
_STORAGE_DTYPES = {**STORAGE_DTYPES, **_QUANTISED, "UNTYPED": torch.uint8}


class Refused(Exception):
    """A pickle holds something that may not be made. wanted: its full name; empty where it has none."""

    def __init__(self, reason: str, wanted: str = "") -> None:
        super().__init__(reason)
        self.wanted = wanted


@dataclass(frozen=True)
class StorageKind:
    """Stands for a storage class of torch, which makes memory of unknown content when it is called."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Storage:
    """The memory of one or several tensors.

    content: its bytes. dtype: of its elements.
    """

    content: torch.UntypedStorage
    dtype: torch.dtype

    def __len__(self) -> int:
        return self.content.nbytes() // self.dtype.itemsize


def storage_kind(module: str, name: str) -> StorageKind | None:
    """The storage class that a pickle names, or None."""
    dtype = _STORAGE_DTYPES.get(name.removesuffix("Storage").upper())
    known = dtype is not None and name.endswith("Storage") and module in ("torch", "torch.storage", "torch.cuda")
    return StorageKind(dtype) if dtype is not None and known else None


class ArchiveStorages:
    """The storages in an archive of torch.save, by the names that its pickle gives them."""

    def __init__(self, archive: Archive, folder: str = "data") -> None:
        self._archive, self._folder = archive, folder
        self._found: dict[str, Storage] = {}

    def __call__(self, pid: Any) -> Storage:
        kind, key, _, count = _named(pid, 4)
        if key not in self._found:
            self._found[key] = stored(self._archive, f"{self._folder}/{key}", kind.dtype, count)
        found = self._found[key]
        if found.dtype != kind.dtype or len(found) != count:
            raise ValueError("the pieces of a tensor's memory contradict each other")
        return found


def stored(archive: Archive, name: str, dtype: torch.dtype, count: int | None = None) -> Storage:
    """The memory that a member of an archive holds. count: of elements, where it is declared."""
    if count == 0 and name not in archive.names:
        return Storage(torch.empty(0).untyped_storage(), dtype)
    length = archive.size(name)
    if length % dtype.itemsize or count not in (None, length // dtype.itemsize):
        raise ValueError("a tensor has less data than declared, or more")
    content = torch.empty(length, dtype=torch.uint8)
    archive.read_into(name, content.numpy().data)  # all of it, or it raises
    return Storage(in_native_order(content.untyped_storage(), dtype, archive.byteorder), dtype)


class LegacyStorages:
    """The storages in a file of torch's legacy format, which holds their bytes after the pickle that names them."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._found: dict[Any, Storage] = {}

    def __call__(self, pid: Any) -> Storage:
        kind, key, _, count, view = _named(pid, 5)
        key = key if isinstance(key, str) else str(key)
        if key not in self._found:
            self._budget.take(count * kind.dtype.itemsize)
            self._found[key] = Storage(torch.zeros(count * kind.dtype.itemsize, dtype=torch.uint8).untyped_storage(),
                                       kind.dtype)  # fmt: skip
        found = self._found[key]
        if found.dtype != kind.dtype:
            raise ValueError("a tensor's memory has two types")
        if view is None:
            return found
        _, offset, size = view
        if not (type(offset) is type(size) is int and 0 <= offset <= offset + size <= len(found)):
            raise ValueError("a part of a tensor's memory lies outside it")
        item = kind.dtype.itemsize
        return Storage(found.content[offset * item : (offset + size) * item], kind.dtype)

    def fill(self, keys: Any, file: IO[bytes] | mmap.mmap) -> None:
        """Reads the bytes of all storages, which follow in the order of `keys`, each after its length."""
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(self._found):
            raise ValueError("it does not hold the data of all tensors")
        for key in keys:
            storage = self._found[str(key)]
            if int.from_bytes(file.read(8), "little") != len(storage):
                raise ValueError("a tensor has less data than declared, or more")
            flat = torch.empty(0, dtype=torch.uint8).set_(storage.content)
            for place in torch.split(flat, _READ_BYTES) if len(flat) else ():
                part = file.read(len(place))
                if len(part) < len(place):
                    raise EOFError("it is cut short")
                place.copy_(torch.frombuffer(bytearray(part), dtype=torch.uint8))
            in_native_order(storage.content, storage.dtype, "little")


def _named(pid: Any, count: int) -> Sequence[Any]:
    """The parts of a persistent id, after its first word."""
    if not isinstance(pid, tuple) or len(pid) < 1 or pid[0] not in ("storage", b"storage"):
        raise Refused(f"Only persistent_load of storage is allowed, but got {pid!r:.80}")
    parts = pid[1:]
    if len(parts) != count or not isinstance(parts[0], StorageKind):
        raise ValueError("a tensor's memory is named in an unknown way")
    if type(parts[3]) is not int or parts[3] < 0:
        raise ValueError("a tensor's memory has no valid size")
    return parts


def in_native_order(content: torch.UntypedStorage, dtype: torch.dtype, order: str) -> torch.UntypedStorage:
    """Swaps bytes, in place, where a file was written on a machine of another byte order."""
    if order != sys.byteorder and content.nbytes():
        content.byteswap(dtype)  # type: ignore[no-untyped-call]
    return content


def strided(storage: Storage, offset: Any, size: Any, stride: Any, budget: Budget) -> Tensor:
    """A tensor in a storage, all of whose elements must lie inside it."""
    check_strided(len(storage), storage.dtype, offset, size, stride, budget)
    tensor = torch.empty(0, dtype=storage.dtype)
    if math.prod(size):
        return tensor.set_(storage.content, offset, tuple(size), tuple(stride))
    return tensor.reshape(tuple(size))


def check_strided(count: int, dtype: torch.dtype, offset: Any, size: Any, stride: Any, budget: Budget) -> None:
    """Raises ValueError where a tensor reaches outside a storage of `count` elements.

    An expanded tensor, whose elements share memory, is larger than its storage; `budget` is asked for the difference.
    """
    size, stride = shape(size), _lengths(stride)
    if len(size) != len(stride) or type(offset) is not int or offset < 0:
        raise ValueError("a tensor has no valid shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= count:
        raise ValueError("a tensor reaches outside its memory")
    budget.take(max(math.prod(size) - count, 0) * dtype.itemsize)


def shape(size: Any) -> tuple[int, ...]:
    """A shape from a file, as a tuple of integers ≥ 0 with a product that torch can hold."""
    checked = _lengths(size)
    if math.prod(checked) >= 2**62:
        raise ValueError("a tensor has no valid shape")
    return checked


def _lengths(size: Any) -> tuple[int, ...]:
    if not isinstance(size, tuple | list) or len(size) > _MAX_DIMENSIONS:
        raise ValueError("a tensor has no valid shape")
    if any(type(length) is not int or not 0 <= length < 2**62 for length in size):
        raise ValueError("a tensor has no valid shape")
    return tuple(size)
