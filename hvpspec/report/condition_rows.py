"""The conditioning as rows of text, for terminal and page: first the figures of H, then those of H + δI."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hvpspec.report.numbers import between, count_range, down, rounded, up, with_error
from hvpspec.results.condition import Condition
from hvpspec.results.estimate import Bracket, Estimate


@dataclass(frozen=True)
class Row:
    """A figure. error: "" where the value is a bound, a range or a rule."""

    name: str
    value: str
    error: str = ""
    note: str = ""


@dataclass(frozen=True)
class Part:
    """The figures of one matrix, by its name: "H", "H + 0.1 I"."""

    matrix: str
    rows: list[Row]


def condition_parts(found: Condition) -> list[Part]:
    """One part without damping, two with it. A figure that cannot be had is left to `condition_notes`."""
    own, shifted = _of_h(found), _of_shifted(found)
    if not found.damping:
        return [Part("H", own + shifted)]
    return [Part("H", own), Part(shifted_name(found), shifted)]


def shifted_name(found: Condition) -> str:
    return f"H + {found.damping:g} I" if found.damping else "H"


def ends(found: Condition) -> list[Row]:
    """Extreme eigenvalues and norm of H: for the page; on the terminal they stand in the table above."""
    return [
        Row("λ_max", between(found.largest)),
        Row("λ_min", between(found.smallest)),
        Row("spectral norm", between(found.norm), "", "‖H‖₂"),
    ]


def condition_notes(found: Condition) -> list[str]:
    """Why a figure is not there: one sentence for those that share a reason."""
    shown: dict[str, list[str]] = {}
    for name, reason in found.reasons.items():
        if name != "kappa":  # its bound is there
            shown.setdefault(reason, []).append(_NAMES.get(name, name.replace("_", " ")))
    return [f"no {', '.join(names)}: {reason}" for reason, names in shown.items()]


_NAMES = {
    "log_determinant": "log-determinant",
    "conjugate_gradients": "CG count",
    "gradient_descent": "descent count",
    "refined": "eigenvalue nearest to 0",
}


def _of_h(found: Condition) -> list[Row]:
    least = found.negative_at_least
    surely = f"at least {least:,}, for certain"
    rows = [Row("negative eigenvalues", count_range(found.negative, least, found.parameters), "", surely)]
    rows.append(Row("their sum, as Σ|λ|", *_mass(found.negative_mass)))
    rows += _row("stable rank", found.stable_rank, "‖H‖_F² / ‖H‖₂²")
    rows += _row("participation ratio", found.participation_ratio, "(tr H)² / ‖H‖_F²")
    rank = count_range(found.rank, found.rank_at_least or 0, found.parameters)
    rows.append(Row("numerical rank", rank, "", f"of {found.parameters:,}: |λ| > {found.rank_threshold:.2g}"))
    rows += _row("bulk: mean", found.bulk_mean, f"the other {found.bulk_count:,} eigenvalues")
    rows += _row("bulk: spread", found.bulk_spread, _flatness(found))
    return rows


def _of_shifted(found: Condition) -> list[Row]:
    name = shifted_name(found)
    eigenvalue, largest = ("λ + δ", "(λ_max + δ)") if found.damping else ("λ", "λ_max")
    rows = [
        Row(f"κ of {name}", between(found.kappa), "", _definite(found)),
        Row(f"smallest |{eigenvalue}|", *_nearest(found)),
    ]
    if found.refined is not None:
        for value, error in zip(found.refined.values, found.refined.error, strict=True):
            note = "" if found.refined.converged else "not converged"
            rows.append(Row(f"{eigenvalue} nearest to 0", *_shown(float(value) + found.damping, float(error)), note))
    rows += _row("effective dimension", found.effective_dimension if found.damping else None, "Σ λ/(λ + δ)")
    rows += _row("log-determinant", found.log_determinant)
    if found.step is not None:
        rows.append(Row("largest stable step", down(found.step.lower), "", f"of gradient descent: 2/{largest}"))
    to = f"iterations to {found.accuracy:g}"
    if found.gradient_descent is not None:
        rows.append(Row("gradient descent", _iterations(found.gradient_descent), "", to))
    if found.conjugate_gradients is not None:
        rows.append(Row("conjugate gradients", f"≤ {_count(found.conjugate_gradients.value)}", "", to))
    rows.append(Row("digits lost in a solve", _digits_lost(found), "", f"of {found.digits:.1f}"))
    rule = f"~ {found.finite_difference.value:.1g}"
    rows.append(Row("finite differences", rule, "", "relative error nearest 0 (rule)"))
    return rows


def _row(name: str, figure: Estimate | None, note: str = "") -> list[Row]:
    return [] if figure is None else [Row(name, *_shown(figure.value, figure.error), note)]


def _shown(value: float, error: float) -> tuple[str, str]:
    if value and abs(value) < error < math.inf:
        return rounded(value, 2), rounded(error, 2)
    return with_error(value, error)


def _definite(found: Condition) -> str:
    bounded = f"upper end at {100 * found.confidence:g} %"
    return {
        "positive": f"positive definite; {bounded}",
        "negative": f"negative definite; {bounded}",
        "indefinite": "certain; it is indefinite",
        "unknown": "certain; not shown to be definite",
    }[found.definite]


def _flatness(found: Condition) -> str:
    if found.flatness is None:
        return ""
    lower, upper = (rounded(100 * end, 2) for end in found.flatness.interval)
    return f"{lower} % of ‖H‖₂" if lower == upper else f"{lower} … {upper} % of ‖H‖₂"


def _mass(mass: Estimate) -> tuple[str, str]:
    """What is no sum of magnitudes, a negative number, is not shown as one that it might be."""
    lower, upper = mass.interval
    if mass.value - mass.error >= 0 or not math.isfinite(upper):
        return _shown(mass.value, mass.error)
    return f"{down(max(lower, 0.0), 2)} … {up(upper, 2)}", ""


def _nearest(found: Condition) -> tuple[str, str, str]:
    both = found.nearest_range
    if both is not None and both.lower > 0:
        return between(both), "", "upper end certain, up to rounding"
    return f"≤ {up(found.nearest_zero.value)}", "", "certain, up to rounding"


def _digits_lost(found: Condition) -> str:
    """No more than there are."""
    low, high = (min(end, found.digits) for end in (found.digits_lost.lower, found.digits_lost.upper))
    if math.isinf(found.digits_lost.upper):
        return f"≥ {low:.1f}"
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} … {high:.1f}"


def _iterations(bracket: Bracket) -> str:
    low, high = _count(bracket.lower), _count(bracket.upper)
    return f"≥ {low}" if math.isinf(bracket.upper) else low if low == high else f"{low} … {high}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 1e7 else f"{value:.3g}"
