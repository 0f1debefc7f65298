"""`hvpspec compare`: runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hvpspec.cli.console import Screen
from hvpspec.cli.expand import expanded
from hvpspec.cli.options.flags import OUTPUT, Debug, Explain, option


@expanded()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Two or more spectrum.json files, or the folders that hold them."),
    ],
    screen: Screen,
    confidence: Annotated[
        float,
        typer.Option(help="Probability that all differences marked as significant are real."),
    ] = 0.95,
    output: Annotated[
        Path | None,
        option(OUTPUT, "Write compare.json, compare.svg and compare.png there.", "--out", "--output", metavar="DIR"),
    ] = None,
    explain: Explain = False,
    debug: Debug = False,
) -> None:
    """Runs side by side: how each differs from the first, and which differences exceed the combined error.

    The exit status is 0 whether or not they differ; --json says which differences are significant.

    Example: [bold]hvpspec compare before/spectrum.json after/spectrum.json --out compared[/bold]
    """
    show_comparison(runs, screen, confidence, output, explain=explain)


def show_comparison(
    runs: Sequence[Path],
    screen: Screen,
    confidence: float,
    output: Path | None,
    *,
    explain: bool,
    expected: Sequence[str] = (),
) -> None:
    """Prints what differs between runs, and writes it to a folder.

    expected: what they differ in on purpose, of which nothing is said.
    """
    from hvpspec.atomic_files import prepare_folder, write_json, write_whole
    from hvpspec.plots.comparison import plot_comparison
    from hvpspec.plots.style import to_bytes
    from hvpspec.runs.compare import compared, read_runs
    from hvpspec.runs.compare_table import comparison_explanations, comparison_notes, comparison_tables

    names = ("compare.json", "compare.svg", "compare.png")
    comparison = compared(read_runs(runs), confidence=confidence, expected=expected)
    if output is not None:
        prepare_folder(output, files=names)
    for warning in comparison.warnings:
        screen.warning(f"{warning}.")
    for table in comparison_tables(comparison, screen.width):
        screen.table(table)
        screen.line()
    explained = ["", "What the figures mean:", *comparison_explanations(comparison)] if explain else []
    for note in [*comparison_notes(comparison), *explained]:
        screen.sentence(note)
    paths = []
    if output is not None:
        picture = plot_comparison(comparison)
        paths = [output / name for name in names]
        write_json(paths[0], comparison.to_dict())
        for path in paths[1:]:
            write_whole(path, to_bytes(picture, path.suffix[1:]))
    screen.announce(comparison.to_dict(), *paths)
