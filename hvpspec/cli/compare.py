"""`hvpspec compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hvpspec.atomic_files import prepare_folder, write_json, write_whole
from hvpspec.cli.console import announce, out, say, show_table, terminal_width, warn
from hvpspec.cli.options import Debug, expanded
from hvpspec.plots.comparison import plot_comparison
from hvpspec.plots.style import to_bytes
from hvpspec.runs.compare import compared, read_runs
from hvpspec.runs.compare_table import comparison_notes, comparison_tables


@expanded()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="spectrum.json files, or the folders that hold them.")
    ],
    confidence: Annotated[float, typer.Option(help="With which all differences called significant are so.")] = 0.95,
    output: Annotated[
        Path | None,
        typer.Option("--out", "--output", metavar="DIR", help="Write compare.json, compare.svg and compare.png there."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Runs side by side: what differs between the first and each of the others, with the combined error.

    The exit status is 0 whether or not they differ; --json tells which differences are significant.

    Example: [bold]hvpspec compare before/spectrum.json after/spectrum.json --out compared[/bold]
    """
    comparison = compared(read_runs(runs), confidence=confidence)
    if output is not None:
        prepare_folder(output, option="--out")
    for warning in comparison.warnings:
        warn(f"{warning}.")
    for table in comparison_tables(comparison, terminal_width()):
        show_table(table)
        out.print()
    for note in comparison_notes(comparison):
        say(note)
    paths = []
    if output is not None:
        figure = plot_comparison(comparison)
        paths = [output / name for name in ("compare.json", "compare.svg", "compare.png")]
        write_json(paths[0], comparison.to_dict())
        for path in paths[1:]:
            write_whole(path, to_bytes(figure, path.suffix[1:]))
    announce(comparison.to_dict(), *paths)
