"""The conditioning and the stability of gradient descent as rows of text, for terminal and page."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hvpspec.bounds.stability import Stability
from hvpspec.report.numbers import QUANTITY_NAMES, between, count_range, down, rounded, up, with_error
from hvpspec.report.table import Row
from hvpspec.results.condition import Condition
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.results.spectrum import Preconditioned, Spectrum
from hvpspec.wording import percent


@dataclass(frozen=True)
class Part:
    """The quantities of one matrix, by its name: "H", "H + 0.1 I"."""

    matrix: str
    rows: list[Row]


def condition_parts(found: Condition) -> list[Part]:
    """One part without damping, two with it. Quantities that are not available are left to `condition_notes`."""
    own, shifted = _of_h(found), _of_shifted(found)
    if not found.damping:
        return [Part("H", own + shifted)]
    return [Part("H", own), Part(shifted_name(found), shifted)]


def shifted_name(found: Condition) -> str:
    """ "H", or "H + 0.1 I" with damping."""
    return f"H + {found.damping:g} I" if found.damping else "H"


def stability_rows(found: Stability | None) -> list[Row]:
    """The largest stable step, where there is one; with a learning rate, the edge and λ_max relative to it as well."""
    if found is None:
        return []
    if found.optimizer is not None:
        return _optimizer_rows(found, found.optimizer)
    top, beta = ("(2 + 2β)", f", β = {found.momentum:g}") if found.momentum else ("2", "")
    rows = []
    if found.largest_step is not None:
        chance = percent(found.lambda_max.confidence)
        rows.append(_named("step", down(found.largest_step), "", f"learning rate: {top}/λ_max{beta} ({chance})"))
    if found.edge is not None and (ratio := found.ratio) is not None:
        rows.append(_named("edge", rounded(found.edge, 6), "", f"{top}/lr at lr = {found.lr:g}{beta}"))
        rows.append(_named("edge_ratio", between(ratio), "", _verdict(found)))
    return rows


def _optimizer_rows(found: Stability, by: Preconditioned) -> list[Row]:
    """The same for the optimizer of a preconditioned matrix."""
    rows = []
    if found.largest_step is not None:
        rows.append(
            _named("step", down(found.largest_step), "", f"learning rate ({percent(found.lambda_max.confidence)})")
        )
    if found.edge is not None and (ratio := found.ratio) is not None:
        rows.append(_named("edge", rounded(found.edge, 6), "", edge_note(by)))
        rows.append(_named("edge_ratio", between(ratio), "", _verdict(found)))
    return rows


def stepper(spectrum: Spectrum) -> str:
    """Whose stability the rows are about: "gradient descent", "AdamW"."""
    by = spectrum.preconditioned
    return "gradient descent" if by is None else by.optimizer or "optimizer"


def edge_note(by: Preconditioned) -> str:
    """ "AdamW at step 1,200: 38 / lr at lr = 0.001"."""
    at = "" if by.step is None else f" at step {by.step:,}"
    if by.lr is None or by.threshold is None:
        return f"{by.optimizer or 'optimizer'}{at}"
    return f"{by.optimizer or 'optimizer'}{at}: {rounded(by.threshold * by.lr, 3)} / lr at lr = {by.lr:g}"


def extreme_rows(found: Condition) -> list[Row]:
    """Extreme eigenvalues and norm of H: for the page; on the terminal they stand in the table above."""
    return [
        _named("largest", between(found.largest)),
        _named("smallest", between(found.smallest)),
        _named("norm", between(found.norm), "", "‖H‖₂"),
    ]


def condition_notes(found: Condition) -> list[str]:
    """What the errors mean, and why a quantity is not there: one sentence for those that share a reason."""
    notes = [f"errors and ranges hold with {percent(found.confidence)} probability each, or for certain where noted"]
    if found.zero_rows:
        rest = f"rank and counts of signs are of the other {found.parameters - found.zero_rows:,}"
        if not found.damping:
            rest = f"{rest}, as are condition number and smallest |λ|"
        notes.append(f"{found.zero_rows:,} of the {found.parameters:,} rows of H are exactly zero; {rest}")
    missing: dict[str, list[str]] = {}
    for name, reason in found.reasons.items():
        if name != "kappa":  # its lower bound is there
            missing.setdefault(reason, []).append(QUANTITY_NAMES.get(name, name.replace("_", " ")))
    return notes + [f"not available: {', '.join(names)} ({reason})" for reason, names in missing.items()]


def _verdict(found: Stability) -> str:
    if found.stable is None:
        return "not known: the range contains 1"
    return "stable: below 1" if found.stable else "not stable: above 1"


def _of_h(found: Condition) -> list[Row]:
    return [
        _named("negative", *_negative(found)),
        _named("negative_mass", *_mass(found.negative_mass)),
        *_estimated("stable_rank", found.stable_rank, "‖H‖_F² / ‖H‖₂²"),
        *_estimated("participation_ratio", found.participation_ratio, "(tr H)² / ‖H‖_F²"),
        _named(
            "rank", count_range(found.rank, found.rank_at_least or 0, found.parameters), "",
            f"|λ| > {found.rank_threshold:.2g}, of {found.parameters:,}",
        ),
        *_estimated("bulk_mean", found.bulk_mean, f"the {found.bulk_count:,} eigenvalues not listed"),
        *_estimated("bulk_spread", found.bulk_spread, _flatness(found)),
    ]  # fmt: skip


def _of_shifted(found: Condition) -> list[Row]:
    eigenvalue, largest = ("λ + δ", "(λ_max + δ)") if found.damping else ("λ", "λ_max")
    name = shifted_name(found)
    smallest = f"smallest |{eigenvalue}|"
    rows = [
        _named("kappa", between(found.kappa), "", _definite(found)),
        Row(smallest, *_nearest(found), "nearest_zero"),
    ]
    if found.refined is not None:
        for value, error in zip(found.refined.values, found.refined.error, strict=True):
            note = "" if found.refined.converged else "not converged"
            shown = _shown(float(value) + found.damping, float(error))
            rows.append(Row(f"{eigenvalue} nearest to 0", *shown, note, "refined"))
    dimension = found.effective_dimension if found.damping else None
    rows += _estimated("effective_dimension", dimension, "Σ λ/(λ + δ)")
    rows += _estimated("log_determinant", found.log_determinant, f"of {name}")
    if found.step is not None:
        rows.append(_named("step", down(found.step.lower), "", f"learning rate: 2/{largest}"))
    iterations = f"iterations, to {found.accuracy:g} of the error"
    if found.gradient_descent is not None:
        rows.append(_named("gradient_descent", _iterations(found.gradient_descent), "", iterations))
    if found.conjugate_gradients is not None:
        rows.append(
            _named("conjugate_gradients", f"≤ {_count(found.conjugate_gradients.value)}", "", iterations)
        )  # fmt: skip
    rows.append(_named("digits_lost", _digits_lost(found), "", f"of {found.digits:.1f}"))
    rule = f"~ {found.finite_difference.value:.1g}"
    rows.append(_named("finite_difference", rule, "", f"error / {smallest}, roughly"))
    return rows


def _named(quantity: str, value: str, error: str = "", note: str = "") -> Row:
    return Row(QUANTITY_NAMES[quantity], value, error, note, quantity)


def _estimated(quantity: str, estimate: Estimate | None, note: str = "") -> list[Row]:
    return [] if estimate is None else [_named(quantity, *_shown(estimate.value, estimate.error), note)]


def _negative(found: Condition) -> tuple[str, str, str]:
    least = found.negative_at_least
    value = count_range(found.negative, least, found.parameters)
    known = [f"{percent(found.confidence)} range"] if "…" in value else []
    known += [f"certainly {least:,} or more"] if least else []
    return value, "", "; ".join(known)


def _shown(value: float, error: float) -> tuple[str, str]:
    if value and abs(value) < error < math.inf:
        return rounded(value, 2), rounded(error, 2)
    return with_error(value, error)


def _definite(found: Condition) -> str:
    bounded, name = f"upper end at {percent(found.confidence)}", shifted_name(found)
    return {
        "positive": f"positive definite; {bounded}",
        "negative": f"negative definite; {bounded}",
        "semidefinite": "certain; may be singular",
        "indefinite": f"certain; {name} is indefinite",
        "unknown": "certain; may be indefinite",
    }[found.definite]


def _flatness(found: Condition) -> str:
    if found.flatness is None:
        return ""
    lower, upper = (rounded(100 * end, 2) for end in found.flatness.interval)
    return f"{lower} % of ‖H‖₂" if lower == upper else f"{lower} … {upper} % of ‖H‖₂"


def _mass(mass: Estimate) -> tuple[str, str]:
    """A sum of magnitudes is not negative, so no range is shown to reach below zero."""
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
    """A solve loses no more digits than there are."""
    low, high = (min(end, found.digits) for end in (found.digits_lost.lower, found.digits_lost.upper))
    if math.isinf(found.digits_lost.upper):
        return f"≥ {low:.1f}"
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} … {high:.1f}"


def _iterations(bracket: Bracket) -> str:
    low, high = _count(bracket.lower), _count(bracket.upper)
    return f"≥ {low}" if math.isinf(bracket.upper) else low if low == high else f"{low} … {high}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 1e7 else f"{value:.3g}"
