"""`hvpspec check`: the preflight, without the run."""

from __future__ import annotations

import typer

from hvpspec.cli.console import Screen
from hvpspec.cli.expand import expanded
from hvpspec.cli.options.flags import Checkpoint, Debug, LearningRate, check_rate
from hvpspec.cli.options.preconditioning import Preconditioning
from hvpspec.cli.options.run import Options
from hvpspec.cli.options.source import Source
from hvpspec.system.imports import quick_imports

CHECK_SCHEMA = "hvpspec/check/1"


@expanded(without=("time_limit",), instead="give it to hvpspec spectrum, whose checks then take a third of it at most")
def check(
    checkpoint: Checkpoint,
    source: Source,
    options: Options,
    preconditioning: Preconditioning,
    screen: Screen,
    lr: LearningRate = None,
    debug: Debug = False,
) -> None:
    """Problems with model, loss or data, what was fixed, and what a spectrum run with these options will cost.

    Exits with 2 if something is refused. Writes check.json.

    Example: [bold]hvpspec check model.pt --model train.py:build --data train.py:batches --loss cross_entropy[/bold]
    """
    import dataclasses
    import time

    from hvpspec.atomic_files import prepare_folder, write_json

    with quick_imports():
        from hvpspec.cli.prepare import made_by, open_checkpoint, zero_hessian_refused
        from hvpspec.preflight.per_batch import planned_per_batch
    from hvpspec.report.terminal import findings_lines, measured_lines

    check_rate(lr)
    start, source = time.perf_counter(), source.for_checkpoint(checkpoint)
    prepare_folder(options.out, files=["check.json"])
    with zero_hessian_refused():
        opened = open_checkpoint(checkpoint, source, options, screen, preconditioning=preconditioning, lr=lr)
    preflight = opened.preflight
    for line in [*findings_lines(preflight), "", *measured_lines(preflight)]:
        screen.line(line)
    batches = planned_per_batch(opened.H.batch_count(), options.batches()) if options.per_batch else None
    if batches is not None:
        hvps = f"about {batches.expected_hvps:,} products with one batch each, at most {batches.most_hvps:,}"
        screen.line(f"and λ of {batches.batches:,} batches, whose time is included: {hvps}")
    made = made_by(
        opened.H, opened.checkpoint, source, opened.loss, options, start, lr=lr, **preconditioning.described()
    )
    path = options.out / "check.json"
    document = {
        "schema": CHECK_SCHEMA,
        "ok": not preflight.refused,
        **preflight.to_dict(),
        **({} if batches is None else {"per_batch": dataclasses.asdict(batches)}),
        "provenance": made.to_dict(),
    }
    write_json(path, document)
    screen.announce(document, path)
    if preflight.refused:
        raise typer.Exit(2)
