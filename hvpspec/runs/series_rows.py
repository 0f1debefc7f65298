"""A tracked series as rows, as CSV and JSON, and as a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from hvpspec.results.estimate import finite
from hvpspec.results.tracked import Tracked

SCHEMA = "hvpspec/track/1"
COLUMNS = (
    "checkpoint", "step", "loss", "lambda_max", "lambda_max_error", "lambda_max_upper", "lambda_min",
    "lambda_min_error", "lambda_min_lower", "trace", "trace_error", "frobenius_norm", "frobenius_norm_error", "edge",
    "lambda_max_over_edge", "overlap", "hvps", "eigenvalue_hvps", "cold_hvps", "hvps_saved",
    "hvps_saved_estimate", "converged", "seconds", "sha256",
)  # fmt: skip


def row(
    found: Tracked,
    *,
    checkpoint: str,
    step: int | None,
    loss: float,
    lr: float | None,
    sha256: str,
    first: int | None = None,
) -> dict[str, Any]:
    """One checkpoint's figures.

    lambda_max: the largest Ritz value, which λ_max is not below but for `lambda_max_error`; with the confidence asked
    for it is not above `lambda_max_upper`. lambda_min and its columns likewise. edge: 2 / lr; lambda_max_over_edge:
    λ_max · lr / 2. overlap: as measured, of the vectors found, which are accurate to the eigenpairs' tolerance.
    eigenvalue_hvps: those of `hvps` that the eigenvalues took. cold_hvps: measured from a random start; hvps_saved: how
    many fewer these were (below 0: more). hvps_saved_estimate: how many fewer the eigenvalues took than `first`, which
    is what they took at the first checkpoint, from a random start; None there. converged: whether every figure is
    within its tolerance; where not, the errors of λ_max and λ_min are those of their brackets.
    """
    pairs = found.spectrum.eigenpairs
    assert pairs is not None
    values = pairs.values.tolist()
    top = max(range(len(values)), key=values.__getitem__)
    largest, smallest = pairs.largest, pairs.smallest
    value, error = values[top], float(pairs.error[top])
    # The k largest in magnitude may all be negative; and those of a spent budget may not be the extreme ones.
    if largest is not None and (largest.lower > value or not pairs.converged):
        value = max(value, largest.lower)
        error = max(error, largest.upper - value)
    bottom = min(range(len(values)), key=values.__getitem__)
    low, low_error = values[bottom], float(pairs.error[bottom])
    if smallest is not None and (smallest.upper < low or not pairs.converged):
        low = min(low, smallest.upper)
        low_error = max(low_error, low - smallest.lower)
    figures = {
        "checkpoint": checkpoint,
        "step": step,
        "loss": loss,
        "lambda_max": value,
        "lambda_max_error": error,
        "lambda_max_upper": None if largest is None else largest.upper,
        "lambda_min": low,
        "lambda_min_error": low_error,
        "lambda_min_lower": None if smallest is None else smallest.lower,
        **edge(value, lr),
        "overlap": found.overlap,
        "hvps": found.spectrum.hvps,
        "converged": found.spectrum.converged,
        "cold_hvps": found.cold_hvps,
        "hvps_saved": None if found.cold_hvps is None else found.cold_hvps - found.spectrum.hvps,
        "eigenvalue_hvps": found.eigenvalue_hvps,
        "hvps_saved_estimate": None if first is None else first - found.eigenvalue_hvps,
        "seconds": found.spectrum.seconds,
        "sha256": sha256,
    }
    for name in ("trace", "frobenius_norm"):
        estimate = getattr(found.spectrum, name)
        figures[name] = None if estimate is None else estimate.value
        figures[f"{name}_error"] = None if estimate is None else estimate.error
    return {name: finite(value) if isinstance(value := figures[name], float) else value for name in COLUMNS}


def edge(lambda_max: float | None, lr: float | None) -> dict[str, float | None]:
    """The two columns that the learning rate makes."""
    if lr is None:
        return {"edge": None, "lambda_max_over_edge": None}
    return {"edge": 2 / lr, "lambda_max_over_edge": None if lambda_max is None else lambda_max * lr / 2}


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """One line a checkpoint; an empty cell is a figure that was not asked for, or is not known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
