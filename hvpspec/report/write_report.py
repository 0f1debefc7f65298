"""The files of a run: spectrum.json, the pictures and the page."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from hvpspec.atomic_files import as_text, encoded, prepare_folder, write_whole
from hvpspec.errors import OutputError
from hvpspec.plots.spectrum import panels
from hvpspec.plots.style import drawn, to_bytes
from hvpspec.report.documents import to_document
from hvpspec.report.html import report_html
from hvpspec.results.record import Record
from hvpspec.results.spectrum import Spectrum

PICTURES = ("spectrum.svg", "spectrum.png")
FILES = ("spectrum.json", "report.html", *PICTURES)
_EXTRAS = ("jinja2", "matplotlib")  # packages that page and pictures need


def write_report(folder: Path, record: Record, show: Callable[[bool], None] = lambda saved: None) -> list[Path]:
    """Writes spectrum.json, report.html and, where there is something to draw, the pictures. Returns their paths.

    show: is told whether the figures are in a file, before what takes longest, which is to draw them.
    Raises OutputError where some of the files could not be made or written, after all the others.
    """
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)  # it may have been removed meanwhile
    parts: list[tuple[tuple[str, ...], Callable[[], Mapping[str, bytes]]]] = [
        (("spectrum.json",), lambda: {"spectrum.json": encoded(as_text(to_document(record)))}),  # it has the figures
        (("report.html",), lambda: {"report.html": encoded(report_html(record))}),
        (PICTURES, lambda: _pictures(record.spectrum)),
    ]
    written: list[Path] = []
    missing: dict[str, Exception] = {}
    for names, make in parts:
        try:
            contents = make()
        except Exception as error:
            contents, missing = {}, missing | dict.fromkeys(names, error)
        for name, content in contents.items():
            try:
                write_whole(folder / name, content)
                written.append(folder / name)
            except (OSError, MemoryError) as error:
                missing[name] = error
        if names == ("spectrum.json",):
            show(not missing)
    for name in {*FILES[1:]} - {path.name for path in written}:
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)  # of an earlier run: it would show another spectrum
    if missing:
        raise OutputError(folder, written, missing) from next(iter(missing.values()))
    return written


def _pictures(spectrum: Spectrum) -> dict[str, bytes]:
    if not (shown := panels(spectrum)):
        return {}
    figure = drawn(shown)
    return {name: to_bytes(figure, name.rpartition(".")[2]) for name in PICTURES}


def save(spectrum: Spectrum, folder: str | os.PathLike[str]) -> list[Path]:
    """The files of a spectrum that was computed in Python, whose provenance is not known. See `Spectrum.save`."""
    folder = Path(folder)
    prepare_folder(folder, "folder", FILES)
    try:
        return write_report(folder, Record(spectrum))
    except OutputError as error:
        if any(not _needs_an_extra(reason) for reason in error.missing.values()):
            raise
        return error.written


def _needs_an_extra(error: Exception) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS
