"""The trace: what a Krylov basis knows of it exactly, and random probes of the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

from hvpspec.errors import InputError
from hvpspec.estimators.extend_or_probe import choose, ends
from hvpspec.estimators.shared_pass import Figure, OnePass
from hvpspec.krylov.basis import Storage, check_storage
from hvpspec.krylov.operator_view import Symmetric, as_symmetric
from hvpspec.options import Place
from hvpspec.results.estimate import Estimate
from hvpspec.validation import Tolerance, check_budget, check_seed


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
    basis_on: Place = "device",
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
        no basis where that does not pay, and is exact when the basis comes to span the whole space. "hutchinson"
        (doi:10.1080/03610918908812806) makes no basis at all, and needs no memory for one.
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
    basis_on: Place = "device",
    callback: Callable[[Estimate], None] | None = None,
) -> Estimate:
    """The Frobenius norm of a symmetric operator (n × n), with an interval that holds it with that `confidence`.

    The same products as for `hvpspec.trace`, whose options, methods and errors it shares: ‖A‖_F² is known on the
    basis and estimated by ‖A ω‖² on its complement. "hutchinson" stands for that method on tr A², each product with A
    serving twice. Costs about ½ (1.96 / rtol)² ‖B²‖_F² / ‖A‖_F⁴ probes, B being what the
    basis leaves.
    """
    return sample(
        A, "frobenius_norm", rtol=rtol, atol=atol, confidence=confidence, seed=seed, max_hvps=max_hvps, method=method,
        basis_memory=basis_memory, basis_on=basis_on, callback=callback,
    )  # fmt: skip


Method = Literal["krylov", "hutchinson"]


def sample(
    A: Any,
    figure: Figure,
    *,
    rtol: float,
    atol: float,
    confidence: float,
    seed: int,
    max_hvps: int | None,
    method: Method,
    basis_memory: int | str | None,
    basis_on: Place,
    callback: Callable[[Estimate], None] | None,
) -> Estimate:
    """See `hvpspec.trace`."""
    tolerance, seed, budget = Tolerance(rtol, atol, confidence), check_seed(seed), check_budget(max_hvps)
    storage = check_storage(basis_memory, basis_on)
    if method not in get_args(Method):
        names = ", ".join(f'"{name}"' for name in get_args(Method))
        raise InputError(f"method must be one of {names}; got {method!r}.")
    operator = as_symmetric(A)
    left = math.inf if budget is None else budget
    estimate = None
    for estimate in _one_pass(operator, figure, tolerance, seed, left, storage, basis=method == "krylov"):
        if callback is not None:
            callback(estimate)
    assert estimate is not None
    return estimate


def _one_pass(
    A: Symmetric, figure: Figure, tolerance: Tolerance, seed: int, budget: float, storage: Storage, *, basis: bool
) -> Iterator[Estimate]:
    one = OnePass(A, seed=seed, storage=storage, basis=basis)
    if not ends(one, tolerance, None if math.isinf(budget) else int(budget)):
        raise InputError("rtol=0 needs an atol, a budget (max_hvps), or a basis_memory that holds n vectors.")
    while True:
        figures: dict[Figure, Estimate] = {figure: one.estimate(figure, tolerance)}
        if one.hvps and math.isfinite(figures[figure].value):
            yield figures[figure]
        move = choose(one, figures, tolerance, budget - one.hvps)
        if move.action == "stop":
            return
        if move.action == "extend":
            one.extend(move.count)
        else:
            one.probe(move.count)
