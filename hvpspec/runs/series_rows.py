"""A series of checkpoints as rows of a table, and the table as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvpspec.bounds.stability import edge_of_stability
from hvpspec.entries import Count, Sha256, Size
from hvpspec.errors import InputError
from hvpspec.escaping import in_csv
from hvpspec.report.documents import read_json
from hvpspec.results.codec import read_entry
from hvpspec.results.estimate import finite
from hvpspec.results.runs.tracked import Tracked
from hvpspec.results.spectrum import Preconditioned, Spectrum

SCHEMA = "hvpspec/track/1"
_REQUIRED: dict[str, Any] = {
    "checkpoint": str, "loss": float, "lambda_max": float, "lambda_max_error": Size | None, "trace": float | None,
    "trace_error": Size | None, "hvps": Count, "seconds": Size, "sha256": Sha256,
}  # fmt: skip
_HINTS: dict[str, Any] = {
    "step": int | None, "lambda_min_error": Size | None, "frobenius_norm_error": Size | None, "edge": Size | None,
    "overlap": Size | None, "eigenvalue_hvps": Count | None, "cold_hvps": Count | None, "hvps_saved": int | None,
    "hvps_saved_estimate": int | None, "converged": bool | None, "eigenvalues_converged": bool | None,
    "trace_converged": bool | None, "frobenius_norm_converged": bool | None, "eigenvalues_all_copies": bool | None,
    "density_converged": bool | None, "refined_converged": bool | None,
}  # fmt: skip
_NUMBER = float | None  # of every other column
COLUMNS = (
    "checkpoint", "step", "loss", "lambda_max", "lambda_max_error", "lambda_max_upper", "lambda_min",
    "lambda_min_error", "lambda_min_lower", "trace", "trace_error", "frobenius_norm", "frobenius_norm_error", "edge",
    "lambda_max_over_edge", "overlap", "hvps", "eigenvalue_hvps", "cold_hvps", "hvps_saved",
    "hvps_saved_estimate", "converged", "seconds", "sha256", "eigenvalues_converged", "trace_converged",
    "frobenius_norm_converged", "gradient_norm", "gradient_curvature", "gradient_share", "noise_scale",
    "eigenvalues_all_copies", "density_converged", "refined_converged",
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A track.json, as it was read: its rows, the settings they were made with, and what made them."""

    rows: list[dict[str, Any]]
    settings: dict[str, Any]
    runs: list[dict[str, Any]]
    vectors_sha256: str | None


def read_series(path: Path) -> Stored:
    """A track.json. Raises InputError where it is none, or is damaged: with the path of the entry."""
    document = read_json(path, SCHEMA)
    try:
        for name in ("checkpoints", "settings"):
            if name not in document:
                raise InputError(f"{name}: missing")
        rows = read_entry(tuple[dict[str, Any], ...], document["checkpoints"], "checkpoints")
        return Stored(
            [_read_row(entry, f"checkpoints[{number}]") for number, entry in enumerate(rows)],
            read_entry(dict[str, Any], document["settings"], "settings"),
            list(read_entry(tuple[dict[str, Any], ...], document.get("runs") or [], "runs")),
            read_entry(Sha256 | None, document.get("vectors_sha256"), "vectors_sha256"),
        )
    except InputError as error:
        raise InputError(f"{path}: damaged: {error}; choose another --out.") from error


def _read_row(entry: dict[str, Any], path: str) -> dict[str, Any]:
    """The columns of this version; those that an older one did not have are None."""
    for name in _REQUIRED:
        if name not in entry:
            raise InputError(f"{path}.{name}: missing")
    hints = dict.fromkeys(COLUMNS, _NUMBER) | _HINTS | _REQUIRED
    return {name: read_entry(hints[name], entry.get(name), f"{path}.{name}") for name in COLUMNS}


def row(
    found: Tracked,
    *,
    checkpoint: str,
    step: int | None,
    loss: float,
    lr: float | None,
    sha256: str,
    first: int | None = None,
    momentum: float | None = None,
) -> dict[str, Any]:
    """The columns of one checkpoint.

    lambda_max: the largest Ritz value; λ_max is not below it by more than `lambda_max_error` and, with the confidence
    asked for, not above `lambda_max_upper`. lambda_min and its columns likewise. edge: the edge of stability;
    lambda_max_over_edge: λ_max relative to it. overlap: of the vectors found, which are as accurate as the tolerance of
    the eigenpairs. eigenvalue_hvps: those of `hvps` that the eigenvalues took. cold_hvps: measured from a random start;
    hvps_saved: how many fewer were needed here (below 0: more). hvps_saved_estimate: how many fewer the eigenvalues
    took than `first`, which is what they took at the first checkpoint, from a random start; None there. converged:
    whether every quantity is within its tolerance; otherwise the errors of λ_max and λ_min are those of the brackets;
    eigenvalues_converged and so on: whether this one is; eigenvalues_all_copies: see `Eigenpairs`. gradient_norm and so
    on: see `hvpspec.gradient`.
    """
    spectrum, cold, pairs = found.spectrum, found.cold_hvps, found.spectrum.eigenpairs
    refined = None if spectrum.condition is None else spectrum.condition.refined
    columns = {
        "checkpoint": checkpoint,
        "step": step,
        "loss": loss,
        **_extremes(spectrum),
        "overlap": found.overlap,
        "hvps": spectrum.hvps,
        "converged": spectrum.converged,
        "cold_hvps": cold,
        "hvps_saved": None if cold is None else cold - spectrum.hvps,
        "eigenvalue_hvps": found.eigenvalue_hvps,
        "hvps_saved_estimate": None if first is None else first - found.eigenvalue_hvps,
        "eigenvalues_converged": None if pairs is None else pairs.converged,
        "eigenvalues_all_copies": None if pairs is None else pairs.all_copies,
        "density_converged": None if spectrum.density is None else spectrum.density.converged,
        "refined_converged": None if refined is None else refined.converged,
        "seconds": spectrum.seconds,
        "sha256": sha256,
    }
    columns |= _along_gradient(spectrum)
    columns |= edge(columns["lambda_max"], lr, momentum, spectrum.preconditioned)
    for name in ("trace", "frobenius_norm"):
        estimate = getattr(spectrum, name)
        columns[name] = None if estimate is None else estimate.value
        columns[f"{name}_error"] = None if estimate is None else estimate.error
        columns[f"{name}_converged"] = None if estimate is None else estimate.converged
    return {name: finite(value) if isinstance(value := columns[name], float) else value for name in COLUMNS}


def _extremes(spectrum: Spectrum) -> dict[str, Any]:
    """λ_max and λ_min: the extreme Ritz values, or the ends of the brackets where those lie further out.

    The k eigenvalues of largest magnitude may all be negative, and those of a spent budget may not be the extreme ones.
    """
    pairs = spectrum.eigenpairs
    assert pairs is not None
    largest, smallest = pairs.largest, pairs.smallest
    top, bottom = int(pairs.values.argmax()), int(pairs.values.argmin())
    high, high_error = float(pairs.values[top]), float(pairs.error[top])
    if largest is not None and (largest.lower > high or not pairs.converged):
        high = max(high, largest.lower)
        high_error = max(high_error, largest.upper - high)
    low, low_error = float(pairs.values[bottom]), float(pairs.error[bottom])
    if smallest is not None and (smallest.upper < low or not pairs.converged):
        low = min(low, smallest.upper)
        low_error = max(low_error, low - smallest.lower)
    return {
        "lambda_max": high,
        "lambda_max_error": high_error,
        "lambda_max_upper": None if largest is None else largest.upper,
        "lambda_min": low,
        "lambda_min_error": low_error,
        "lambda_min_lower": None if smallest is None else smallest.lower,
    }


def _along_gradient(spectrum: Spectrum) -> dict[str, float | None]:
    """The columns of the gradient, without their errors."""
    along = spectrum.gradient
    if along is None:
        return dict.fromkeys(("gradient_norm", "gradient_curvature", "gradient_share", "noise_scale"))
    found = {
        "gradient_norm": along.norm, "gradient_curvature": along.curvature, "gradient_share": along.share,
        "noise_scale": along.noise_scale,
    }  # fmt: skip
    return {name: None if estimate is None else estimate.value for name, estimate in found.items()}


def edge(
    lambda_max: float | None, lr: float | None, momentum: float | None = None, by: Preconditioned | None = None
) -> dict[str, float | None]:
    """The two columns that learning rate and momentum give: the edge of stability, and λ_max relative to it.

    by: what preconditions the matrix, whose own edge it is then.
    """
    bound = None if by is None else by.threshold
    if by is None and lr is not None:
        bound = edge_of_stability(lr, momentum or 0.0)
    if not bound:
        return {"edge": None, "lambda_max_over_edge": None}
    return {"edge": bound, "lambda_max_over_edge": None if lambda_max is None else lambda_max / bound}


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each checkpoint; an empty cell is a quantity that was not asked for, or is not known.

    A name that a spreadsheet would take for a formula begins with an apostrophe; track.json has it as it is.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: in_csv(cell) if isinstance(cell, str) else cell for name, cell in row.items()})
    return text.getvalue()
