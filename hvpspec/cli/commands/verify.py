"""`hvpspec verify`: whether a spectrum.json is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hvpspec.cli.console import Screen
from hvpspec.cli.expand import expanded
from hvpspec.cli.options.flags import ENGINE, SOURCE, Debug, flag, option
from hvpspec.options import Engine
from hvpspec.system.imports import quick_imports


@expanded()
def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A spectrum.json, or the folder that holds it.")],
    screen: Screen,
    checkpoint: Annotated[Path | None, option(SOURCE, "Where the checkpoint is now, if it has moved.")] = None,
    optimizer: Annotated[Path | None, option(SOURCE, "Where the optimizer's state is now, if it has moved.")] = None,
    model: Annotated[str | None, option(SOURCE, "Instead of the recorded one.", metavar="FILE:FUNCTION")] = None,
    data: Annotated[str | None, option(SOURCE, "Instead of the recorded one.", metavar="FILE:FUNCTION")] = None,
    loss: Annotated[str | None, option(SOURCE, "Instead of the recorded one.", metavar="LOSS")] = None,
    key: Annotated[str | None, option(SOURCE, "Where in the checkpoint the state dict is nested.")] = None,
    allow_class: Annotated[
        list[str] | None,
        option(SOURCE, "As for hvpspec spectrum; not taken from the file.", "--allow-class", metavar="CLASS"),
    ] = None,
    trust_pickle: Annotated[
        bool, flag(SOURCE, "As for hvpspec spectrum; not taken from the file.", "--trust-pickle")
    ] = False,
    freeze_data: Annotated[
        bool, flag(SOURCE, "As for hvpspec spectrum; not taken from the file.", "--freeze-data")
    ] = False,
    engine: Annotated[Engine, option(ENGINE, "How a product is computed; any engine will do.")] = "auto",
    device: Annotated[str | None, option(ENGINE, "cpu, cuda and so on; by default the model's own.")] = None,
    debug: Debug = False,
) -> None:
    """Whether a spectrum.json is what it says: its figures, checkpoint and loss, the gradient, and two fresh products.

    Model, data and loss are those that the file names, if they are in this folder. Exits with 2 if something differs.

    Example: [bold]hvpspec verify before/spectrum.json[/bold]
    """
    with quick_imports():
        from hvpspec.cli.verification import Given, verified

    given = Given(checkpoint, model, data, loss, key, allow_class, trust_pickle, freeze_data, engine, device, optimizer)
    screen.announce(verified(run, given, screen))
