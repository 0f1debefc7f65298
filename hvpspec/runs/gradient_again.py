"""The gradient's figures computed again, from a fresh gradient and a fresh product; not its share of eigenspaces, for
which the eigenvectors are needed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from hvpspec.distributed.shard import sharded
from hvpspec.estimators.gradients.gradient import LossOperator, in_spectrum
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.results.estimate import Estimate
from hvpspec.results.gradient import Gradient
from hvpspec.results.spectrum import Spectrum

_SHARE_OF_ERROR = 1.25  # by which a figure may differ whose error is that of rounding: another engine rounds otherwise
_ROUNDING_OF_SQUARES = 8.0  # times the relative error of the norm, by which a ratio of squares may differ
_RELATIVE = 1e-6  # the same at least

_Pair = tuple[str, float | None, float | None, float]
"""A name, the value recorded, the fresh one, and by how much they may differ."""


def gradient_differences(found: Spectrum, H: LossOperator, A: Symmetric, confidence: float) -> list[str]:
    """For each figure of the gradient that is another one now, a sentence. A: what is counted of H."""
    assert found.gradient is not None
    with sharded(A.shard):
        now = in_spectrum(H, A, replace(found, eigenpairs=None), confidence)
    return [
        f"gradient.{name} is {_shown(then)}, and a fresh gradient and product give {_shown(value)}"
        for name, then, value, allowed in _pairs(found.gradient, now)
        if not (then is value if then is None or value is None else abs(then - value) <= allowed)
    ]


def _pairs(then: Gradient, now: Gradient) -> Iterator[_Pair]:
    yield _of("norm", then.norm, now.norm)
    yield _of("curvature", then.curvature, now.curvature)
    norm = now.norm
    share = _ROUNDING_OF_SQUARES * norm.error / norm.value if norm.value else math.inf
    share = max(share, _RELATIVE)
    for end in ("value", "lower", "upper"):
        recorded, fresh = (None if of.noise_scale is None else getattr(of.noise_scale, end) for of in (then, now))
        yield f"noise_scale.{end}", recorded, fresh, share * abs(fresh or 0.0)
    if then.update is None or now.update is None:
        before, after = (None if of.update is None else of.update.slope for of in (then, now))
        yield "update.slope", before, after, 0.0
        return
    yield "update.length", then.update.length, now.update.length, share * now.update.length
    off = _SHARE_OF_ERROR * now.update.change.error + share * abs(now.update.slope)
    yield "update.slope", then.update.slope, now.update.slope, off
    yield _of("update.curvature", then.update.curvature, now.update.curvature)
    yield _of("update.change", then.update.change, now.update.change)


def _of(name: str, then: Estimate | None, now: Estimate | None) -> _Pair:
    allowed = 0.0 if now is None or then is None else _SHARE_OF_ERROR * max(then.error, now.error)
    return f"{name}.value", None if then is None else then.value, None if now is None else now.value, allowed


def _shown(value: float | None) -> str:
    return "not known" if value is None else f"{value:.10g}"
