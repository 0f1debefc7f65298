"""Numbers as text: rounded to what their error leaves."""

from __future__ import annotations

import math
from collections.abc import Callable

from hvpspec.results.estimate import Bracket, Estimate

QUANTITY_NAMES = {"trace": "trace", "frobenius_norm": "Frobenius norm"}


def rounded(value: float, digits: int) -> str:
    """To so many digits, written out: 120, not 1.2e+02."""
    return f"{float(f'{value:.{digits}g}'):g}"


def with_error(value: float, error: float) -> tuple[str, str]:
    """The value to the digits that its error leaves, and the error to two: ("12.3457", "0.00051")."""
    if not math.isfinite(error):
        return rounded(value, 3), "unknown"
    if error <= 0 or value == 0:
        return f"{value:.8g}", rounded(error, 2)
    digits = math.floor(math.log10(abs(value))) - math.floor(math.log10(error)) + 2
    text = f"{value:#.{min(max(digits, 1), 9)}g}"
    if "e" in text and 1 <= abs(value) < 1e7:  # more whole digits than the error leaves
        text = f"{float(text):.0f}"
    return text.replace(".e", "e").rstrip("."), rounded(error, 2)


def certainty(estimate: Estimate) -> str:
    if estimate.method == "exact":
        return "exact, up to rounding"
    note = f"{100 * estimate.confidence:g} %"
    return note if estimate.converged else f"{note}, tolerance not reached"


def count_range(count: Estimate, least: int = 0, most: int | None = None) -> str:
    """A count by its bounds, which are whole numbers; those that hold for certain beside those of the estimate."""
    if not math.isfinite(count.value):
        return "unknown"
    high = math.inf if most is None else float(most)
    lower, upper = count.interval
    if math.isfinite(lower):
        least = max(math.ceil(lower - 1e-6), least, 0)
    if math.isfinite(upper):
        high = min(math.floor(upper + 1e-6), high)
    if math.isinf(high):
        return f"≥ {least:,}"
    return f"{least:,}" if least >= high else f"{least:,} … {high:,.0f}"


def between(bracket: Bracket, digits: int = 4) -> str:
    """Both ends, or the one that is known; one number where they agree to that many digits."""
    low, high = rounded(bracket.lower, digits), rounded(bracket.upper, digits)
    if math.isinf(bracket.upper):
        return f"≥ {low}" if math.isfinite(bracket.lower) else "unknown"
    if math.isinf(bracket.lower):
        return f"≤ {high}"
    return low if low == high else f"{low} … {high}"


def up(value: float, digits: int = 4) -> str:
    """Rounded upwards to so many digits, trailing zeros dropped."""
    return _rounded(value, math.ceil, digits)


def down(value: float, digits: int = 4) -> str:
    return _rounded(value, math.floor, digits)


def _rounded(value: float, towards: Callable[[float], int], digits: int) -> str:
    if value <= 0 or not math.isfinite(value):
        return f"{value:g}"
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    many = value / step
    whole = round(many) if math.isclose(many, round(many), rel_tol=1e-12) else towards(many)
    return rounded(whole * step, digits)


def plus_minus(value: float, error: float) -> str:
    if not math.isfinite(value):
        return "unknown"
    if value and abs(value) < error < math.inf:
        return f"{rounded(value, 2)} ± {rounded(error, 2)}"
    shown, margin = with_error(value, error)
    return f"{shown} ± {margin}" if margin != "unknown" else f"{shown}, error unknown"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
