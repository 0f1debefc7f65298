"""What the whole run will take, from what a few products took: HVPs, seconds and memory, likely and at most."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch

from hvpspec.krylov.basis import check_storage
from hvpspec.preflight.foresee import Moments, foreseen
from hvpspec.estimators.spectrum import check_only
from hvpspec.krylov.vectors import inner
from hvpspec.operators.hessian import HessianOperator
from hvpspec.results.preflight import Preflight

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
        return H.foresee(hvps) + hvps * _BESIDE + pace * _PASSES * (steps**2 / 2 + steps * probes)

    def memory(hvps: int, probes: int, beside: int = 0) -> int | None:
        if held is None or known.memory is None:
            return None
        n, itemsize = H.shape[0], 8 if H.torch_dtype == torch.float64 else 4
        storage = check_storage(options.get("basis_memory"), options.get("basis_on", "device"))
        vectors = _grown(hvps - probes) + 2 * min(probes, _LIVE)
        long = min(vectors, storage.vectors(n, H.torch_dtype, H.device)) * n * itemsize
        return held + known.memory + long + H.foresee_kept(hvps, known.memory) + beside

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
