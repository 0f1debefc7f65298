"""`hvpspec track`: a series of checkpoints, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hvpspec.cli.console import Screen
from hvpspec.cli.expand import expanded
from hvpspec.cli.options.flags import ACCURACY, SOURCE, Debug, LearningRate, Momentum, NoPreflight, check_rate, flag
from hvpspec.cli.options.preconditioning import Preconditioning
from hvpspec.cli.options.run import Options
from hvpspec.cli.options.source import Earlier, Source
from hvpspec.errors import InputError
from hvpspec.options import SERIES_QUANTITIES
from hvpspec.system.imports import quick_imports


@expanded(
    without=(
        "optimizer",
        "which",
        "blocks",
        "block_density",
        "block_hvps",
        "per_batch",
        "batch_hvps",
        "refine",
        "refine_hvps",
        "diagonal",
        "diagonal_rtol",
        "diagonal_hvps",
    ),
    instead="run hvpspec spectrum on the checkpoint of interest",
    k=5,
    rtol=0.05,
    only=list(SERIES_QUANTITIES),
)
def track(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            help="Checkpoints of one model over the course of its training: files, a folder of them, or a quoted "
            "pattern."
        ),
    ],
    source: Source,
    options: Options,
    preconditioning: Preconditioning,
    earlier: Earlier,
    screen: Screen,
    lr: LearningRate = None,
    momentum: Momentum = None,
    as_given: Annotated[
        bool,
        flag(
            SOURCE,
            "Keep the checkpoints in the order given; by default they are sorted by the numbers in their names, 2 "
            "before 10.",
            "--as-given",
        ),
    ] = False,
    measure_savings: Annotated[
        bool,
        flag(
            ACCURACY,
            "Measure each checkpoint from a random start as well, to measure what the warm starts save.",
            "--measure-savings",
        ),
    ] = False,
    no_preflight: NoPreflight = False,
    debug: Debug = False,
) -> None:
    """Sharpness, trace, norm and top eigenspace over the checkpoints of a run; each starts from the last eigenvectors.

    Writes track.csv, track.json and a picture after each checkpoint. If it is interrupted, the same command continues.

    Example: [bold]hvpspec track run/*.pt --model train.py:build --data train.py:batches --loss cross_entropy[/bold]
    """
    preconditioning.check_momentum(momentum)
    check_rate(lr, momentum)
    if not options.spectrum().pairs:
        raise InputError("track needs the eigenvalues: add --only eigenvalues.")
    from hvpspec.cli.run_folder import held

    with quick_imports():
        from hvpspec.cli.series import Request, follow, in_order

    ordered = in_order(checkpoints, as_given=as_given)
    source = source.for_checkpoint(ordered[0])
    with held(options.out, earlier, screen) as folder:
        request = Request(
            source, options, screen, folder, lr, momentum, measure_savings, preflight=not no_preflight,
            preconditioning=preconditioning,
        )  # fmt: skip
        follow(ordered, request)
