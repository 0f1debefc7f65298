"""λ_max of the matrices of single batches as rows and notes."""

from __future__ import annotations

import numpy as np

from hvpspec.report.numbers import rounded, with_error
from hvpspec.report.table import Row
from hvpspec.results.estimate import Estimate
from hvpspec.results.parts import Batches, End
from hvpspec.wording import counted, percent

END_NAMES: dict[End, str] = {"largest": "λ_max", "smallest": "λ_min"}


def batch_rows(found: Batches) -> list[Row]:
    """The whole matrix, and how the batches are distributed, for each end that is known."""
    return [row for end in found.ends for row in _rows_of(found, end)]


def _rows_of(found: Batches, end: End) -> list[Row]:
    name, values, estimates = END_NAMES[end], found.values(end), found.estimates(end)
    numbers = [batch.number for batch in found.batches if getattr(batch, end) is not None]
    whole: Estimate | None = None if found.whole is None else getattr(found.whole, end)
    rows = [] if whole is None else [(f"{name} of all data", *with_error(whole.value, whole.error), "")]
    spread = f"standard deviation {rounded(found.deviation(end), 2)}"
    rows.append((f"{name} of a batch: mean", rounded(found.mean(end), 4), "", spread))
    for which, place in (("smallest", int(values.argmin())), ("largest", int(values.argmax()))):
        one = estimates[place]
        rows.append((f"  {which}", *with_error(one.value, one.error), f"batch {numbers[place]:,}"))
    rows.insert(-1, ("  median", rounded(float(np.median(values)), 4), "", ""))
    return [Row(*cells, quantity="per_batch") for cells in rows]


def batch_notes(found: Batches) -> list[str]:
    """What the rows are of, what they cost, and what was not reached."""
    known = len(found.batches)
    if not known:
        return ["λ of the batches: none is known yet"]
    if found.of == 1:
        return ["The data are one batch, whose matrix is the whole one."]
    each = rounded(found.hvps / known, 2)
    notes = [
        f"{_which(found)}, each with its own matrix: {counted(found.hvps, 'product')} with one batch each ({each} a "
        "batch)"
    ]
    estimates = [estimate for end in found.ends for estimate in found.estimates(end)]
    loose = [estimate for estimate in estimates if not estimate.converged]
    if loose:
        said = f"{len(loose)} of {counted(len(estimates), 'value')} of batches not known to the tolerance"
        notes.append(f"{said}: they are marked in spectrum.json; more products (--batch-hvps) would narrow them")
    if "largest" in found.ends:
        notes.append("the mean over all batches is never less than λ_max of all data: smaller batches are sharper")
    confidence = min(estimate.confidence for estimate in estimates)
    return [*notes, f"each error holds with {percent(confidence)} probability"]


def _which(found: Batches) -> str:
    """ "64 batches", "1,000 of 10,000 batches, drawn at random", and those that are missing."""
    known, drawn = len(found.batches), found.asked < found.of
    of = counted(found.of, "batch", "batches")
    said = of if known == found.of else f"{known:,} of {of}"
    if drawn:
        said += f", of which {found.asked:,} were drawn at random" if known < found.asked else ", drawn at random"
    return said
