"""A spectrum as a pandas DataFrame. See `Spectrum.to_frame` for its columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hvpspec.report.numbers import NOT_REACHED, OTHERS_MISSING, pair_notes
from hvpspec.results.condition import Condition
from hvpspec.results.density import Density
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bound, Bracket, Estimate
from hvpspec.results.parts import Block
from hvpspec.results.spectrum import Spectrum

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]

_OF_CONDITION = (
    "negative", "negative_mass", "rank", "stable_rank", "participation_ratio", "bulk_mean", "bulk_spread", "flatness",
    "nearest_zero", "nearest_range", "kappa", "digits_lost", "effective_dimension", "log_determinant", "step",
    "gradient_descent", "conjugate_gradients",
)  # fmt: skip


def to_frame(spectrum: Spectrum) -> pandas.DataFrame:
    """A row for each quantity."""
    import pandas

    columns = ["quantity", "value", "error", "confidence", "data_standard_error", "lower", "upper", "converged", "note"]
    if spectrum.blocks is not None or (spectrum.diagonal is not None and spectrum.diagonal.means):
        columns.insert(1, "block")
    if spectrum.per_batch is not None:
        columns.insert(1, "batch")
    rows = [{"note": "", **row} for row in _rows(spectrum)]
    frame = pandas.DataFrame(rows, columns=columns)
    return frame.astype({"converged": "boolean", **({"batch": "Int64"} if "batch" in columns else {})})


def _rows(spectrum: Spectrum) -> Iterator[Row]:
    pairs, known = spectrum.eigenpairs, spectrum.condition
    if pairs is not None:
        yield from _eigenvalues(pairs)
        yield _all_found(pairs)
    ends = known or pairs
    for name in ("lambda_max", "lambda_min"):
        yield from _row(name, None if ends is None else getattr(ends, name))
    if pairs is not None:
        yield from _row("population_lambda_max", pairs.population)
    for name in ("trace", "frobenius_norm"):
        yield from _row(name, getattr(spectrum, name))
    if spectrum.density is not None:
        yield _of_density(spectrum.density)
    if (along := spectrum.gradient) is not None:
        for name, found in (
            ("gradient_norm", along.norm), ("gradient_curvature", along.curvature), ("gradient_share", along.share),
            ("noise_scale", along.noise_scale),
        ):  # fmt: skip
            yield from _row(name, found, tolerance=False)
    if known is not None:
        yield from _conditioning(known)
    for block in spectrum.blocks.values() if spectrum.blocks is not None else ():
        yield from _of_block(block)
    for batch in spectrum.per_batch.batches if spectrum.per_batch is not None else ():
        yield from ({**row, "batch": batch.number} for row in _row("lambda_max", batch.largest))
        yield from ({**row, "batch": batch.number} for row in _row("lambda_min", batch.smallest))
    for part in spectrum.diagonal.means if spectrum.diagonal is not None else ():
        yield from ({**row, "block": part.name} for row in _row("diagonal_mean", part.mean))


def _eigenvalues(pairs: Eigenpairs, prefix: str = "lambda") -> Iterator[Row]:
    many = len(pairs.values)
    spread = [math.nan] * many if pairs.data_error is None else pairs.data_error.tolist()
    reached = [pairs.converged] * many if pairs.reached is None else pairs.reached.tolist()
    columns = zip(pairs.values.tolist(), pairs.error.tolist(), spread, reached, pair_notes(pairs), strict=True)
    for number, (value, error, data, converged, note) in enumerate(columns, start=1):
        yield {
            "quantity": f"{prefix}_{number}", "value": value, "error": error, "confidence": 1.0,
            "data_standard_error": data, "lower": value - error, "upper": value + error, "converged": converged,
            "note": note,
        }  # fmt: skip


def _all_found(pairs: Eigenpairs) -> Row:
    """Of the eigenvalues together: whether all of them are known, and none is missing between them."""
    if pairs.converged:
        note = "" if pairs.all_copies else "further copies not excluded"
    else:
        note = OTHERS_MISSING if pairs.reached is not None and pairs.reached.all() else NOT_REACHED
    many = float(len(pairs.values))
    return {"quantity": "eigenvalues", "value": many, "converged": pairs.converged, "note": note}


def _of_density(found: Density) -> Row:
    """Of its Wasserstein distance from the true one."""
    return {
        "quantity": "density", "error": found.error, "confidence": found.confidence, "converged": found.converged,
        "note": "" if found.converged else NOT_REACHED,
    }  # fmt: skip


def _conditioning(known: Condition) -> Iterator[Row]:
    for name in _OF_CONDITION:
        yield from _row(name, getattr(known, name), tolerance=False)
    if known.refined is not None:
        yield from _eigenvalues(known.refined, "refined")


def _of_block(block: Block) -> Iterator[Row]:
    for name in ("trace", "frobenius_norm", "lambda_max", "lambda_min"):
        yield from ({**row, "block": block.name} for row in _row(name, getattr(block, name)))
    if block.density is not None:
        yield {**_of_density(block.density), "block": block.name}


def _row(name: str, found: Estimate | Bracket | Bound | None, *, tolerance: bool = True) -> Iterator[Row]:
    """One row; none for a quantity that is not there. tolerance: whether one was asked for."""
    if found is None:
        return
    row: Row = {"quantity": name, "value": found.value, "confidence": found.confidence}
    if isinstance(found, Estimate):
        lower, upper = found.interval
        row |= {"error": found.error, "data_standard_error": found.data_error}
        if tolerance:
            row |= {"converged": found.converged, "note": "" if found.converged else NOT_REACHED}
    elif isinstance(found, Bracket):
        lower, upper = found.lower, found.upper
        row |= {"error": found.error}
    else:
        lower, upper = (-math.inf, found.value) if found.kind == "upper" else (found.value, math.inf)
        row |= {"error": math.inf}
    yield row | {"lower": lower, "upper": upper}
