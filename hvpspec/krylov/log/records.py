"""What a record of the log holds: the vectors that an operator was given, and what it has answered."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hvpspec.krylov.log.log_file import Header, LogFile
from hvpspec.wording import dtype_name

PRODUCTS = ("product", "folds")  # kinds of records that count as products
ANSWERS = (*PRODUCTS, "recompute")  # kinds of records that hold vectors
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Answer:
    """What the operator has answered: the product first, then small matrices; `notes` are JSON-ready."""

    tensors: list[Tensor]
    notes: dict[str, Any] = field(default_factory=dict)


def products_in(log: LogFile) -> int:
    """Those that are still to be read."""
    return sum(header["columns"] for header in log.headers() if header.get("kind") in PRODUCTS)


def columns_of(X: Tensor) -> Tensor:
    """X (n, b) on the CPU, one column after another in memory: shape (b, n)."""
    return X.detach().T.contiguous().cpu()


def checksum(columns: Tensor) -> int:
    return zlib.crc32(as_bytes(columns))


def fields(columns: Tensor, found: Answer) -> tuple[Header, list[memoryview]]:
    """What a header says of the vectors and the answer, and what its payload is."""
    tensors = [_dense(tensor.detach().cpu()) for tensor in found.tensors]
    header = {
        "columns": len(columns), "vectors": _described(columns), "tensors": [_described(tensor) for tensor in tensors],
        "notes": found.notes,
    }  # fmt: skip
    return header, [as_bytes(tensor) for tensor in (columns, *tensors)]


def read(log: LogFile, header: Header) -> tuple[Tensor, Answer] | None:
    """The vectors, as columns, and the answer of the next record, whose header this is; None where it is damaged."""
    try:
        likes = [header["vectors"], *header["tensors"]]
        if sum(_size(*like) for like in likes) != header["bytes"]:
            return None
        columns, *tensors = (_empty(*like) for like in likes)
        answer = Answer(tensors, header["notes"])
    except (KeyError, TypeError, ValueError, RuntimeError):
        return None
    return (columns, answer) if log.payload([as_bytes(tensor) for tensor in (columns, *tensors)]) else None


def on_device_of(X: Tensor, found: Answer) -> Answer:
    """The answer to X, with the product where X is; small matrices are on the CPU."""
    return replace(found, tensors=[*(each.to(X.device) for each in found.tensors[:1]), *found.tensors[1:]])


# --- tensors as bytes ---------------------------------------------------------------------------------------------
#
# The layout in memory is kept as well: sums over a matrix may be rounded otherwise where it is stored transposed.


def _dense(tensor: Tensor) -> Tensor:
    """The tensor itself where its entries are next to each other in memory, in whatever order; otherwise a copy."""
    return tensor if tensor.is_contiguous() or tensor.T.is_contiguous() else tensor.contiguous()


def _described(tensor: Tensor) -> list[Any]:
    """dtype, shape, and whether it is stored transposed: what `_empty` makes one like it from."""
    transposed = tensor.ndim == 2 and tensor.stride() == (1, len(tensor)) != (tensor.shape[1], 1)
    return [dtype_name(tensor.dtype), list(tensor.shape), transposed]


def _size(dtype: str, shape: list[int], _: bool) -> int:
    return math.prod(shape) * _DTYPES[dtype].itemsize


def _empty(dtype: str, shape: list[int], transposed: bool) -> Tensor:
    return torch.empty(shape[::-1], dtype=_DTYPES[dtype]).T if transposed else torch.empty(shape, dtype=_DTYPES[dtype])


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a dense tensor on the CPU."""
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.T.reshape(-1)
    return memoryview(flat.numpy().data).cast("B")
