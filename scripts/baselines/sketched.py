"""Trace or Frobenius norm by Hutch++ or XTrace, stopped at a tolerance as hvpspec's own estimators are."""

from __future__ import annotations

import math
from typing import Any, Literal

from baselines.hutchpp import HutchPlusPlus
from baselines.xtrace import XTrace
from hvpspec.errors import InputError
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.results.estimate import Estimate
from hvpspec.validation import Tolerance


def sketched(
    A: Any,
    quantity: Literal["trace", "frobenius_norm"],
    method: Literal["hutch++", "xtrace"],
    *,
    rtol: float = 0.01,
    atol: float = 0.0,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
) -> Estimate:
    """The quantity with the interval of the method's paper, which is too short on some spectra."""
    tolerance, operator = Tolerance(rtol, atol, confidence), as_symmetric(A)
    budget = math.inf if max_hvps is None else max_hvps
    if tolerance.rtol == tolerance.atol == 0 and math.isinf(budget):
        raise InputError(f"rtol=0 needs an atol or a budget (max_hvps) with method={method!r}.")
    state = HutchPlusPlus(operator, seed) if method == "hutch++" else XTrace(operator, seed)
    already, found = operator.hvps, None
    while state.add(budget - (operator.hvps - already)):
        norm, norm_error = state.frobenius_norm(confidence)
        value, error = (norm, norm_error) if quantity == "frobenius_norm" else state.trace(confidence)
        error += 16 * operator.eps * norm
        converged = error <= tolerance.allowed(value, norm)
        relative_to = "frobenius_norm" if abs(value) < norm and tolerance.rtol * norm > tolerance.atol else "value"
        found = Estimate(value, error, confidence, converged, operator.hvps - already, method, relative_to)
        if converged:
            break
    if found is None:
        raise InputError(f"max_hvps={max_hvps} is too few for {method}; give it at least 3.")
    return found
