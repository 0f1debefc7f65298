"""The gradient in the spectrum, and the optimizer's next update, as rows and notes, for terminal and page."""

from __future__ import annotations

import math
from collections.abc import Callable

from hvpspec.report.numbers import QUANTITY_NAMES, rounded, with_error
from hvpspec.report.table import Row
from hvpspec.results.estimate import Estimate
from hvpspec.results.gradient import Gradient, Update
from hvpspec.wording import counted, percent

_MOST_PARTS = 3  # of the share, that are named
_LEAST_PART = 0.01  # that is
_WIDE = 4.0  # the upper end of a range over the lower one
_FEW_SAMPLES = 0.5  # a noise scale of this many of the data's samples, or more


def gradient_rows(found: Gradient) -> list[Row]:
    """What is known of the gradient, then of the update."""
    rows = [_estimated("gradient_norm", found.norm)]
    if found.curvature is not None:
        rows.append(_estimated("gradient_curvature", found.curvature, "gᵀHg / ‖g‖²"))
        rows.append(_step(found))
    if found.share is not None:
        rows.append(_share(found, found.share))
    if found.noise_scale is not None:
        rows.append(_noise_scale(found, found.noise_scale))
    return rows if found.update is None else rows + _update_rows(found.update)


def gradient_notes(found: Gradient, *, preconditioned: bool) -> list[str]:
    """What g is, why something is missing, and what the noise means where it is large."""
    names = {"share": "gradient_share", "noise_scale": "noise_scale", "curvature": "gradient_curvature"}
    notes = []
    if preconditioned:
        notes.append(
            "g is the gradient in the coordinates of this matrix, D^(-1/2) times that of the loss"
            + ("; u is the step of the parameters, and its curvature that of the loss" if found.update else "")
        )
    for name, reason in found.reasons.items():
        known = name == "share" and found.share is not None
        what = "next update" if name == "update" else QUANTITY_NAMES[names[name]]
        notes.append(f"{what}: {'a wide range, as ' if known else 'not known: '}{reason}")
    noise = found.noise_scale
    if noise is not None and noise.interval[1] > _WIDE * noise.interval[0]:
        notes.append(
            f"noise scale: {counted(found.batches, 'batch', 'batches')} tell little of it; smaller ones narrow the "
            "range, and so does the trace of the empirical Fisher matrix (hvpspec.gradient)"
        )
    if noise is not None and noise.value >= _FEW_SAMPLES * found.samples > 0:
        notes.append(
            "noise scale: as many samples as there are data, or nearly: this gradient is mostly noise of their choice"
        )
    return notes


def _update_rows(found: Update) -> list[Row]:
    at = "" if found.step is None else f", step {found.step + 1:,}"
    return [
        Row(
            QUANTITY_NAMES["update_length"], rounded(found.length, 6), "", f"u: {found.optimizer}{at}", "update_length"
        ),
        Row(QUANTITY_NAMES["update_slope"], rounded(found.slope, 6), "", "", "update_slope"),
        _estimated("update_curvature", found.curvature, "uᵀHu / ‖u‖²"),
        _estimated("update_change", found.change, "gᵀu + ½ uᵀHu"),
    ]


def _estimated(quantity: str, found: Estimate, note: str = "") -> Row:
    return Row(QUANTITY_NAMES[quantity], *with_error(found.value, found.error), note, quantity)


def _step(found: Gradient) -> Row:
    name = QUANTITY_NAMES["gradient_step"]
    if found.step is None or found.decrease is None:
        return Row(name, "unbounded", "", "curvature not positive", "gradient_step")
    return Row(name, rounded(found.step, 6), "", f"lowers the loss by {rounded(found.decrease, 3)}", "gradient_step")


def _share(found: Gradient, share: Estimate) -> Row:
    parts = sorted(((part, number) for number, part in enumerate(found.parts.tolist(), start=1)), reverse=True)
    named = [f"{100 * part:.0f} % λ{number}" for part, number in parts[:_MOST_PARTS] if part >= _LEAST_PART]
    return Row(QUANTITY_NAMES["gradient_share"], _range(share, _percent), "", ", ".join(named), "gradient_share")


def _noise_scale(found: Gradient, noise: Estimate) -> Row:
    unit = f"samples, of {found.samples:,.6g} ({percent(noise.confidence)})"
    return Row(QUANTITY_NAMES["noise_scale"], _range(noise, _whole), "", unit, "noise_scale")


def _range(found: Estimate, shown: Callable[[float], str]) -> str:
    """The ends of the interval; one number where they look alike."""
    low, high = (shown(end) for end in found.interval)
    if math.isinf(found.interval[1]):
        return f"≥ {low}"
    return low if low == high else f"{low} … {high}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _whole(number: float) -> str:
    return rounded(number, 3)
