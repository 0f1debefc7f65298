"""How options are declared, and those that several commands take. No torch and no NumPy: --help needs none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hvpspec.errors import InputError

SOURCE = "Checkpoint and data"
WANTED = "Quantities"
ACCURACY = "Accuracy and budget"
ENGINE = "Engine and memory"
OUTPUT = "Output"


def option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    """An option of that panel of --help."""
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel)


def flag(panel: str, text: str, *names: str) -> Any:
    """An option without a value; --help shows no type for it."""
    return option(panel, text, *names, metavar="")


def alternatives(names: Sequence[str]) -> str:
    """ "a, b or c"."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


AsJson = Annotated[
    bool,
    flag(OUTPUT, "Print the document as JSON on stdout, and nothing else there.", "--json"),
]
Quiet = Annotated[bool, flag(OUTPUT, "Print nothing but errors.", "--quiet", "-q")]
Debug = Annotated[bool, flag(OUTPUT, "Show the traceback of an error.", "--debug")]
Explain = Annotated[bool, flag(OUTPUT, "Say in plain words what each quantity means.", "--explain")]

Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint, file or directory, in any of the usual formats.")]
NoPreflight = Annotated[
    bool,
    flag(ACCURACY, "Skip the checks that cost products (hvpspec check shows them).", "--no-preflight"),
]
LearningRate = Annotated[
    float | None,
    option(WANTED, "Learning rate: compare λ_max with the edge of stability, 2 / lr.", "--lr"),
]
Momentum = Annotated[
    float | None,
    option(WANTED, "Heavy-ball momentum β: the edge of stability is then (2 + 2β) / lr. Needs --lr.", "--momentum"),
]


def check_rate(lr: float | None, momentum: float | None = None) -> None:
    """Raises InputError for a learning rate or momentum that no optimizer can have."""
    if lr is not None and not 0 < lr < float("inf"):
        raise InputError(f"--lr must be a finite number > 0; got {lr:g}.")
    if momentum is not None and not 0 <= momentum < 1:
        raise InputError(f"--momentum must be a number ≥ 0 and < 1; got {momentum:g}.")
    if momentum is not None and lr is None:
        raise InputError("--momentum needs a learning rate as well: add --lr.")


def flag_name(name: str) -> str:
    """What the command line calls an option: "max_hvps" → "--max-hvps"."""
    return "-k" if name == "k" else f"--{name.replace('_', '-')}"
