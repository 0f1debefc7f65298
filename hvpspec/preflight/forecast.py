"""What the whole run will take, from what a few products took: HVPs, seconds and memory, likely and at most."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hvpspec.estimators.shared_pass import PILOTS
from hvpspec.estimators.spectrum import check_only, spectrum
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.vectors import inner
from hvpspec.operators.hessian import HessianOperator
from hvpspec.results.preflight import Preflight
from hvpspec.results.spectrum import Progress

_BESIDE = 5e-3  # seconds that an estimator takes beside a product, however short the vectors
_PASSES = 0.15  # what taking one basis vector off costs, beside the inner products of two vectors with themselves
_LIVE = 64  # probes that are kept, each with its image
_MACHINERY = 120 << 20  # bytes that tracing and compiling take beside what they keep, as measured


def sampled(options: dict[str, Any]) -> bool:
    """Whether a run with these options has probes."""
    return bool({"trace", "frobenius_norm"} & set(check_only(options.get("only"))))


def outlook(
    H: HessianOperator, known: Preflight, moments: Moments | None, held: int | None, **options: Any
) -> Preflight:
    """Products, seconds and memory of the whole run. held: bytes, after a product, beside what that itself took."""
    plan = foreseen(H, moments, **options)
    pace = _pace(H)
    machinery = _MACHINERY if H.engine == "autograd" and H.device.type == "cpu" else 0

    def seconds(hvps: int, probes: int) -> float:
        steps = hvps - probes
        return H.expected_seconds(hvps) + hvps * _BESIDE + pace * _PASSES * (steps**2 / 2 + steps * probes)

    def memory(hvps: int, probes: int, beside: int = 0) -> int | None:
        if held is None or known.memory is None:
            return None
        n, itemsize = H.shape[0], 8 if H.torch_dtype == torch.float64 else 4
        storage = check_storage(options.get("basis_memory"), options.get("basis_on", "device"))
        vectors = _grown(hvps - probes) + 2 * min(probes, _LIVE)
        long = min(vectors, storage.vectors(n, H.torch_dtype, H.device)) * n * itemsize
        return held + known.memory + long + H.expected_saved_bytes(hvps, known.memory) + beside

    return replace(
        known,
        expected_hvps=plan.hvps,
        expected_seconds=seconds(plan.hvps, plan.probes),
        expected_memory=memory(plan.hvps, plan.probes),
        most_hvps=plan.most,
        most_seconds=seconds(plan.most, plan.most_probes),
        most_memory=memory(plan.most, min(plan.most_probes, plan.most // 2), machinery),
    )


def _grown(vectors: int) -> int:
    """The most vectors that a basis of so many holds on the way: it is copied where its room runs out."""
    room = 32
    while 2 * room < vectors:
        room = min(2 * room, room + 128)
    return max(vectors, 2 * room) if vectors > room else vectors


def _pace(H: HessianOperator) -> float:
    """Seconds of the inner products of two long vectors with themselves."""
    X = torch.ones(H.shape[0], 2, dtype=H.torch_dtype, device=H.device)
    fastest = math.inf
    for _ in range(2):
        start = time.perf_counter()
        float(inner(X, X)[0, 0])
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


_DENSE = 12  # times the usual steps, for eigenvalues in a bulk


_TAKEN = 60  # eigenvalues that a basis takes off, about: by the usual steps, and by those that save more in probes


_QUANTILE = 2.0  # of the intervals, roughly; a little more at worst


_WORSE = 1.5  # standard errors that the trace may be smaller by


@dataclass(frozen=True)
class Foreseen:
    """Products that are likely, how many of them are probes, and what they may come to: `most`, `most_probes`."""

    hvps: int
    probes: int
    most: int
    most_probes: int


@dataclass(frozen=True)
class Moments:
    """Of a spectrum, as a few products tell.

    ratio: |tr H| / ‖H‖_F; error: its standard error where no eigenvalue dominates. rank: ‖H‖_F⁴ / ‖H²‖_F², the number
    of eigenvalues that the norm comes from; infinite where no pair of products tells.
    """

    ratio: float
    error: float
    rank: float


def read_moments(X: Tensor, HX: Tensor) -> Moments | None:
    """From X (n, p) of standard normal entries and its product; None for a product of zero."""
    p = X.shape[1]
    squares = inner(HX, HX)
    norm = float(squares.diagonal().mean())
    if not 0 < norm < math.inf:
        return None
    pairs = float((squares**2).sum() - (squares.diagonal() ** 2).sum()) / max(p * (p - 1), 1)
    trace = float(inner(X, HX).diagonal().mean())
    rank = norm**2 / pairs if pairs > 0 else math.inf
    return Moments(abs(trace) / math.sqrt(norm), math.sqrt(2 / p), rank)


class _Enough(Exception):
    pass


def foreseen(A: Any, moments: Moments | None = None, **options: Any) -> Foreseen:
    """How many HVPs `spectrum(A, **options)` is thought to take. None is made."""
    plan = 0

    def stop(step: Progress) -> None:
        nonlocal plan
        plan = step.expected or 0
        raise _Enough

    with contextlib.suppress(_Enough):
        spectrum(A, **options, callback=stop)
    asked, k, rtol = check_only(options.get("only")), options.get("k", 10), max(options.get("rtol", 0.01), 1e-9)
    pairs = "eigenvalues" in asked
    steps = 2 * k + 10 if pairs else 25 if "density" in asked else 0
    usual = likely = most = 0.0
    if "trace" in asked or "frobenius_norm" in asked:
        usual = PILOTS + 0.5 / rtol
        likely, most = _probes(moments, rtol, max(2 * steps, _TAKEN), usual, trace="trace" in asked)
    budget = max(plan, options.get("max_hvps") or math.inf)
    ceiling = min(budget, max(plan, A.shape[0] + PILOTS))  # a basis of the whole space ends it
    hvps = min(plan - usual + likely, ceiling)
    worst = min(max(plan - usual + most + (_DENSE - 1) * (steps if pairs else 0), hvps), ceiling)
    return Foreseen(int(hvps), int(min(likely, hvps)), math.ceil(worst), int(min(most, worst)))


def _probes(moments: Moments | None, rtol: float, taken: int, usual: float, *, trace: bool) -> tuple[float, float]:
    """Probes that are likely, and how many they may come to."""
    alone = 2 * (_QUANTILE / rtol) ** 2
    if moments is None:
        return usual, math.inf
    if not trace:  # a sample of the squared norm has a variance of 2 ‖H²‖_F²
        needed = alone / 4 / max(moments.rank, 1.0)
        return max(PILOTS, min(needed, usual)), max(PILOTS, 4 * needed)
    needed = alone / max(moments.ratio, 1.0) ** 2
    worst = 1.2 * alone / max(moments.ratio - _WORSE * moments.error, 1.0) ** 2
    bulk = max(0.0, 1 - taken / moments.rank)  # the share that is left, roughly
    outliers = min(needed, usual)
    return max(PILOTS, outliers + bulk * (needed - outliers)), max(PILOTS, worst)
