"""The quantities of one run that can be compared with another's, each with its error on either side."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from hvpspec.options import Which
from hvpspec.report.numbers import QUANTITY_NAMES, between, count_range, with_error
from hvpspec.report.rows.condition import shifted_name
from hvpspec.results.condition import Condition
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.results.runs.comparison import Value
from hvpspec.results.spectrum import Spectrum

_OF_CONDITION = ("negative_mass", "stable_rank", "participation_ratio", "effective_dimension", "log_determinant")


def values_of(spectrum: Spectrum) -> dict[str, Value]:
    """The quantities of a run, by names that mean the same in every run.

    Eigenvalues are counted from the end of the spectrum that they are known to be next to.
    """
    found: dict[str, Value] = {}
    pairs, known = spectrum.eigenpairs, spectrum.condition
    if pairs is not None:
        for end, mine in _by_end(pairs, spectrum.which).items():
            for i, index in enumerate(mine, start=1):
                value, error = float(pairs.values[index]), float(pairs.error[index])
                found[f"λ{i} from the {end}"] = Value(value, error, None, about="eigenvalues")
    high = known.largest if known is not None else pairs.largest if pairs is not None else None
    low = known.smallest if known is not None else pairs.smallest if pairs is not None else None
    for key, bracket, side in (("largest", high, 1), ("smallest", low, -1)):
        if bracket is not None:
            found |= _bracket(QUANTITY_NAMES[key], bracket, side, about=key)
    for key in ("trace", "frobenius_norm"):
        found |= _estimate(QUANTITY_NAMES[key], getattr(spectrum, key), about=key)
    if (along := spectrum.gradient) is not None:
        parts = {"gradient_norm": along.norm, "gradient_curvature": along.curvature, "noise_scale": along.noise_scale}
        for key, estimate in parts.items():
            found |= _estimate(QUANTITY_NAMES[key], estimate, about=key)
        if along.share is not None:
            found |= _estimate(f"share of g, k = {len(along.parts)}", along.share, about="gradient_share")
    if known is not None:
        found |= _of_condition(known, spectrum.which)
    for block in spectrum.blocks.blocks if spectrum.blocks is not None else ():
        found |= _estimate(f"trace of {block.name}", block.trace, about="block")
        found |= _estimate(f"norm of {block.name}", block.frobenius_norm, about="block")
        if block.largest is not None:
            found |= _bracket(f"λ_max of {block.name}", block.largest, 1, about="block")
    return found


def _by_end(pairs: Eigenpairs, which: Which) -> dict[str, np.ndarray]:
    """The indices of the eigenvalues that are known to be the outermost ones at either end, from the outside.

    Among those of largest magnitude, the i-th positive one is the i-th largest of all.
    """
    values, order = pairs.values, np.argsort(pairs.values, kind="stable")
    if which == "LM":
        return {"top": order[::-1][: (values > 0).sum()], "bottom": order[: (values < 0).sum()]}
    at_top = {"LA": len(values), "SA": 0, "BE": (len(values) + 1) // 2}[which]
    return {"top": order[::-1][:at_top], "bottom": order[: len(values) - at_top]}


def _of_condition(known: Condition, which: Which) -> dict[str, Value]:
    """Their names tell which can be compared: those of H + δI name δ, and means over the rest how many it is of."""
    shifted = shifted_name(known)
    found: dict[str, Value] = {}
    least = {"negative": known.negative_at_least, "rank": known.rank_at_least or 0}
    for key in ("negative", "rank"):
        count: Estimate = getattr(known, key)
        if math.isfinite(count.value):
            text = count_range(count, least[key], known.parameters)
            found[QUANTITY_NAMES[key]] = Value(
                count.value, count.error, count.confidence, float(least[key]), float(known.parameters), text, about=key
            )
    for key in _OF_CONDITION:
        name = QUANTITY_NAMES[key]
        damped = key in ("effective_dimension", "log_determinant") and known.damping
        found |= _estimate(f"{name} of {shifted}" if damped else name, getattr(known, key), about=key)
    for key, name in (("bulk_mean", "mean"), ("bulk_spread", "spread")):
        others = f"{known.bulk_count:,} others" if which == "LM" else f"{known.bulk_count:,} others ({which})"
        found |= _estimate(f"{name} of {others}", getattr(known, key), about=key)
    found |= _bracket(f"κ of {shifted}", known.kappa, 0, _kappa_ends(known), about="kappa")
    if known.step is not None:
        found |= _bracket(f"stable step, {shifted}", known.step, 0, _step_ends(known), about="step")
    return found


def _estimate(name: str, estimate: Estimate | None, *, about: str) -> dict[str, Value]:
    if estimate is None or not math.isfinite(estimate.value):
        return {}
    confidence = None if estimate.method == "exact" else estimate.confidence
    text = with_error(estimate.value, estimate.error)[0]
    return {name: Value(estimate.value, estimate.error, confidence, text=text, about=about)}


def _bracket(
    name: str, bracket: Bracket, side: int, ends: Callable[[float], tuple[float, float]] | None = None, *, about: str
) -> dict[str, Value]:
    """The end that is certain is the value. side: 1 where only the upper end is left to chance, -1 where the lower."""
    value = bracket.upper if side < 0 else bracket.lower
    if not math.isfinite(value):
        return {}
    ends = ends or (lambda times: _widened(bracket, side, times))
    text = between(bracket)
    if "…" in text:  # two numbers in the place of one
        text = between(bracket, 3)
    width = bracket.upper - bracket.lower
    return {name: Value(value, width, bracket.confidence, text=text, ends=ends, about=about)}


def _widened(bracket: Bracket, side: int, times: float) -> tuple[float, float]:
    """Both ends where the probability of a miss is to be `times` smaller.

    The end that is left to chance lies where the Krylov polynomial, which is zero at the last Ritz value and convex
    beyond it, reaches 1/δ; a miss has a probability proportional to δ. So that end moves out `times` as far at most.
    """
    width = times * (bracket.upper - bracket.lower)
    return (bracket.upper - width, bracket.upper) if side < 0 else (bracket.lower, bracket.lower + width)


def _kappa_ends(known: Condition) -> Callable[[float], tuple[float, float]]:
    def ends(times: float) -> tuple[float, float]:
        if math.isinf(known.kappa.upper):
            return known.kappa.lower, math.inf
        top = _widened(known.largest, 1, times)[1] + known.damping
        bottom = _widened(known.smallest, -1, times)[0] + known.damping
        if bottom * top <= 0:
            return known.kappa.lower, math.inf
        size = sorted((abs(bottom), abs(top)))
        return known.kappa.lower, max(size[1] / size[0], known.kappa.upper)

    return ends


def _step_ends(known: Condition) -> Callable[[float], tuple[float, float]]:
    assert known.step is not None
    step = known.step

    def ends(times: float) -> tuple[float, float]:
        top = _widened(known.largest, 1, times)[1] + known.damping
        return min(2 / top if top > 0 else 0.0, step.lower), step.upper

    return ends
