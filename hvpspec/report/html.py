"""report.html: one file with everything that spectrum.json says, for a browser, a phone or paper.

It needs nothing from elsewhere (no network, no scripts), and whatever it quotes (names, paths, commands) is escaped.
"""

from __future__ import annotations

import base64
import contextlib
import html
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvpspec.plots.spectrum import panels
from hvpspec.plots.style import Panel, drawn, inline_svgs, to_bytes
from hvpspec.report.block_rows import HEADINGS, blocks_notes, columns_of, shown
from hvpspec.report.condition_rows import condition_notes, condition_parts, ends
from hvpspec.report.notes import shortfalls, spectrum_notes
from hvpspec.report.numbers import certainty, rounded, with_error
from hvpspec.report.sentences import sentences
from hvpspec.report.terminal import cost_line, measured_lines, sections
from hvpspec.results.blocks import Blocks
from hvpspec.results.condition import Condition
from hvpspec.results.preflight import Preflight
from hvpspec.results.spectrum import Spectrum

if TYPE_CHECKING:
    from markupsafe import Markup


_LEGEND = "size: parameters; norm: Frobenius norm; figures are those of the group's diagonal block"


def report_html(document: dict[str, Any]) -> str:
    """The page for the contents of a spectrum.json."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    spectrum = Spectrum.from_dict(document)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "assets"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    provenance = document.get("provenance") or {}
    options = provenance.get("options") or {}
    figures, pictures = figure_rows(spectrum), panels(spectrum, document.get("blocks"))
    return environment.get_template("report.html.jinja").render(
        title=_title(provenance),
        complete=spectrum.complete,
        facts=_facts(document, provenance),
        findings=sentences(spectrum, document),
        notes=[
            *spectrum_notes(spectrum),
            *shortfalls(spectrum, rtol=options.get("rtol", 0.01), tol=options.get("tol", 1e-3)),
        ],
        figures=figures,
        with_data=any(row["data"] for row in figures),
        pictures=[(panel, inline_svgs(panel), _caption(panel, spectrum)) for panel in pictures],
        condition=condition_tables(spectrum.condition),
        reasons=[] if spectrum.condition is None else condition_notes(spectrum.condition),
        chance=None if spectrum.condition is None else f"{100 * spectrum.condition.confidence:g} %",
        blocks=block_table(spectrum.blocks),
        preflight=(document.get("preflight") or {}).get("findings"),
        measured=_measured(document.get("preflight")),
        command=shlex.join(provenance["command"]) if provenance.get("command") else None,
        provenance=_flat(provenance),
    )


def figure_rows(spectrum: Spectrum) -> list[dict[str, str]]:
    """name, value, error, data and note of each figure, as text."""
    rows = []
    pairs = spectrum.eigenpairs
    if pairs is not None:
        data = [math.nan] * len(pairs.values) if pairs.data_error is None else pairs.data_error.tolist()
        for number, (value, error, spread) in enumerate(
            zip(pairs.values.tolist(), pairs.error.tolist(), data, strict=True), start=1
        ):
            rows.append(_row(f"λ{number}", with_error(value, error), spread, "negative" if value < 0 else ""))
    for name, estimate in (("trace", spectrum.trace), ("Frobenius norm", spectrum.frobenius_norm)):
        if estimate is not None:
            spread = math.nan if estimate.data_error is None else estimate.data_error
            rows.append(_row(name, with_error(estimate.value, estimate.error), spread, certainty(estimate)))
    return rows


def _row(name: str, shown: tuple[str, str], spread: float, note: str) -> dict[str, str]:
    data = rounded(spread, 2) if math.isfinite(spread) else ""
    return {"name": name, "value": _signed(shown[0]), "error": shown[1], "data": data, "note": note}


def condition_tables(found: Condition | None) -> list[dict[str, Any]]:
    """title and rows of each matrix: of H alone, or of H and H + δI."""
    if found is None:
        return []
    tables = []
    for part in condition_parts(found):
        rows = [*ends(found), *part.rows] if part.matrix == "H" else part.rows
        shown = [
            {"name": row.name, "value": _together(row.value, row.error), "note": _signed(row.note)} for row in rows
        ]
        tables.append({"title": f"Of {part.matrix}" if found.damping else "", "rows": shown})
    return tables


def block_table(found: Blocks | None) -> dict[str, Any] | None:
    """The headings, a row for each block, and what the marks mean."""
    if found is None or not found.blocks:
        return None
    columns = columns_of(found)
    rows = [
        {
            "name": breakable(block.name),
            "parameters": f"{block.parameters:,}",
            "cells": [_together(*shown(getattr(block, name)), stacked=True) for name in columns],
        }
        for block in found.blocks
    ]
    return {"columns": [HEADINGS[name] for name in columns], "rows": rows, "notes": [_LEGEND, *blocks_notes(found)]}


def breakable(name: str) -> Markup:
    """A name that may go on in the next line after a dot or an underscore, and nowhere else."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[._])(?=.)", name))


def _together(value: str, error: str, *, stacked: bool = False) -> str:
    """Value and error, which no line break parts; stacked: but where there is no room, the error goes below."""
    text = f"{_signed(value)} ± {error}" if error else _signed(value)
    text = text.replace(" ", "\N{NO-BREAK SPACE}")
    return text.replace("\N{NO-BREAK SPACE}±", " ±") if stacked else text


def _title(provenance: dict[str, Any]) -> str:
    path = (provenance.get("checkpoint") or {}).get("path")
    return f"Hessian spectrum of {Path(path).name}" if path else "Hessian spectrum"


def _facts(document: dict[str, Any], provenance: dict[str, Any]) -> list[str]:
    data = provenance.get("data") or {}
    facts = [f"{document['parameters']:,} parameters"]
    if document.get("loss") is not None:
        facts.append(f"loss {document['loss']:.6g}" + (f" ({provenance['loss']})" if provenance.get("loss") else ""))
    if data.get("batches"):
        facts.append(f"{data['batches']:,} batch" + ("es" if data["batches"] > 1 else ""))
    if provenance.get("dtype"):
        facts.append(f"{provenance['dtype']} on {provenance.get('device', '?')}")
    return [*facts, f"{document['hvps']:,} HVPs", f"{document['seconds']:.1f} s"]


def _caption(panel: Panel, spectrum: Spectrum) -> str:
    if panel.name == "density" and spectrum.density is not None:
        return (
            "Bars: how many eigenvalues lie there (stochastic Lanczos quadrature; the distribution is off by at most "
            f"{spectrum.density.error:.2g} in Wasserstein distance, {100 * spectrum.density.confidence:g} %). "
            "Markers: eigenvalues found one by one, with their errors. The axis is linear around zero and logarithmic "
            "far from it."
        )
    if panel.name == "scree":
        return (
            "Error bars: each value is an eigenvalue to within it; where none is seen, it is smaller than the marker."
        )
    return "Error bars at the confidence of the run."


def _measured(preflight: dict[str, Any] | None) -> list[str]:
    return [] if preflight is None else measured_lines(Preflight.from_dict(preflight))


def _flat(provenance: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested entries by their path, "checkpoint, sha256"; the command has its own place."""
    rows = []
    for key, entry in provenance.items():
        if key == "command" and not prefix:
            continue
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(entry, dict):
            rows += _flat(entry, f"{prefix}{key}, ")
        elif entry is not None:
            text = ", ".join(map(str, entry)) if isinstance(entry, list) else str(entry)
            rows.append((name, f"{entry:.4g}" if isinstance(entry, float) else text))
    return rows


def _signed(text: str) -> str:
    """With a true minus sign, but not in exponents."""
    return " ".join(f"−{word[1:]}" if word.startswith("-") else word for word in text.split(" "))


def notebook_html(spectrum: Spectrum) -> str:
    """The tables of `summary`, and the pictures where Matplotlib is installed, for a cell of a notebook."""
    parts = []
    for table, notes in sections(spectrum):
        rows = [_cells("th", table.header, table.notes), *(_cells("td", row, table.notes) for row in table.rows)]
        parts += [f"<table>{''.join(rows)}</table>", *(f"<div>{html.escape(note)}</div>" for note in notes)]
    parts.append(f"<div>{html.escape(cost_line(spectrum))}</div>")
    with contextlib.suppress(ModuleNotFoundError):
        blocks = None if spectrum.blocks is None else spectrum.blocks.to_dict()
        if shown := panels(spectrum, blocks):
            picture = base64.b64encode(to_bytes(drawn(shown, columns=2), "png")).decode()
            alt = html.escape(" ".join(panel.alt for panel in shown))
            parts.append(
                f'<img style="width: 100%; max-width: 60em" alt="{alt}" src="data:image/png;base64,{picture}">'
            )
    return "\n".join(parts)


def _cells(tag: str, cells: Sequence[str], noted: bool) -> str:
    """A row of a table: the first cell is a name, and the last one a note where `noted`; the others are numbers."""
    last = len(cells) - 1 if noted else -1
    shown = [
        f'<{tag} style="text-align: {"left" if i in (0, last) else "right"}">{html.escape(cell)}</{tag}>'
        for i, cell in enumerate(cells)
    ]
    return f"<tr>{''.join(shown)}</tr>"
