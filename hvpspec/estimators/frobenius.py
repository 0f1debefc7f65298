"""The Frobenius norm from ‖Aω‖², whose mean over random sign vectors ω is ‖A‖_F²."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hvpspec.estimators.sampling import sample
from hvpspec.results import Estimate


def frobenius_norm(
    A: Any,
    *,
    rtol: float = 0.01,
    atol: float = 0.0,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    callback: Callable[[Estimate], None] | None = None,
) -> Estimate:
    """The Frobenius norm of a symmetric operator (n × n), with an interval that holds it with that `confidence`.

    It is Hutchinson's estimator for tr A² (doi:10.1080/03610918908812806), one product a sample. Options, cost and
    errors as for `hvpspec.trace`; the HVPs needed are about ½ (1.96 / rtol)² ‖A²‖_F² / ‖A‖_F⁴, at most n more than a
    block of probes.
    """
    return sample(
        A, "frobenius_norm", rtol=rtol, atol=atol, confidence=confidence, seed=seed, max_hvps=max_hvps,
        callback=callback,
    )  # fmt: skip
