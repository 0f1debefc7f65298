"""A spectrum as a pandas DataFrame. See `Spectrum.to_frame` for its columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hvpspec.results.condition import Condition
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

    columns = ["quantity", "value", "error", "confidence", "data_standard_error", "lower", "upper", "converged"]
    if spectrum.eigenpairs is not None:
        columns.append("all_copies")
    if spectrum.blocks is not None or (spectrum.diagonal is not None and spectrum.diagonal.means):
        columns.insert(1, "block")
    if spectrum.per_batch is not None:
        columns.insert(1, "batch")
    frame = pandas.DataFrame(list(_rows(spectrum)), columns=columns)
    kinds = {"converged": "boolean", "all_copies": "boolean", "batch": "Int64"}
    return frame.astype({name: kind for name, kind in kinds.items() if name in columns})


def _rows(spectrum: Spectrum) -> Iterator[Row]:
    pairs, known = spectrum.eigenpairs, spectrum.condition
    if pairs is not None:
        yield from _eigenvalues(pairs)
    ends = known or pairs
    for name in ("lambda_max", "lambda_min"):
        yield from _row(name, None if ends is None else getattr(ends, name))
    if pairs is not None:
        yield from _row("population_lambda_max", pairs.population)
    for name in ("trace", "frobenius_norm"):
        yield from _row(name, getattr(spectrum, name))
    if (along := spectrum.gradient) is not None:
        yield from _row("gradient_norm", along.norm)
        yield from _row("gradient_curvature", along.curvature)
        yield from _row("gradient_share", along.share)
        yield from _row("noise_scale", along.noise_scale)
    if known is not None:
        yield from _conditioning(known)
    for block in spectrum.blocks.values() if spectrum.blocks is not None else ():
        yield from _of_block(block)
    for batch in spectrum.per_batch.batches if spectrum.per_batch is not None else ():
        yield from ({**row, "batch": batch.number} for row in _row("lambda_max", batch.largest))
        yield from ({**row, "batch": batch.number} for row in _row("lambda_min", batch.smallest))
    for part in spectrum.diagonal.means if spectrum.diagonal is not None else ():
        yield from ({**row, "block": part.name} for row in _row("diagonal_mean", part.mean))


def _eigenvalues(pairs: Eigenpairs) -> Iterator[Row]:
    spread = [math.nan] * len(pairs.values) if pairs.data_error is None else pairs.data_error.tolist()
    columns = zip(pairs.values.tolist(), pairs.error.tolist(), spread, strict=True)
    for number, (value, error, data) in enumerate(columns, start=1):
        yield {
            "quantity": f"lambda_{number}", "value": value, "error": error, "confidence": 1.0,
            "data_standard_error": data, "lower": value - error, "upper": value + error, "converged": pairs.converged,
            "all_copies": pairs.all_copies,
        }  # fmt: skip


def _conditioning(known: Condition) -> Iterator[Row]:
    for name in _OF_CONDITION:
        yield from _row(name, getattr(known, name))


def _of_block(block: Block) -> Iterator[Row]:
    for name in ("trace", "frobenius_norm", "lambda_max", "lambda_min"):
        yield from ({**row, "block": block.name} for row in _row(name, getattr(block, name)))


def _row(name: str, found: Estimate | Bracket | Bound | None) -> Iterator[Row]:
    """One row; none for a quantity that is not there."""
    if found is None:
        return
    row: Row = {"quantity": name, "value": found.value, "confidence": found.confidence}
    if isinstance(found, Estimate):
        lower, upper = found.interval
        row |= {"error": found.error, "data_standard_error": found.data_error, "converged": found.converged}
    elif isinstance(found, Bracket):
        lower, upper = found.lower, found.upper
        row |= {"error": found.error}
    else:
        lower, upper = (-math.inf, found.value) if found.kind == "upper" else (found.value, math.inf)
        row |= {"error": math.inf}
    yield row | {"lower": lower, "upper": upper}
