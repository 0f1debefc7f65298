"""What the whole run will take, from what a few products took: HVPs, seconds and memory, expected and at most.

The eigenpairs of a spectrum with outliers take some 2k + 10 steps; where the k-th lies in a dense bulk they can take a
dozen times as many. Without a basis, probes to a relative half-width r number N = 2 (2/r)² ‖H‖_F² / max(tr H, ‖H‖_F)²,
as the variance of one is at most 2 ‖H‖_F². A basis removes from that what a few outliers contribute, and nothing of
what a bulk does. A few products with normal vectors x show both, roughly: E xᵀHx = tr H, E |Hx|² = ‖H‖_F²,
E (x₁ᵀH²x₂)² = ‖H²‖_F².
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hvpspec.estimators.shared_pass import share_room
from hvpspec.krylov.basis import check_storage, peak_vectors
from hvpspec.krylov.blocks import find_blocks
from hvpspec.krylov.probes import MAX_LIVE_PROBES
from hvpspec.krylov.vectors import inner
from hvpspec.operators.hessian import HessianOperator
from hvpspec.options import (
    PILOT_PROBES,
    SMALLEST_PLANNED_RTOL,
    VERIFICATION_PRODUCTS,
    WEIGHING_PRODUCTS,
    SpectrumOptions,
    planned_hvps,
    planned_probes,
    planned_steps,
)
from hvpspec.results.preflight import Preflight

_SECONDS_PER_STEP = 5e-3  # of an estimator besides a product, however short the vectors
_PASSES_PER_VECTOR = 0.15  # the cost of subtracting one basis vector, in inner products of two vectors with themselves
_COMPILER_BYTES = 120 << 20  # what tracing and compiling take besides what they keep, as measured
_DENSE_BULK_FACTOR = 12  # times the planned steps, for eigenvalues in a dense bulk
_OUTLIERS = 60  # eigenvalues that a basis removes, about: by the planned steps, and by those that save more in probes
_QUANTILE = 2.0  # of the intervals, roughly; a little more at worst
_TRACE_SPREAD = 1.5  # standard errors by which the trace may be smaller than estimated


@dataclass(frozen=True)
class Forecast:
    """Products that are expected, how many of them are probes, and both at most."""

    hvps: int
    probes: int
    most_hvps: int
    most_probes: int


@dataclass(frozen=True)
class Moments:
    """What a few products show of a spectrum.

    ratio: |tr H| / ‖H‖_F. error: its standard error where no eigenvalue dominates. rank: ‖H‖_F⁴ / ‖H²‖_F², the number
    of eigenvalues that make up the norm; infinite where no pair of products shows it.
    """

    ratio: float
    error: float
    rank: float


def read_moments(X: Tensor, HX: Tensor) -> Moments | None:
    """From X (n, p) with standard normal entries and its product; None where the product is zero."""
    p = X.shape[1]
    squares = inner(HX, HX)
    norm = float(squares.diagonal().mean())
    if not 0 < norm < math.inf:
        return None
    pairs = float((squares**2).sum() - (squares.diagonal() ** 2).sum()) / max(p * (p - 1), 1)
    trace = float(inner(X, HX).diagonal().mean())
    rank = norm**2 / pairs if pairs > 0 else math.inf
    return Moments(abs(trace) / math.sqrt(norm), math.sqrt(2 / p), rank)


def forecast(
    n: int, options: SpectrumOptions, moments: Moments | None = None, block_sizes: tuple[int, ...] = ()
) -> Forecast:
    """How many HVPs a spectrum of an n × n matrix is expected to take, and at most.

    block_sizes: rows of each block that is asked for.
    """
    plan, steps, usual = planned_hvps(options, n, block_sizes), planned_steps(options, n), planned_probes(options)
    expected = most = 0.0
    if options.sampled:
        expected, most = _probes(moments, options, max(2 * steps, _OUTLIERS))
    budget = max(plan, options.max_hvps or math.inf)
    ceiling = min(budget, max(plan, n + PILOT_PROBES))  # a basis of the whole space ends the run
    others = max(plan - usual, 0)  # products that are not probes
    hvps = min(others + expected, ceiling)
    further = (_DENSE_BULK_FACTOR - 1) * steps if options.pairs else 0
    worst = min(max(others + most + further, hvps), ceiling)
    return Forecast(int(hvps), int(min(expected, hvps)), math.ceil(worst), int(min(most, worst)))


def _probes(moments: Moments | None, options: SpectrumOptions, removed: int) -> tuple[float, float]:
    """Probes that are expected, and at most. removed: eigenvalues that the basis removes."""
    usual = planned_probes(options)
    without_basis = 2 * (_QUANTILE / max(options.rtol, SMALLEST_PLANNED_RTOL)) ** 2  # for a trace as large as the norm
    if moments is None:
        return usual, math.inf
    if "trace" not in options.sampled:  # a sample of the squared norm has a variance of 2 ‖H²‖_F²
        needed = without_basis / 4 / max(moments.rank, 1.0)
        return max(PILOT_PROBES, min(needed, usual)), max(PILOT_PROBES, 4 * needed)
    needed = without_basis / max(moments.ratio, 1.0) ** 2
    worst = 1.2 * without_basis / max(moments.ratio - _TRACE_SPREAD * moments.error, 1.0) ** 2
    bulk = max(0.0, 1 - removed / moments.rank)  # the share of the norm that is left, roughly
    outliers = min(needed, usual)
    return max(PILOT_PROBES, outliers + bulk * (needed - outliers)), max(PILOT_PROBES, worst)


def with_forecast(
    H: HessianOperator, known: Preflight, moments: Moments | None, held: int | None, options: SpectrumOptions
) -> Preflight:
    """The preflight with products, seconds and memory of the whole run, with what is done once before its first.

    held: bytes in use after a product, besides what that itself took.
    """
    blocks = () if options.blocks is None else find_blocks(H, options.blocks)
    n, itemsize = int(H.shape[0]), H.torch_dtype.itemsize
    plan = forecast(n, options, moments, tuple(block.size for block in blocks))
    room = check_storage(options.basis_memory, options.basis_on).vectors(n, H.torch_dtype, H.device)
    least = (options.k if options.pairs else 1) + 3
    share_room(room, n, itemsize, least, probes=bool(options.sampled))  # too little memory is refused now
    pace = _seconds_of_an_inner_product(H)
    weighing = 0 if H.objective.loss.weighs_exactly else WEIGHING_PRODUCTS
    once = (VERIFICATION_PRODUCTS / H.batch_count() + weighing) * (known.seconds or 0.0)
    compiler = _COMPILER_BYTES if H.engine == "autograd" and H.device.type == "cpu" else 0

    def seconds(hvps: int, probes: int) -> float:
        steps = hvps - probes
        subtractions = steps**2 / 2 + steps * probes
        estimator = hvps * _SECONDS_PER_STEP + pace * _PASSES_PER_VECTOR * subtractions
        return once + H.expected_seconds(hvps) + estimator

    def memory(hvps: int, probes: int, further: int = 0) -> int | None:
        if held is None or known.memory is None:
            return None
        vectors = peak_vectors(hvps - probes) + 2 * min(probes, MAX_LIVE_PROBES)
        long = min(vectors, room) * n * itemsize
        return held + known.memory + long + H.expected_saved_bytes(hvps, known.memory) + further

    return replace(
        known,
        expected_hvps=plan.hvps,
        expected_seconds=seconds(plan.hvps, plan.probes),
        expected_memory=memory(plan.hvps, plan.probes),
        most_hvps=plan.most_hvps,
        most_seconds=seconds(plan.most_hvps, plan.most_probes),
        most_memory=memory(plan.most_hvps, min(plan.most_probes, plan.most_hvps // 2), compiler),
    )


def _seconds_of_an_inner_product(H: HessianOperator) -> float:
    """Of two long vectors with themselves."""
    X = torch.ones(H.shape[0], 2, dtype=H.torch_dtype, device=H.device)
    fastest = math.inf
    for _ in range(2):
        start = time.perf_counter()
        float(inner(X, X)[0, 0])
        fastest = min(fastest, time.perf_counter() - start)
    return fastest
