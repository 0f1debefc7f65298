"""The means of the diagonal as text, for terminal and page, and what is said of the diagonal as a whole."""

from __future__ import annotations

import math

from hvpspec.report.numbers import rounded, with_error
from hvpspec.report.table import Table
from hvpspec.results.diagonal import Diagonal
from hvpspec.wording import counted, percent

MOST_ROWS = 40  # of the table in the terminal

Cells = tuple[str, str, str, str]


def diagonal_cells(found: Diagonal) -> list[Cells]:
    """Name, size, mean and error of each parameter, or of each block."""
    cells = []
    for part in found.means:
        value, error = ("–", "") if math.isinf(part.mean.error) else with_error(part.mean.value, part.mean.error)
        cells.append((part.name, f"{part.parameters:,}", value, error))
    return cells


def diagonal_table(found: Diagonal) -> Table | None:
    """A row for each of the first parameters; None where there are no names."""
    if not found.means:
        return None
    table = Table(("diagonal", "size", "mean", "± error"), gap=2)
    for cells in diagonal_cells(found)[:MOST_ROWS]:
        table.add(*cells)
    return table


def diagonal_notes(found: Diagonal) -> list[str]:
    """How well the whole diagonal is known, what it has cost, and what would narrow it."""
    if math.isinf(found.error):
        notes = ["The diagonal has no error yet: that takes a few more products (--diagonal-hvps)."]
    else:
        said = f"{rounded(100 * found.error, 2)} %" if found.error >= 1e-4 else "less than 0.01 %"
        notes = [f"the diagonal as a vector is off by {said} of its length at most ({percent(found.confidence)})"]
        if not found.converged:
            notes.append("That is more than asked for; more products (--diagonal-hvps) would narrow it.")
    if found.own_hvps:
        notes.append(f"{found.own_hvps:,} of the HVPs were spent on the diagonal alone")
    return notes


def rows_left_out(found: Diagonal) -> list[str]:
    """Says that the table in the terminal has not all rows."""
    left_out = len(found.means) - MOST_ROWS
    return [f"{counted(left_out, 'more row')} in spectrum.json and report.html"] if left_out > 0 else []
