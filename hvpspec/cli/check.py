"""`hvpspec check`: the preflight alone."""

from __future__ import annotations

import time

import typer

from hvpspec.atomic_files import prepare_folder, write_json
from hvpspec.cli.console import announce, out
from hvpspec.cli.options import Checkpoint, Debug, Options, Source, expanded
from hvpspec.cli.prepare import made_by, open_checkpoint, show_head, strictly
from hvpspec.report.terminal import findings_lines, measured_lines

CHECK_SCHEMA = "hvpspec/check/1"


@expanded()
def check(
    checkpoint: Checkpoint,
    source: Source,
    options: Options,
    debug: Debug = False,
) -> None:
    """What would go wrong, what was done about it, and what a spectrum run with these options will take.

    Exits with 2 when something is refused. Writes check.json.

    Example: [bold]hvpspec check model.pt --model train.py:build --data train.py:batches --loss cross_entropy[/bold]
    """
    start = time.perf_counter()
    options.check_refinement()
    prepare_folder(options.out)
    with strictly():
        opened = open_checkpoint(checkpoint, source, options, show=show_head(checkpoint, source))
    preflight = opened.preflight
    for line in [*findings_lines(preflight), "", *measured_lines(preflight)]:
        out.print(line, markup=False)
    provenance = made_by(opened.H, checkpoint, source, opened.loss, options, start)
    path = options.out / "check.json"
    document = {
        "schema": CHECK_SCHEMA,
        "ok": not preflight.refused,
        **preflight.to_dict(),
        "provenance": provenance.to_dict(),
    }
    write_json(path, document)
    announce(document, path)
    if preflight.refused:
        raise typer.Exit(2)
