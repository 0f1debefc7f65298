"""What ranks add to the cost of a run that one of them has measured with its own batches."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from hvpspec.operators.hessian import HessianOperator
from hvpspec.options import SpectrumOptions
from hvpspec.results.preflight import Preflight
from hvpspec.system.device_clock import time_when_done

_WHOLE_VECTORS = 3  # of a product: the gathered one, this rank's part of the sum, and the copy that is sent
_OF_GRADIENT = 3  # columns in float64, of those sums, besides the gradient of a batch
_FLOAT64 = 8  # bytes


def rows_of_rank(H: HessianOperator) -> int:
    """The most rows of the long vectors that a rank has; all of them without ranks."""
    return -(-int(H.shape[0]) // H.sharing)


def whole_vectors(H: HessianOperator, options: SpectrumOptions) -> int:
    """Bytes of the whole vectors that a rank holds at once, besides its rows of others."""
    if H.sharing == 1:
        return 0
    itemsize = H.torch_dtype.itemsize
    of_gradient = _OF_GRADIENT * _FLOAT64 + itemsize if options.gradient else 0
    return int(H.shape[0]) * max(_WHOLE_VECTORS * itemsize, of_gradient)


def exchange_seconds(H: HessianOperator) -> float:
    """That ranks take to gather a vector and to add up and spread another one; to be called on all of them."""
    assert H.ranks is not None
    shard, group = H.ranks.shard, H.ranks.group
    part = torch.ones(len(shard.rows), 1, dtype=H.torch_dtype, device=H.device)
    fastest = math.inf
    for _ in range(2):
        group.met()  # so that none waits for another one
        start = time_when_done(H.device)
        shard.added_part(shard.whole(part))
        fastest = min(fastest, time_when_done(H.device) - start)
    return max(group.met(fastest))


def on_ranks(known: Preflight, ranks: int, exchange: float) -> Preflight:
    """What one rank has found, for all of them. exchange: seconds of what a product sends."""

    def longer(seconds: float | None, products: int | None) -> float | None:
        return None if seconds is None else seconds + (products or 0) * exchange

    return replace(
        known, ranks=ranks, seconds=longer(known.seconds, 1),
        expected_seconds=longer(known.expected_seconds, known.expected_hvps),
        most_seconds=longer(known.most_seconds, known.most_hvps),
    )  # fmt: skip
