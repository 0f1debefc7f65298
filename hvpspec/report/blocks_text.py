"""Diagonal blocks for the terminal."""

from __future__ import annotations

from hvpspec.report.block_rows import HEADINGS, MARK, MARK_NOTE, columns_of, marked, shown
from hvpspec.report.table import Table
from hvpspec.results.condition import Blocks


def blocks_table(found: Blocks) -> Table:
    """A row for each group of parameters; columns for the figures that there are."""
    figures = columns_of(found)
    headings = [heading for name in figures for heading in (HEADINGS[name], "± error")]
    table = Table(("block", "size", *headings), gap=2)
    for block in found.blocks:
        cells = [block.name, f"{block.parameters:,}"]
        for name in figures:
            value, error = shown(getattr(block, name))
            cells += [value, error if error.endswith(MARK) or not marked(found) else f"{error} "]
        table.add(*cells)
    return table


def blocks_notes(found: Blocks) -> list[str]:
    """What the mark means, and what λ_max has cost."""
    notes = [MARK_NOTE] if marked(found) else []
    if found.largest_hvps:
        notes.append(f"{found.largest_hvps:,} of the HVPs are for these λ_max alone")
    return notes
