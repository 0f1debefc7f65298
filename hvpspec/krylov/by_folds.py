"""Products of each fold of the batches, reduced to small matrices while they are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from hvpspec.distributed.shard import added
from hvpspec.errors import InputError
from hvpspec.krylov.vectors import column_inner_of_part

ASYMMETRY_LIMIT = 1e-2  # relative to the norm of the operator


class FoldOf(NamedTuple):
    """A fold of the batches: its number, its weight, and what its product was reduced to."""

    number: int
    weight: float
    parts: tuple[np.ndarray, ...]


Reduce = Callable[[Tensor], tuple[Tensor, ...]]


class ByFolds(Protocol):
    def __call__(self, X: Tensor, folds: int, reduce: Reduce, /) -> tuple[Tensor, list[FoldOf]]: ...


def reduced(multiply: Callable[[Tensor, int, Callable[[int, float, Tensor], None]], Tensor]) -> ByFolds:
    def by_folds(X: Tensor, folds: int, reduce: Reduce, /) -> tuple[Tensor, list[FoldOf]]:
        weights: dict[int, float] = {}  # by number: a product that is begun again gives its first folds twice
        reduced: dict[int, tuple[Tensor, ...]] = {}

        def receive(number: int, weight: float, product: Tensor) -> None:
            weights[number] = weight
            reduced[number] = (_products_of_columns(X, product), *reduce(product))

        whole = multiply(X, folds, receive)
        along, *parts = _read([_products_of_columns(X, whole), *(part for of in reduced.values() for part in of)])
        count = len(parts) // max(len(weights), 1)
        of = [parts[count * i : count * (i + 1)] for i in range(len(weights))]
        _check_sum(along, list(weights.values()), [first for first, *_ in of])
        return whole, [FoldOf(*each, tuple(rest)) for each, (_, *rest) in zip(weights.items(), of, strict=True)]

    return by_folds


def _products_of_columns(X: Tensor, Y: Tensor) -> Tensor:
    """xᵀy, xᵀx and yᵀy of each column, over the rows that this rank has: shape (3, b)."""
    return torch.stack([column_inner_of_part(*pair) for pair in ((X, Y), (X, X), (Y, Y))])


def _read(parts: list[Tensor]) -> list[np.ndarray]:
    """The tensors, added over the ranks, in float64 on the CPU, which waits for the device once."""
    flat = added(torch.cat([part.reshape(-1).double() for part in parts])).cpu().numpy()
    ends = np.cumsum([part.numel() for part in parts])
    return [piece.reshape(part.shape) for piece, part in zip(np.split(flat, ends[:-1]), parts, strict=True)]


def _check_sum(whole: np.ndarray, weights: list[float], parts: list[np.ndarray]) -> None:
    """That xᵀHx is the mean of its parts by folds, each (3, b) as `_products_of_columns` gives them."""
    total = sum(weight * along for weight, (along, _, _) in zip(weights, parts, strict=True))
    scale = sum(weight * np.sqrt(xx * yy) for weight, (_, xx, yy) in zip(weights, parts, strict=True))
    off = np.abs(sum(weights) * whole[0] - total)
    if (off > ASYMMETRY_LIMIT * scale).any():
        raise InputError(
            "the products on parts of the data do not add up to the product on all data: off by "
            f"{float(np.nan_to_num(off / scale).max()):.1%}. Do batches, or their weights, change between passes?"
        )
