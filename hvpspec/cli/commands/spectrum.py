"""The commands that measure one spectrum: `hvpspec spectrum` of any checkpoint, `hvpspec demo` of the packaged one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hvpspec.cli.commands.compare import show_comparison
from hvpspec.cli.console import Screen
from hvpspec.cli.expand import expanded
from hvpspec.cli.options.flags import Checkpoint, Debug, Explain, LearningRate, Momentum, NoPreflight, check_rate
from hvpspec.cli.options.preconditioning import Preconditioning
from hvpspec.cli.options.run import Options
from hvpspec.cli.options.saving import Saving
from hvpspec.cli.options.source import Earlier, Source
from hvpspec.distributed.launch import leads
from hvpspec.system.imports import quick_imports


@expanded()
def spectrum(
    checkpoint: Checkpoint,
    source: Source,
    options: Options,
    saving: Saving,
    preconditioning: Preconditioning,
    earlier: Earlier,
    screen: Screen,
    lr: LearningRate = None,
    momentum: Momentum = None,
    no_preflight: NoPreflight = False,
    explain: Explain = False,
    debug: Debug = False,
) -> None:
    """Eigenvalues, trace, Frobenius norm and spectral density of the Hessian at a checkpoint, each with its error.

    Writes spectrum.json, a picture (SVG and PNG) and a page, report.html. If it is interrupted, the same command
    continues.

    Example: [bold]hvpspec spectrum model.pt --model train.py:build --data train.py:batches --loss cross_entropy[/bold]
    """
    preconditioning.check_momentum(momentum)
    check_rate(lr, momentum)
    with quick_imports():
        from hvpspec.cli.measure import measure

    source = source.for_checkpoint(checkpoint)
    _measure_each(
        measure, checkpoint, source, options, saving, earlier, screen,
        preflight=not no_preflight, lr=lr, momentum=momentum, explain=explain, preconditioning=preconditioning,
    )  # fmt: skip


@expanded(dtype="float64")
def demo(
    options: Options,
    saving: Saving,
    earlier: Earlier,
    screen: Screen,
    lr: LearningRate = None,
    momentum: Momentum = None,
    no_preflight: NoPreflight = False,
    explain: Explain = False,
    debug: Debug = False,
) -> None:
    """hvpspec spectrum for a checkpoint that comes with hvpspec: a small classifier of handwritten digits.

    Example: [bold]hvpspec demo --out demo-run[/bold]
    """
    check_rate(lr, momentum)
    with quick_imports():
        from hvpspec.cli.measure import measure
    from hvpspec.demo import CHECKPOINT

    source = Source(model="hvpspec.demo:build", data="hvpspec.demo:batches", loss="cross_entropy")
    _measure_each(
        measure, CHECKPOINT, source, options, saving, earlier, screen,
        preflight=not no_preflight, lr=lr, momentum=momentum, explain=explain,
    )  # fmt: skip


def _measure_each(
    measure: Callable[..., None],
    checkpoint: Path,
    source: Source,
    options: Options,
    saving: Saving,
    earlier: Earlier,
    screen: Screen,
    **more: Any,
) -> None:
    """Each matrix that is asked for; several are compared."""
    each = saving.of(options).by_matrix()
    with screen.parts() if len(each) > 1 else nullcontext():
        for one in each:
            of_one = saving.for_matrix(one, several=len(each) > 1)
            measure(checkpoint, source, one, earlier, screen, saving=of_one, **more)
            if len(each) > 1:
                screen.line()
    if len(each) > 1 and leads():
        folders = [one.out for one in each]
        show_comparison(folders, screen, options.confidence, options.out, explain=False, expected=["matrix"])
