"""report.html: one file with everything that spectrum.json says, for a browser, a phone or paper.

It needs nothing from elsewhere (no network, no scripts), and whatever it quotes (names, paths, commands) is escaped.
"""

from __future__ import annotations

import base64
import contextlib
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvpspec.bounds.stability import stability
from hvpspec.escaping import in_html, on_screen
from hvpspec.options import MATRIX_NAMES
from hvpspec.plots.spectrum import panels
from hvpspec.plots.style import Panel, drawn, inline_svgs, to_bytes
from hvpspec.report.explanations import EXPLANATIONS, explanations
from hvpspec.report.notes import draw_notes, ending, has_data_error, shortfalls, spectrum_confidence, spectrum_notes
from hvpspec.report.numbers import (
    DATA_HEADING,
    QUANTITY_NAMES,
    certainty,
    error_heading,
    pair_notes,
    rounded,
    with_error,
)
from hvpspec.report.rows.batches import batch_notes, batch_rows
from hvpspec.report.rows.blocks import HEADINGS, blocks_notes, columns_of, shown
from hvpspec.report.rows.condition import condition_notes, condition_parts, extreme_rows, stability_rows, stepper
from hvpspec.report.rows.diagonal import diagonal_cells, diagonal_notes
from hvpspec.report.rows.gradient import gradient_notes, gradient_rows
from hvpspec.report.sentences import sentences
from hvpspec.report.table import Row
from hvpspec.report.terminal import measured_lines, report_sections, without_step
from hvpspec.results.condition import Condition
from hvpspec.results.diagonal import Diagonal
from hvpspec.results.parts import Batches, Blocks
from hvpspec.results.record import Record
from hvpspec.results.spectrum import Spectrum
from hvpspec.wording import percent

if TYPE_CHECKING:
    from markupsafe import Markup

_BLOCKS_LEGEND = (
    "size: number of parameters; norm: Frobenius norm; each figure is that of the group's diagonal block, the Hessian "
    "with respect to the group's parameters only"
)


@dataclass(frozen=True)
class Line:
    """A row of a table on the page. about: what the quantity means."""

    name: str | Markup
    cells: Sequence[str]
    note: str = ""
    about: str = ""


def report_html(record: Record) -> str:
    """The page for a record."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    spectrum, provenance = record.spectrum, record.provenance
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "assets"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    options = provenance.options
    along = [] if spectrum.gradient is None else gradient_rows(spectrum.gradient)
    steps = stability_rows(stability(spectrum, options.get("lr"), options.get("momentum")))
    return environment.get_template("report.html.jinja").render(
        title=_title(record),
        complete=spectrum.complete,
        ending=ending(spectrum).partition(": ")[0],
        facts=_facts(record),
        findings=sentences(record),
        notes=[
            *spectrum_notes(spectrum),
            *draw_notes(record),
            *shortfalls(spectrum, rtol=options.get("rtol"), tol=options.get("tol")),
        ],
        headings=_headings(spectrum),
        figures=figure_lines(spectrum),
        figures_about=explanations(_shown_in_figures(spectrum)),
        pictures=[(panel, inline_svgs(panel), _caption(panel, spectrum)) for panel in panels(spectrum)],
        stepper=stepper(spectrum),
        steps=[Line(row.name, [row.value], row.note, _about(row)) for row in steps],
        steps_about=explanations(row.quantity for row in steps),
        gradient=[Line(row.name, [_together(row.value, row.error)], row.note, _about(row)) for row in along],
        gradient_about=explanations(row.quantity for row in along),
        gradient_notes=[]
        if spectrum.gradient is None
        else gradient_notes(spectrum.gradient, preconditioned=spectrum.preconditioned is not None),
        condition=condition_tables(spectrum.condition, with_step=not steps),
        condition_about=explanations(_shown_in_condition(spectrum.condition, with_step=not steps)),
        condition_notes=[] if spectrum.condition is None else condition_notes(spectrum.condition),
        blocks=block_table(spectrum.blocks),
        batches=[] if spectrum.per_batch is None else _batch_lines(spectrum.per_batch),
        batch_notes=[] if spectrum.per_batch is None else batch_notes(spectrum.per_batch),
        batches_about=explanations(["per_batch"]),
        diagonal=_diagonal_table(spectrum.diagonal),
        preflight=record.preflight,
        measured=[] if record.preflight is None else measured_lines(record.preflight),
        command=shlex.join(provenance.command) if provenance.command else None,
        provenance=_entries(provenance.to_dict()),
    )


def notebook_html(spectrum: Spectrum) -> str:
    """The tables of `summary`, and the pictures where Matplotlib is installed, for a cell of a notebook."""
    parts = []
    for section in report_sections(spectrum):
        if (table := section.table) is not None:
            rows = [_cells("th", table.header, table.notes), *(_cells("td", row, table.notes) for row in table.rows)]
            parts.append(f"<table>{''.join(rows)}</table>")
        parts += [f"<div>{in_html(note)}</div>" for note in section.notes]
    with contextlib.suppress(ModuleNotFoundError):
        if shown := panels(spectrum):  # as PNG: notebooks strip <svg> from outputs that they do not trust
            picture = base64.b64encode(to_bytes(drawn(shown, columns=2), "png")).decode()
            alt = in_html(" ".join(panel.alt for panel in shown))
            style = "width: 100%; max-width: 60em"
            parts.append(f'<img style="{style}" alt="{alt}" src="data:image/png;base64,{picture}">')
    return "\n".join(parts)


def _cells(tag: str, cells: Sequence[str], noted: bool) -> str:
    """A row of a table: the first cell is a name, and the last one a note where `noted`; the others are numbers."""
    last = len(cells) - 1 if noted else -1
    shown = [
        f'<{tag} style="text-align: {"left" if i in (0, last) else "right"}">{in_html(cell)}</{tag}>'
        for i, cell in enumerate(cells)
    ]
    return f"<tr>{''.join(shown)}</tr>"


def figure_lines(spectrum: Spectrum) -> list[Line]:
    """A line for each eigenvalue, the trace and the norm: value, error, and the data's error where it is known."""
    with_data, confidence = has_data_error(spectrum), spectrum_confidence(spectrum)

    def line(name: str, value: float, error: float, spread: float | None, note: str, quantity: str) -> Line:
        number, margin = with_error(value, error)
        data = "" if spread is None or not math.isfinite(spread) else rounded(spread, 2)
        cells = [_signed(number), margin, *([data] if with_data else [])]
        return Line(name, cells, note, EXPLANATIONS[quantity])

    lines = []
    pairs = spectrum.eigenpairs
    if pairs is not None:
        data = [None] * len(pairs.values) if pairs.data_error is None else pairs.data_error.tolist()
        rows = zip(pairs.values.tolist(), pairs.error.tolist(), data, pair_notes(pairs), strict=True)
        for number, (value, error, spread, note) in enumerate(rows, start=1):
            said = ", ".join([*(["negative"] if value < 0 else []), *([note] if note else [])])
            lines.append(line(f"λ{number}", value, error, spread, said, "eigenvalues"))
    for name, estimate in (("trace", spectrum.trace), ("frobenius_norm", spectrum.frobenius_norm)):
        if estimate is not None:
            note = certainty(estimate, confidence)
            lines.append(
                line(QUANTITY_NAMES[name], estimate.value, estimate.error, estimate.data_error, note, name)
            )  # fmt: skip
    return lines


def condition_tables(found: Condition | None, *, with_step: bool) -> list[tuple[str, list[Line]]]:
    """Title and lines for each matrix: for H, or for H and H + δI."""
    if found is None:
        return []
    tables = []
    for part in condition_parts(found):
        rows = [*extreme_rows(found), *part.rows] if part.matrix == "H" else part.rows
        rows = rows if with_step or found.damping else without_step(rows)
        lines = [Line(row.name, [_together(row.value, row.error)], _signed(row.note), _about(row)) for row in rows]
        tables.append((f"Of {part.matrix}" if found.damping else "", lines))
    return tables


def block_table(found: Blocks | None) -> dict[str, Any] | None:
    """The headings, a line for each block, and what the marks mean."""
    if found is None or not found.blocks:
        return None
    columns = columns_of(found)
    lines = [
        Line(
            breakable(block.name),
            [f"{block.parameters:,}", *(_together(*shown(block, name), stacked=True) for name in columns)],
        )
        for block in found.blocks
    ]
    headings = [HEADINGS[name] for name in columns]
    return {"columns": headings, "lines": lines, "notes": [_BLOCKS_LEGEND, *blocks_notes(found)]}


def _batch_lines(found: Batches) -> list[Line]:
    return [
        Line(row.name.strip(), [_together(row.value, row.error)], _signed(row.note), _about(row))
        for row in batch_rows(found)
    ]


def _diagonal_table(found: Diagonal | None) -> dict[str, Any] | None:
    """A line for each parameter or block, and what is said of the whole."""
    if found is None:
        return None
    lines = [
        Line(breakable(name), [size, _together(value, error)]) for name, size, value, error in diagonal_cells(found)
    ]
    return {"lines": lines, "notes": diagonal_notes(found), "about": explanations(["diagonal"])}


def breakable(name: str) -> Markup:
    """A name that a line may break after a dot or an underscore, and nowhere else."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[._])(?=.)", on_screen(name)))


def _shown(entry: Any) -> Any:
    """What the template is given, without hidden characters; it escapes markup afterwards."""
    from markupsafe import Markup

    return on_screen(entry) if isinstance(entry, str) and not isinstance(entry, Markup) else entry


def _headings(spectrum: Spectrum) -> list[str]:
    """Of the columns of numbers."""
    data = [DATA_HEADING] if has_data_error(spectrum) else []
    headings = ["value", error_heading(spectrum_confidence(spectrum)), *data]
    return [re.sub("(?<=±) | (?=%)|(?<=1) ", "\N{NO-BREAK SPACE}", heading) for heading in headings]


def _shown_in_figures(spectrum: Spectrum) -> list[str]:
    known = {"eigenvalues": spectrum.eigenpairs, "trace": spectrum.trace, "frobenius_norm": spectrum.frobenius_norm}
    return [*(name for name, found in known.items() if found is not None), *(["density"] if spectrum.density else [])]


def _shown_in_condition(found: Condition | None, *, with_step: bool) -> Iterable[str]:
    if found is None:
        return []
    rows = [*extreme_rows(found), *(row for part in condition_parts(found) for row in part.rows)]
    return [row.quantity for row in (rows if with_step or found.damping else without_step(rows))]


def _about(row: Row) -> str:
    return EXPLANATIONS.get(row.quantity, "")


def _together(value: str, error: str, *, stacked: bool = False) -> str:
    """Value and error, with no line break between them; stacked: the error goes below where there is no room."""
    text = f"{_signed(value)} ± {error}" if error else _signed(value)
    text = text.replace(" ", "\N{NO-BREAK SPACE}")
    return text.replace("\N{NO-BREAK SPACE}±", " ±") if stacked else text


def _title(record: Record) -> str:
    checkpoint, name = record.provenance.checkpoint, record.spectrum.matrix_name
    title = f"{name} spectrum" if name == MATRIX_NAMES["hessian"] else f"Spectrum of the {name}"
    return title if checkpoint is None else f"{title} of {Path(checkpoint.path).name}"


def _facts(record: Record) -> list[str]:
    provenance, spectrum = record.provenance, record.spectrum
    count = provenance.parameters
    facts = [f"{spectrum.parameters:,} parameters"] if count is None else [str(count)]
    if count is not None and count.left_out is not None:
        facts.append(count.left_out)
    if record.loss is not None:
        facts.append(f"loss {record.loss:.6g}" + (f" ({provenance.loss})" if provenance.loss else ""))
    if provenance.data is not None and (batches := provenance.data.counted_batches) is not None:
        facts.append(batches)
    if provenance.dtype:
        facts.append(f"{provenance.dtype} on {provenance.device or '?'}")
    return [*facts, f"{spectrum.hvps:,} HVPs", f"{spectrum.seconds:.1f} s"]


def _caption(panel: Panel, spectrum: Spectrum) -> str:
    if panel.name == "density" and spectrum.density is not None:
        return (
            "Bars: how many eigenvalues lie there (stochastic Lanczos quadrature; the distribution is off by at most "
            f"{spectrum.density.error:.2g} in Wasserstein distance, {percent(spectrum.density.confidence)}). "
            "Markers: eigenvalues computed one by one, with their errors; circles are positive, triangles negative. "
            "The axis is linear near zero and logarithmic far from it."
        )
    if panel.name == "scree":
        return (
            "Each error bar contains an eigenvalue; where none is visible, it is shorter than the marker. Circles are "
            "positive, triangles negative."
        )
    if panel.name.startswith("batches"):
        return "Each mini-batch by itself: the matrix of its own loss. The shaded strip is the error of all data."
    if panel.name == "block-densities":
        return (
            "Bars: how many eigenvalues of the group's diagonal block lie there, on the same axes for all groups. "
            "Markers: λ_max and λ_min of the block, with their errors."
        )
    return "Error bars are those of the table, half-widths of intervals."


def _entries(provenance: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested entries by their path, "checkpoint, sha256"; the command has a place of its own."""
    rows = []
    for key, entry in provenance.items():
        if key == "command" and not prefix:
            continue
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(entry, Mapping):
            rows += _entries(entry, f"{prefix}{key}, ")
        elif entry is not None:
            text = ", ".join(map(str, entry)) if isinstance(entry, list) else str(entry)
            rows.append((name, f"{entry:.4g}" if isinstance(entry, float) else text))
    return rows


def _signed(text: str) -> str:
    """With a true minus sign, but not in exponents."""
    return " ".join(f"−{word[1:]}" if word.startswith("-") else word for word in text.split(" "))
