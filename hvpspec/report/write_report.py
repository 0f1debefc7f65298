"""Everything that belongs beside spectrum.json: the pictures and the page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hvpspec.atomic_files import prepare_folder, write_json, write_whole
from hvpspec.plots.spectrum import panels
from hvpspec.plots.style import drawn, to_bytes
from hvpspec.report.html import report_html
from hvpspec.results.spectrum import Spectrum

PICTURES = ("spectrum.svg", "spectrum.png")


def write_report(folder: Path, document: dict[str, Any]) -> list[Path]:
    """Writes spectrum.json, its pictures (where there is something to show in one) and report.html. Their paths."""
    write_json(folder / "spectrum.json", document)  # first: whatever happens to the rest, the figures are kept
    shown = panels(Spectrum.from_dict(document), document.get("blocks"))
    contents = {"report.html": report_html(document).encode()}
    if shown:
        figure = drawn(shown)
        contents |= {name: to_bytes(figure, name.rpartition(".")[2]) for name in PICTURES}
    for name in {*PICTURES} - contents.keys():
        (folder / name).unlink(missing_ok=True)  # of an earlier run: they would show another spectrum
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / "spectrum.json", *(folder / name for name in contents)]


def save(spectrum: Spectrum, folder: str | os.PathLike[str]) -> list[Path]:
    """The files of a spectrum that was computed in Python, whose provenance is not known. See `Spectrum.save`."""
    folder = Path(folder)
    prepare_folder(folder, "folder")
    document = spectrum.to_dict()
    try:
        return write_report(folder, document)
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "matplotlib"):
            raise
        for name in ("report.html", *PICTURES):
            (folder / name).unlink(missing_ok=True)  # of an earlier run: they would show another spectrum
        return [folder / "spectrum.json"]
