"""Tables and lines for the terminal."""

from __future__ import annotations

import math

from hvpspec.memory import readable
from hvpspec.report.block_rows import HEADINGS, MARK, blocks_notes, columns_of, marked, shown
from hvpspec.report.condition_rows import condition_notes, condition_parts
from hvpspec.report.notes import spectrum_notes
from hvpspec.report.numbers import QUANTITY_NAMES, certainty, duration, rounded, with_error
from hvpspec.report.table import Table
from hvpspec.results.blocks import Blocks
from hvpspec.results.condition import Condition
from hvpspec.results.preflight import Preflight, agree
from hvpspec.results.spectrum import Spectrum


def spectrum_table(spectrum: Spectrum) -> Table:
    """The figures asked for, each with its error bar; a column for the data's part in it where that is known."""
    figures = [spectrum.eigenpairs, spectrum.trace, spectrum.frobenius_norm]
    with_data = any(figure is not None and figure.data_error is not None for figure in figures)
    data_column = ["± data"] if with_data else []
    table = Table(("figure", "value", "± error", *data_column, "note"), notes=True)

    def row(name: str, value: str, error: str, data: float | None, note: str) -> None:
        shown = "" if data is None or not math.isfinite(data) else rounded(data, 2)
        table.add(name, value, error, *([shown] if with_data else []), note)

    if "eigenvalues" in spectrum.asked:
        pairs = spectrum.eigenpairs
        if pairs is None:
            row("eigenvalues", "–", "", None, "not reached")
        else:
            spread = [None] * len(pairs.values) if pairs.data_error is None else pairs.data_error.tolist()
            rows = zip(pairs.values.tolist(), pairs.error.tolist(), spread, strict=True)
            for number, (value, error, data) in enumerate(rows, start=1):
                row(f"λ{number}", *with_error(value, error), data, "")
    for name, estimate in (("trace", spectrum.trace), ("frobenius_norm", spectrum.frobenius_norm)):
        if name not in spectrum.asked:
            continue
        if estimate is None:
            row(QUANTITY_NAMES[name], "–", "", None, "not reached")
        else:
            shown = with_error(estimate.value, estimate.error)
            row(QUANTITY_NAMES[name], *shown, estimate.data_error, certainty(estimate))
    return table


def condition_tables(found: Condition) -> list[Table]:
    """That of H, and with damping that of H + δI."""
    tables = []
    for part in condition_parts(found):
        title = f"conditioning of {part.matrix}" if found.damping else "conditioning"
        tables.append(Table((title, "value", "± error", "note"), notes=True))
        for row in part.rows:
            tables[-1].add(row.name, row.value, row.error, row.note)
    return tables


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


_MUCH = 1.2  # times what is likely: less is no news


_UNKIND = "the trace cancels or eigenvalues crowd"


def findings_lines(preflight: Preflight, *severities: str) -> list[str]:
    """A line a finding, those of these severities or all."""
    shown = preflight.of(*severities) if severities else preflight.findings
    if not shown and not severities:
        return ["nothing found that would go wrong"]
    return [f"{finding.severity:<7}  {finding}" for finding in shown]


def measured_lines(preflight: Preflight) -> list[str]:
    """What was measured, and what the whole run is foreseen to take."""
    lines = []
    if preflight.symmetry is not None and preflight.repeatability is not None:
        lines.append(
            f"symmetry: off by {preflight.symmetry:.1g}; the same product again: {preflight.repeatability:.1g}"
        )
    if preflight.difference is not None:
        bound = preflight.difference_bound or 0.0
        verb = "agree to" if agree(preflight.difference, bound) else "differ by"
        lines.append(
            f"finite differences of the gradient {verb} {preflight.difference:.1g} (they can be trusted to {bound:.1g})"
        )
    if preflight.seconds is not None:
        memory = "" if preflight.memory is None else f", {readable(preflight.memory)} above what is held"
        lines.append(f"one product: {rounded(preflight.seconds, 2)} s{memory}")
    if preflight.expected_hvps is not None:
        lines.append(f"the whole run: about {preflight.expected_hvps:,} HVPs{foreseen(preflight)}")
        lines += [worst] if (worst := at_most(preflight)) else []
    return lines


def foreseen(preflight: Preflight) -> str:
    """ ", about 5 s, 340 MiB in all", as far as known."""
    seconds = "" if preflight.expected_seconds is None else f", about {duration(preflight.expected_seconds)}"
    memory = "" if preflight.expected_memory is None else f", {readable(preflight.expected_memory)} in all"
    return seconds + memory


def at_most(preflight: Preflight) -> str:
    """ "up to 900 HVPs, 2 min, 1 GiB where …"; nothing where that is about the same."""
    hvps, most = preflight.expected_hvps, preflight.most_hvps
    if hvps is None or most is None or most <= _MUCH * hvps:
        return ""
    worst = [f"{most:,} HVPs"]
    if preflight.most_seconds is not None:
        worst.append(duration(preflight.most_seconds))
    if preflight.most_memory is not None:
        worst.append(readable(preflight.most_memory))
    return f"up to {', '.join(worst)} where {_UNKIND}"


def sections(spectrum: Spectrum) -> list[tuple[Table, list[str]]]:
    """All tables of a spectrum, each with the notes below it."""
    found = [(spectrum_table(spectrum), spectrum_notes(spectrum))]
    if spectrum.condition is not None:
        *others, last = condition_tables(spectrum.condition)
        found += [(table, []) for table in others] + [(last, condition_notes(spectrum.condition))]
    if spectrum.blocks is not None:
        found.append((blocks_table(spectrum.blocks), blocks_notes(spectrum.blocks)))
    return found


def cost_line(spectrum: Spectrum) -> str:
    """ "88 HVPs in 2.1 s"."""
    rest = "" if spectrum.complete else "; interrupted: the figures are those known by then"
    return f"{spectrum.hvps:,} HVPs in {spectrum.seconds:.1f} s{rest}"


def summary(spectrum: Spectrum, width: int | None = None) -> str:
    """All tables of a spectrum with their notes, as text. width: in letters, which tables are folded to."""
    lines = [line for table, notes in sections(spectrum) for line in (*table.lines(width), *notes, "")]
    return "\n".join([*lines, cost_line(spectrum)])
