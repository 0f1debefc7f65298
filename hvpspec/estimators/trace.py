"""The trace: what a Krylov basis knows of it exactly, and random probes of the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hvpspec.estimators.sampled import Method, sample
from hvpspec.results.spectrum import Estimate


def trace(
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
    """The trace of a symmetric operator (n × n), with an interval that holds it with probability `confidence`.

    A: HessianOperator, SciPy LinearOperator, sparse or dense array, or torch tensor.
    rtol, atol: stop when the half-width is ≤ max(rtol · |trace|, atol). A trace smaller than the Frobenius norm comes
        of positive and negative parts that cancel, and cannot be had to a small part of itself: then the half-width
        asked for is max(rtol · ‖A‖_F, atol), and `relative_to` in the result says so.
    seed: of the random vectors; the same seed gives the same ones on every device.
    max_hvps: the budget; None sets none. Once it is spent, what there is comes back with `converged=False`.
    method: "krylov", the default, splits the products between a Lanczos basis, on which the trace is known, and
        random sign probes of the complement, where each saves most (Krylov-aware trace, arXiv:2205.01736); it makes
        no basis where that does not pay, and is exact when the basis comes to span the whole space. For comparison:
        "hutchinson" (doi:10.1080/03610918908812806), "hutch++" (arXiv:2010.09649) and "xtrace" (arXiv:2301.07825),
        with the intervals of their papers, which are too short on some spectra.
    basis_memory, basis_on: what the basis and the probes may take and where; see `hvpspec.eigsh`.
    callback: called with the Estimate so far after each step.

    Costs one HVP a basis vector and one a probe: about 2 F (1.96 / (rtol · tr))² probes in all, F being the squared
    norm of what the basis leaves, less its mean eigenvalue; at most n + 8 while a basis of n vectors fits.
    Raises InputError for options out of range or an operator that is not symmetric.
    """
    return sample(
        A, "trace", rtol=rtol, atol=atol, confidence=confidence, seed=seed, max_hvps=max_hvps, method=method,
        basis_memory=basis_memory, basis_on=basis_on, callback=callback,
    )  # fmt: skip
