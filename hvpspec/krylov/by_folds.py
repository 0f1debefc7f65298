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
            along, squares = column_inner_of_part(X, product), column_inner_of_part(product, product)
            reduced[number] = (torch.stack([along, squares]), *reduce(product))

        whole = multiply(X, folds, receive)
        known = torch.stack([column_inner_of_part(X, whole), column_inner_of_part(X, X)])
        known_of_whole, *parts = _read([known, *(part for of in reduced.values() for part in of)])
        count = len(parts) // max(len(weights), 1)
        of = [parts[count * i : count * (i + 1)] for i in range(len(weights))]
        _check_sum(known_of_whole[0], known_of_whole[1], list(weights.values()), [first for first, *_ in of])
        return whole, [FoldOf(*each, tuple(rest)) for each, (_, *rest) in zip(weights.items(), of, strict=True)]

    return by_folds


def _read(parts: list[Tensor]) -> list[np.ndarray]:
    """The tensors, added over the ranks, in float64 on the CPU, which waits for the device once."""
    flat = added(torch.cat([part.reshape(-1).double() for part in parts])).cpu().numpy()
    ends = np.cumsum([part.numel() for part in parts])
    return [piece.reshape(part.shape) for piece, part in zip(np.split(flat, ends[:-1]), parts, strict=True)]


def _check_sum(whole: np.ndarray, squares: np.ndarray, weights: list[float], parts: list[np.ndarray]) -> None:
    """That xᵀHx is the mean of its parts by folds. squares: xᵀx. parts: xᵀH_g x and ‖H_g x‖² of each, (2, b)."""
    total = sum(weight * along for weight, (along, _) in zip(weights, parts, strict=True))
    scale = sum(weight * np.sqrt(squares * long) for weight, (_, long) in zip(weights, parts, strict=True))
    off = np.abs(sum(weights) * whole - total)
    if (off > ASYMMETRY_LIMIT * scale).any():
        raise InputError(
            "the products on parts of the data do not add up to the product on all data: off by "
            f"{float(np.nan_to_num(off / scale).max()):.1%}. Do batches, or their weights, change between passes?"
        )
