"""The Frobenius norm: what a Krylov basis knows of it exactly, and random probes of the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hvpspec.estimators.sampled import Method, sample
from hvpspec.results.spectrum import Estimate


def frobenius_norm(
    A: Any,
    *,
    rtol: float = 0.01,
    atol: float = 0.0,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    method: Method = "krylov",
    basis_memory: int | str | None = None,
    basis_on: str = "device",
    callback: Callable[[Estimate], None] | None = None,
) -> Estimate:
    """The Frobenius norm of a symmetric operator (n × n), with an interval that holds it with that `confidence`.

    The same products as for `hvpspec.trace`, whose options, methods and errors it shares: ‖A‖_F² is known on the
    basis and estimated by ‖A ω‖² on its complement. "hutchinson", "hutch++" and "xtrace" stand for those methods on
    tr A², each product with A serving twice. Costs about ½ (1.96 / rtol)² ‖B²‖_F² / ‖A‖_F⁴ probes, B being what the
    basis leaves.
    """
    return sample(
        A, "frobenius_norm", rtol=rtol, atol=atol, confidence=confidence, seed=seed, max_hvps=max_hvps, method=method,
        basis_memory=basis_memory, basis_on=basis_on, callback=callback,
    )  # fmt: skip
