"""One figure on its own, by the method asked for: what `trace` and `frobenius_norm` share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

from hvpspec.errors import InputError
from hvpspec.estimators.extend_or_probe import choose, ends
from hvpspec.krylov.basis import Storage, check_storage
from hvpspec.estimators.hutchpp import HutchPlusPlus
from hvpspec.estimators.shared_pass import Figure, OnePass
from hvpspec.validation import Tolerance, check_budget, check_seed
from hvpspec.krylov.operator_view import Symmetric, as_symmetric
from hvpspec.estimators.xtrace import XTrace
from hvpspec.results.spectrum import Estimate

Method = Literal["krylov", "hutchinson", "hutch++", "xtrace"]


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
    basis_on: str,
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
    if method in ("krylov", "hutchinson"):
        steps = _one_pass(operator, figure, tolerance, seed, left, storage, basis=method == "krylov")
    else:
        steps = _sketched(operator, figure, tolerance, seed, left, method)
    estimate = None
    for estimate in steps:
        if callback is not None:
            callback(estimate)
    if estimate is None:
        raise InputError(f"max_hvps={max_hvps} is too few for {method}; give it at least 3.")
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


def _sketched(
    A: Symmetric, figure: Figure, tolerance: Tolerance, seed: int, budget: float, method: Method
) -> Iterator[Estimate]:
    if tolerance.rtol == tolerance.atol == 0 and math.isinf(budget):
        raise InputError(f"rtol=0 needs an atol or a budget (max_hvps) with method={method!r}.")
    state = HutchPlusPlus(A, seed) if method == "hutch++" else XTrace(A, seed)
    already = A.hvps
    while state.add(budget - (A.hvps - already)):
        norm, norm_error = state.frobenius_norm(tolerance.confidence)
        value, error = (norm, norm_error) if figure == "frobenius_norm" else state.trace(tolerance.confidence)
        error += 16 * A.eps * norm
        converged = error <= tolerance.allowed(value, norm)
        relative_to = "frobenius_norm" if abs(value) < norm and tolerance.rtol * norm > tolerance.atol else "value"
        yield Estimate(value, error, tolerance.confidence, converged, A.hvps - already, method, relative_to)
        if converged:
            return
