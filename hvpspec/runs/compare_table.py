"""Comparisons of runs as tables and notes for the terminal."""

from __future__ import annotations

import math

from hvpspec.report.explanations import explanation_lines
from hvpspec.report.numbers import rounded, with_error
from hvpspec.report.table import Table
from hvpspec.results.runs.comparison import Comparison, Difference
from hvpspec.wording import percent, shortened

_MAX_LABEL_WIDTH = 15  # columns, of a run's label
_MIN_NAME_WIDTH = 24  # columns; a quantity's name is shortened down to this before columns are left out


def comparison_tables(comparison: Comparison, width: int | None = None) -> list[Table]:
    """A table for each run but the first, compared with the first. A star marks what is significant.

    Where there is no room for all columns within `width`, those of the values of the two runs are left out.
    """
    tables = []
    for run in comparison.runs[1:]:
        rows = [row for row in comparison.differences if row.run == run.label]
        labels = [shortened(label, _MAX_LABEL_WIDTH) for label in (comparison.runs[0].label, run.label)]
        table = Table(("figure", *labels, "difference", "± error", ""), gap=2)
        for row in rows:
            table.add(row.quantity, *_values(row), *_difference(row), _star(row))
        if width is not None:
            longest = max((len(row.quantity) for row in rows), default=0)
            if table.width() - max(longest - _MIN_NAME_WIDTH, 0) > width:
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
    chance = percent(comparison.confidence)
    each = f"{100 * (1 - (1 - comparison.confidence) / many):.4g} %"
    combined = (
        "the runs used the same random vectors (same seed), so their errors are added"
        if comparison.shared
        else "intervals are combined in quadrature, bounds (eigenvalues, brackets, counts) are added"
    )
    return [
        f"* significant: {count} of {many} differences, at {chance} for all {many} together (each interval is widened "
        f"to {each} for that: Bonferroni)",
        f"± error: of the difference, at {chance}; {combined}",
    ]


def comparison_explanations(comparison: Comparison) -> list[str]:
    """What each quantity that is compared means, a line each."""
    return explanation_lines(row.first.about for row in comparison.differences)


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
