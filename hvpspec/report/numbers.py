"""Numbers as text, rounded to the digits that their error leaves, and the names that quantities have for readers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.wording import percent

QUANTITY_NAMES = {
    "eigenvalues": "λ1, λ2, …",
    "trace": "trace",
    "frobenius_norm": "Frobenius norm",
    "density": "density",
    "largest": "λ_max",
    "smallest": "λ_min",
    "norm": "spectral norm",
    "step": "largest stable step",
    "edge": "edge of stability",
    "edge_ratio": "λ_max / edge",
    "negative": "negative eigenvalues",
    "negative_mass": "sum of negative |λ|",
    "stable_rank": "stable rank",
    "participation_ratio": "effective rank",
    "rank": "numerical rank",
    "bulk_mean": "mean of the rest",
    "bulk_spread": "std. dev. of the rest",
    "flatness": "flatness of the rest",
    "kappa": "condition number κ",
    "nearest_zero": "smallest |λ|",
    "refined": "λ nearest to 0",
    "effective_dimension": "effective dimension",
    "log_determinant": "log-determinant",
    "gradient_descent": "gradient descent",
    "conjugate_gradients": "conjugate gradients",
    "digits_lost": "digits lost in a solve",
    "finite_difference": "finite differences",
    "block": "figures of a group",
    "gradient_norm": "‖g‖",
    "gradient_curvature": "curvature along g",
    "gradient_step": "best step along −g",
    "gradient_share": "share in eigenvectors",
    "noise_scale": "noise scale",
    "update_length": "‖u‖",
    "update_slope": "slope gᵀu",
    "update_curvature": "curvature along u",
    "update_change": "change of the loss",
    "per_batch": "figures of a batch",
    "diagonal": "mean of the diagonal",
}

DATA_HEADING = "± data (1 s.e.)"
NOT_REACHED = "tolerance not reached"
OTHERS_MISSING = "others may be missing"


def rounded(value: float, digits: int) -> str:
    """To that many significant digits, written out: 120, not 1.2e+02."""
    return f"{float(f'{value:.{digits}g}'):g}"


def with_error(value: float, error: float) -> tuple[str, str]:
    """The value to the digits that its error leaves, and the error to two digits: ("12.3457", "0.00051")."""
    if not math.isfinite(error):
        return rounded(value, 3), "unknown"
    if error <= 0 or value == 0:
        return f"{value:.8g}", rounded(error, 2)
    digits = math.floor(math.log10(abs(value))) - math.floor(math.log10(error)) + 2
    text = f"{value:#.{min(max(digits, 1), 9)}g}"
    if "e" in text and 1 <= abs(value) < 1e7:  # more whole digits than the error leaves
        text = f"{float(text):.0f}"
    return text.replace(".e", "e").rstrip("."), rounded(error, 2)


def shared_confidence(estimates: Iterable[Estimate | None]) -> float | None:
    """The confidence of the intervals, where all have the same one; None for others, and where all are exact."""
    found = {estimate.confidence for estimate in estimates if estimate is not None and estimate.method != "exact"}
    return found.pop() if len(found) == 1 else None


def error_heading(confidence: float | None) -> str:
    """The heading of a column of errors: half-widths of intervals of that confidence."""
    return "± error" if confidence is None else f"± error ({percent(confidence)})"


def certainty(estimate: Estimate, shared: float | None) -> str:
    """What there is to say of an error whose column is headed with the confidence `shared`, or with none."""
    if estimate.method == "exact":
        return "exact, up to rounding"
    said = [] if estimate.confidence == shared else [percent(estimate.confidence)]
    return ", ".join(said if estimate.converged else [*said, NOT_REACHED])


def pair_notes(pairs: Eigenpairs) -> list[str]:
    """What is not certain of each eigenpair: its accuracy, or its place among the others."""
    if pairs.converged:
        return [""] * len(pairs.values)
    if pairs.reached is None:  # from an older file
        return [NOT_REACHED] * len(pairs.values)
    return [OTHERS_MISSING if reached else NOT_REACHED for reached in pairs.reached.tolist()]


def count_range(count: Estimate, least: int = 0, most: int | None = None) -> str:
    """A count as a range of whole numbers: that of the estimate, within the bounds that are certain."""
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
    """Rounded upwards to that many significant digits, without trailing zeros."""
    return _rounded(value, math.ceil, digits)


def down(value: float, digits: int = 4) -> str:
    """Rounded downwards likewise."""
    return _rounded(value, math.floor, digits)


def _rounded(value: float, towards: Callable[[float], int], digits: int) -> str:
    if value <= 0 or not math.isfinite(value):
        return f"{value:g}"
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    many = value / step
    whole = round(many) if math.isclose(many, round(many), rel_tol=1e-12) else towards(many)
    return rounded(whole * step, digits)


def plus_minus(value: float, error: float) -> str:
    """ "12.3457 ± 0.00051"."""
    if not math.isfinite(value):
        return "unknown"
    if value and abs(value) < error < math.inf:
        return f"{rounded(value, 2)} ± {rounded(error, 2)}"
    shown, margin = with_error(value, error)
    return f"{shown} ± {margin}" if margin != "unknown" else f"{shown}, error unknown"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
