"""The figures of one run that can be set beside another's, each with what it may be off by on either side."""

from __future__ import annotations

import math
from collections.abc import Callable

from hvpspec.report.condition_rows import shifted_name
from hvpspec.report.numbers import between, count_range, with_error
from hvpspec.results.comparison import Value
from hvpspec.results.condition import Condition
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.results.spectrum import Spectrum

_OF_CONDITION = {
    "negative_mass": "negative mass",
    "stable_rank": "stable rank",
    "participation_ratio": "participation ratio",
    "effective_dimension": "effective dimension",
    "log_determinant": "log-determinant",
}


def values_of(spectrum: Spectrum) -> dict[str, Value]:
    """The figures of a run, by names that mean the same in every run.

    Eigenvalues are counted from either end of the spectrum: among those of largest magnitude, the i-th from the top
    is the i-th largest of all.
    """
    found: dict[str, Value] = {}
    pairs, known = spectrum.eigenpairs, spectrum.condition
    if pairs is not None:
        for end, sign in (("top", 1), ("bottom", -1)):
            mine = [
                (float(value), float(error))
                for value, error in zip(pairs.values, pairs.error, strict=True)
                if sign * value > 0
            ]
            for i, (value, error) in enumerate(sorted(mine, key=lambda pair: -abs(pair[0])), start=1):
                found[f"λ{i} from the {end}"] = Value(value, error, None)
    high = known.largest if known is not None else pairs.largest if pairs is not None else None
    low = known.smallest if known is not None else pairs.smallest if pairs is not None else None
    for name, bracket, side in (("λ_max", high, 1), ("λ_min", low, -1)):
        if bracket is not None:
            found |= _bracket(name, bracket, side)
    found |= _estimate("trace", spectrum.trace) | _estimate("Frobenius norm", spectrum.frobenius_norm)
    if known is not None:
        found |= _of_condition(known)
    for block in spectrum.blocks.blocks if spectrum.blocks is not None else ():
        found |= _estimate(f"trace of {block.name}", block.trace)
        found |= _estimate(f"norm of {block.name}", block.frobenius_norm)
        if block.largest is not None:
            found |= _bracket(f"λ_max of {block.name}", block.largest, 1)
    return found


def _of_condition(known: Condition) -> dict[str, Value]:
    """Those of H + δI have it in their name, and so meet their like alone; those of the bulk how many it holds."""
    shifted = shifted_name(known)
    found: dict[str, Value] = {}
    least = {"negative": known.negative_at_least, "rank": known.rank_at_least or 0}
    for key, name in (("negative", "negative eigenvalues"), ("rank", "numerical rank")):
        count: Estimate = getattr(known, key)
        if math.isfinite(count.value):
            text = count_range(count, least[key], known.parameters)
            found[name] = Value(
                count.value, count.error, count.confidence, float(least[key]), float(known.parameters), text
            )
    for key, name in _OF_CONDITION.items():
        damped = key in ("effective_dimension", "log_determinant") and known.damping
        found |= _estimate(f"{name} of {shifted}" if damped else name, getattr(known, key))
    for key, name in (("bulk_mean", "bulk mean"), ("bulk_spread", "bulk spread")):
        found |= _estimate(f"{name}, of {known.bulk_count:,}", getattr(known, key))
    found |= _bracket(f"κ of {shifted}", known.kappa, 0, _kappa_ends(known))
    if known.step is not None:
        found |= _bracket(f"stable step, {shifted}", known.step, 0, _step_ends(known))
    return found


def _estimate(name: str, figure: Estimate | None) -> dict[str, Value]:
    if figure is None or not math.isfinite(figure.value):
        return {}
    chance = None if figure.method == "exact" else figure.confidence
    return {name: Value(figure.value, figure.error, chance, text=with_error(figure.value, figure.error)[0])}


def _bracket(
    name: str, bracket: Bracket, side: int, ends: Callable[[float], tuple[float, float]] | None = None
) -> dict[str, Value]:
    """side: 1 where chance is in the upper end alone, -1 where in the lower. The certain end stands for the figure."""
    value = bracket.upper if side < 0 else bracket.lower
    if not math.isfinite(value):
        return {}
    ends = ends or (lambda times: _widened(bracket, side, times))
    text = between(bracket)
    if "…" in text:  # two numbers in the place of one
        text = between(bracket, 3)
    return {name: Value(value, bracket.upper - bracket.lower, bracket.confidence, text=text, ends=ends)}


def _widened(bracket: Bracket, side: int, times: float) -> tuple[float, float]:
    """The end that chance is in lies where the Krylov polynomial, which is convex beyond the last Ritz value and zero
    there, reaches 1/δ; the miss has a probability in proportion to δ. So that end moves out `times` as far at most."""
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
