"""The files of a run: spectrum.json, the pictures and the page."""

from __future__ import annotations

import os
from pathlib import Path

from hvpspec.atomic_files import prepare_folder, write_json, write_whole
from hvpspec.plots.spectrum import panels
from hvpspec.plots.style import drawn, to_bytes
from hvpspec.report.documents import to_document
from hvpspec.report.html import report_html
from hvpspec.results.record import Record
from hvpspec.results.spectrum import Spectrum

PICTURES = ("spectrum.svg", "spectrum.png")


def write_report(folder: Path, record: Record) -> list[Path]:
    """Writes spectrum.json, report.html and, where there is something to draw, the pictures. Returns their paths."""
    write_json(folder / "spectrum.json", to_document(record))  # first: if the rest fails, the figures are kept
    contents = {"report.html": report_html(record).encode()}
    if shown := panels(record.spectrum):
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
    try:
        return write_report(folder, Record(spectrum))
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "matplotlib"):
            raise
        for name in ("report.html", *PICTURES):
            (folder / name).unlink(missing_ok=True)  # of an earlier run: they would show another spectrum
        return [folder / "spectrum.json"]
