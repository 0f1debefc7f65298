"""How many products a spectrum will take: what is likely, and what it may come to.

The eigenpairs of a spectrum with outliers take some 2k + 10 steps; k that lie in a dense bulk can take a dozen times
that. Plain probes to a relative half-width of r number N = 2 (2/r)² ‖H‖_F² / max(tr H, ‖H‖_F)², as the variance of one
is at most 2 ‖H‖_F². The basis takes off what a few outliers hold of that and nothing of what a bulk does. A few
products with normal vectors x tell both, roughly: E xᵀHx = tr H, E |Hx|² = ‖H‖_F², E (x₁ᵀH²x₂)² = ‖H²‖_F².
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hvpspec.estimators.shared_pass import PILOTS
from hvpspec.estimators.spectrum import check_only, spectrum
from hvpspec.krylov.vectors import inner
from hvpspec.results.spectrum import Progress

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
