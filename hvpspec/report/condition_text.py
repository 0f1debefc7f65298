"""The conditioning for the terminal: a compact table for each matrix, each figure with its error or as a bound."""

from __future__ import annotations

from hvpspec.report.condition_rows import condition_parts
from hvpspec.report.table import Table
from hvpspec.results.condition import Condition


def condition_tables(found: Condition) -> list[Table]:
    """That of H, and with damping that of H + δI."""
    tables = []
    for part in condition_parts(found):
        title = f"conditioning of {part.matrix}" if found.damping else "conditioning"
        tables.append(Table((title, "value", "± error", "note"), notes=True))
        for row in part.rows:
            tables[-1].add(row.name, row.value, row.error, row.note)
    return tables
