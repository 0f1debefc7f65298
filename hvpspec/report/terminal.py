"""The printed report: tables and notes in the order in which they are read, and the lines of the preflight."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from hvpspec.bounds.stability import Stability, stability
from hvpspec.escaping import in_message, on_screen
from hvpspec.memory import readable
from hvpspec.report.explanations import explanation_lines
from hvpspec.report.notes import ending, has_data_error, shortfalls, spectrum_confidence, spectrum_notes
from hvpspec.report.numbers import (
    DATA_HEADING,
    QUANTITY_NAMES,
    certainty,
    duration,
    error_heading,
    pair_notes,
    rounded,
    with_error,
)
from hvpspec.report.rows.batches import batch_notes, batch_rows
from hvpspec.report.rows.blocks import HEADINGS, MARK, blocks_notes, columns_of, marked, shown
from hvpspec.report.rows.condition import condition_notes, condition_parts, stability_rows, stepper
from hvpspec.report.rows.diagonal import diagonal_notes, diagonal_table, rows_left_out
from hvpspec.report.rows.gradient import gradient_notes, gradient_rows
from hvpspec.report.table import Row, Table
from hvpspec.results.condition import Condition
from hvpspec.results.estimate import Estimate
from hvpspec.results.parts import Batches, Blocks
from hvpspec.results.preflight import Preflight, agree
from hvpspec.results.spectrum import Spectrum
from hvpspec.wording import counted

TEXT_WIDTH = 80  # columns that sentences are wrapped to, however wide the terminal
_WORTH_SAYING = 1.2  # the worst case of a forecast, relative to what is expected: less is not mentioned


@dataclass(frozen=True)
class Section:
    """A table, where there is one, and the notes below it. quantities: the keys of those that are shown.

    A blank line separates sections.
    """

    table: Table | None
    notes: Sequence[str] = ()
    quantities: Sequence[str] = ()


def report_sections(
    spectrum: Spectrum,
    *,
    rtol: float | None = None,
    tol: float | None = None,
    lr: float | None = None,
    momentum: float | None = None,
    explain: bool = False,
) -> list[Section]:
    """All that is printed of a spectrum.

    rtol, tol: the tolerances asked for, where they are known. lr, momentum: of the training run, for the edge of
    stability. explain: adds what each quantity means.
    """
    steps = stability(spectrum, lr, momentum)
    plain = spectrum.matrix is None and spectrum.preconditioned is None
    of = [] if plain else [Section(None, [f"{spectrum.matrix_name}:"])]
    sections = [
        *of,
        Section(spectrum_table(spectrum), quantities=_in_spectrum(spectrum)),
        Section(None, spectrum_notes(spectrum), ["density"] if spectrum.density is not None else []),
        *_stability_sections(spectrum, steps),
        *_gradient_sections(spectrum),
        *_condition_sections(spectrum.condition, with_step=steps is None),
    ]
    if spectrum.blocks is not None and spectrum.blocks.blocks:
        sections.append(Section(blocks_table(spectrum.blocks), blocks_notes(spectrum.blocks), ["block"]))
    if spectrum.per_batch is not None:
        sections.append(_batches_section(spectrum.per_batch))
    if (diagonal := spectrum.diagonal) is not None:
        notes = [*rows_left_out(diagonal), *diagonal_notes(diagonal)]
        sections.append(Section(diagonal_table(diagonal), notes, ["diagonal"]))
    if spectrum.complete:
        sections.append(Section(None, shortfalls(spectrum, rtol=rtol, tol=tol)))
    if explain:
        names = [name for section in sections for name in section.quantities]
        sections.append(Section(None, ["What the figures mean:", *explanation_lines(names)]))
    ended = "out of time" if spectrum.out_of_time else ending(spectrum).partition(": ")[0]
    known = spectrum.complete and not spectrum.out_of_time
    rest = "" if known else f" · {ended}: the figures are those known by then"
    sections.append(Section(None, [f"{counted(spectrum.hvps, 'HVP')} in {spectrum.seconds:.1f} s{rest}"]))
    return [section for section in sections if section.table is not None or section.notes]


def summary(spectrum: Spectrum, *, width: int | None = TEXT_WIDTH) -> str:
    """The tables and notes that the command prints, as text.

    Parameters
    ----------
    spectrum : Spectrum
        As `hvpspec.spectrum` returns it.
    width : int or None, default 80
        Columns to keep within. None: every row and every sentence is one line.

    Returns
    -------
    str
        Several lines, the last one without a line break.
    """
    return "\n\n".join("\n".join(section_lines(section, width)) for section in report_sections(spectrum))


def section_lines(section: Section, width: int | None) -> list[str]:
    """The lines of a section, `width` columns at most; None: one line for each row and each sentence."""
    lines = [] if section.table is None else section.table.lines(width)
    return lines + [line for note in section.notes for line in wrapped(note, width)]


def wrapped(sentence: str, width: int | None) -> list[str]:
    """A sentence as lines of `width` columns, but TEXT_WIDTH at most; as one line where it is None."""
    sentence = on_screen(sentence)
    if width is None:
        return [sentence]
    return textwrap.wrap(sentence, min(width, TEXT_WIDTH), subsequent_indent="  ")


def spectrum_table(spectrum: Spectrum) -> Table:
    """The quantities asked for, each with its error; a column for the error due to the choice of data, where known."""
    with_data, confidence = has_data_error(spectrum), spectrum_confidence(spectrum)
    rows: list[tuple[str, ...]] = []

    def row(name: str, value: str, error: str, data: float | None, note: str) -> None:
        spread = "" if data is None or not math.isfinite(data) else rounded(data, 2)
        rows.append((name, value, error, *([spread] if with_data else []), note))

    if "eigenvalues" in spectrum.asked:
        pairs = spectrum.eigenpairs
        if pairs is None:
            row("eigenvalues", "–", "", None, "not reached")
        else:
            data = [None] * len(pairs.values) if pairs.data_error is None else pairs.data_error.tolist()
            found = zip(pairs.values.tolist(), pairs.error.tolist(), data, pair_notes(pairs), strict=True)
            for number, (value, error, spread, note) in enumerate(found, start=1):
                row(f"λ{number}", *with_error(value, error), spread, note)
    for name in ("trace", "frobenius_norm"):
        estimate: Estimate | None = getattr(spectrum, name)
        if name in spectrum.asked and estimate is None:
            row(QUANTITY_NAMES[name], "–", "", None, "not reached")
        elif name in spectrum.asked and estimate is not None:
            shown_number = with_error(estimate.value, estimate.error)
            row(QUANTITY_NAMES[name], *shown_number, estimate.data_error, certainty(estimate, confidence))
    header = ("figure", "value", error_heading(confidence), *([DATA_HEADING] if with_data else []), "note")
    with_notes = any(cells[-1] for cells in rows)
    table = Table(header if with_notes else header[:-1], notes=with_notes)
    for cells in rows:
        table.add(*(cells if with_notes else cells[:-1]))
    return table


def condition_tables(found: Condition) -> list[Table]:
    """A table for H and, with damping, one for H + δI."""
    return [section.table for section in _condition_sections(found, with_step=True) if section.table is not None]


def blocks_table(found: Blocks) -> Table:
    """A row for each group of parameters; columns for the quantities that there are."""
    quantities = columns_of(found)
    headings = [heading for name in quantities for heading in (HEADINGS[name], "± error")]
    table = Table(("block", "size", *headings), gap=2)
    for block in found.blocks:
        cells = [block.name, f"{block.parameters:,}"]
        for name in quantities:
            value, error = shown(block, name)
            cells += [value, error if error.endswith(MARK) or not marked(found) else f"{error} "]
        table.add(*cells)
    return table


def _batches_section(found: Batches) -> Section:
    table = Table(("mini-batches", "value", "± error", "note"), notes=True, gap=2)
    for row in batch_rows(found):
        table.add(row.name, row.value, row.error, row.note)
    return Section(table if table.rows else None, batch_notes(found), ["per_batch"])


def _in_spectrum(spectrum: Spectrum) -> list[str]:
    return [name for name in ("eigenvalues", "trace", "frobenius_norm") if name in spectrum.asked]


def _stability_sections(spectrum: Spectrum, found: Stability | None) -> list[Section]:
    rows = stability_rows(found)
    if not rows:
        return []
    table = Table((stepper(spectrum), "value", "note"), notes=True)
    for row in rows:
        table.add(row.name, row.value, row.note)
    return [Section(table, quantities=[row.quantity for row in rows])]


def _gradient_sections(spectrum: Spectrum) -> list[Section]:
    if (found := spectrum.gradient) is None:
        return []
    table = Table(("gradient g", "value", "± error", "note"), notes=True, gap=2)
    rows = gradient_rows(found)
    for row in rows:
        table.add(row.name, row.value, row.error, row.note)
    notes = gradient_notes(found, preconditioned=spectrum.preconditioned is not None)
    return [Section(table, notes, [row.quantity for row in rows])]


def _condition_sections(found: Condition | None, *, with_step: bool) -> list[Section]:
    """with_step: whether the largest stable step on H itself is among the rows."""
    if found is None:
        return []
    sections = []
    for part in condition_parts(found):
        title = f"conditioning of {part.matrix}" if found.damping else "conditioning"
        table = Table((title, "value", "± error", "note"), notes=True, gap=2)
        rows = part.rows if with_step or found.damping else without_step(part.rows)
        for row in rows:
            table.add(row.name, row.value, row.error, row.note)
        sections.append(Section(table, quantities=[row.quantity for row in rows]))
    last = sections.pop()
    return [*sections, Section(last.table, condition_notes(found), last.quantities)]


def without_step(rows: Sequence[Row]) -> list[Row]:
    """All rows but the largest stable step, which stands among those of gradient descent."""
    return [row for row in rows if row.quantity != "step"]


def findings_lines(preflight: Preflight, *severities: str) -> list[str]:
    """A line for each finding, of these severities or of all."""
    found = preflight.of(*severities) if severities else preflight.findings
    if not found and not severities:
        return ["no problem was found"]
    return [f"{finding.severity:<7}  {' '.join(in_message(str(finding)).split())}" for finding in found]


def measured_lines(preflight: Preflight) -> list[str]:
    """What was measured, and what the whole run is expected to take."""
    lines = []
    if preflight.symmetry is not None and preflight.repeatability is not None:
        lines.append(
            f"symmetry: off by {preflight.symmetry:.1g}; the same product again differs by "
            f"{preflight.repeatability:.1g}"
        )
    if preflight.difference is not None:
        bound = preflight.difference_bound or 0.0
        verb = "agree to" if agree(preflight.difference, bound) else "differ by"
        lines.append(
            f"a product and finite differences of the gradient {verb} {preflight.difference:.1g} (finite differences "
            f"are accurate to about {bound:.1g} here)"
        )
    if preflight.seconds is not None:
        memory = "" if preflight.memory is None else f", {readable(preflight.memory)} while it is computed"
        lines.append(f"one product: {rounded(preflight.seconds, 2)} s{memory}")
    if preflight.expected_hvps is not None:
        lines.append(f"the whole run: about {preflight.expected_hvps:,} HVPs{expected_costs(preflight)}")
        lines += [worst] if (worst := worst_case(preflight)) else []
    return lines


def expected_costs(preflight: Preflight) -> str:
    """ ", about 5 s (0.05 s each), 340 MiB in all", as far as known; "340 MiB per rank" where ranks share a run.

    A product of a long run may take less than the one that was measured: each is what it takes there, with all else.
    """
    seconds, hvps = "", preflight.expected_hvps
    if preflight.expected_seconds is not None:
        each = f" ({rounded(preflight.expected_seconds / hvps, 2)} s each)" if hvps else ""
        seconds = f", about {duration(preflight.expected_seconds)}{each}"
    of = "in all" if preflight.ranks is None else "per rank"
    memory = "" if preflight.expected_memory is None else f", {readable(preflight.expected_memory)} {of}"
    return seconds + memory


def worst_case(preflight: Preflight) -> str:
    """ "up to 900 HVPs, 2 min, 1 GiB if …"; nothing where that is about what is expected."""
    hvps, most = preflight.expected_hvps, preflight.most_hvps
    if hvps is None or most is None or most <= _WORTH_SAYING * hvps:
        return ""
    worst = [f"{most:,} HVPs"]
    if preflight.most_seconds is not None:
        worst.append(duration(preflight.most_seconds))
    if preflight.most_memory is not None:
        worst.append(readable(preflight.most_memory) + (" per rank" if preflight.ranks is not None else ""))
    return f"up to {', '.join(worst)} if the trace is near 0 or eigenvalues cluster"
