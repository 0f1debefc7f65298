"""Runs side by side, as tables for the terminal."""

from __future__ import annotations

import math

from hvpspec.report.numbers import rounded, with_error
from hvpspec.report.table import Table
from hvpspec.results.comparison import Comparison, Difference
from hvpspec.wording import shortened

_LABEL = 15
_NAME = 24  # letters that a figure's name may be shortened to before columns are dropped


def comparison_tables(comparison: Comparison, width: int | None = None) -> list[Table]:
    """One a run: its figures beside the first run's. A star marks what is significant. Where `width` has no room for
    all columns, those of the two runs are left out."""
    tables = []
    for run in comparison.runs[1:]:
        rows = [row for row in comparison.differences if row.run == run.label]
        labels = [shortened(label, _LABEL) for label in (comparison.runs[0].label, run.label)]
        table = Table(("figure", *labels, "difference", "± error", ""), gap=2)
        for row in rows:
            table.add(row.quantity, *_values(row), *_difference(row), _star(row))
        if width is not None:
            longest = max((len(row.quantity) for row in rows), default=0)
            if table.width() - max(longest - _NAME, 0) > width:
                table = Table(("figure", "difference", "± error", ""), gap=2)
                for row in rows:
                    table.add(row.quantity, *_difference(row), _star(row))
        tables.append(table)
    return tables


def comparison_notes(comparison: Comparison) -> list[str]:
    """What the star and the errors mean."""
    if not comparison.differences:
        return ["the runs have no figure in common"]
    count = sum(row.significant for row in comparison.differences)
    many = len(comparison.differences)
    chance = f"{100 * comparison.confidence:g} %"
    each = f"{100 * (1 - (1 - comparison.confidence) / many):.4g} %"
    notes = [
        f"* significant: {count} of {many}, together at {chance}; for that each interval is widened to {each} "
        "(Bonferroni)"
    ]
    if comparison.shared:
        notes.append("± error: the runs had one seed, and so the same random vectors: their errors are added")
    else:
        notes.append("± error: intervals in quadrature; bounds (eigenvalues, brackets, counts) add")
    return notes


def _values(row: Difference) -> list[str]:
    return [value.text or with_error(value.value, value.error)[0] for value in (row.first, row.other)]


def _difference(row: Difference) -> tuple[str, str]:
    if math.isinf(row.error) and row.first.ends is not None:
        return "–", ""  # bounds from one side
    if row.first.whole:
        error = f"{row.error:,.0f}" if math.isfinite(row.error) else "unknown"
        return f"{row.difference:,.0f}", error
    if abs(row.difference) < row.error:
        return rounded(row.difference, 2), with_error(row.difference, row.error)[1]
    return with_error(row.difference, row.error)


def _star(row: Difference) -> str:
    return "*" if row.significant else ""
