"""The command line, one command a file: the one place that knows the whole road."""

from __future__ import annotations

import re
import sys
import traceback
from typing import Annotated

import typer
from typer.exceptions import TyperException

import hvpspec
from hvpspec.cli.check import check
from hvpspec.cli.compare import compare
from hvpspec.cli.console import INTERRUPTED, err, out
from hvpspec.cli.spectrum import demo, spectrum
from hvpspec.cli.track import track
from hvpspec.errors import InputError

COMMANDS = (spectrum, check, compare, track, demo)
EXIT = (
    "Exit status: 0 done · 2 bad input, with a sentence that says what to do · 130 interrupted · 1 anything unforeseen."
)


def examples() -> list[str]:
    """A working example of each command, as its --help has it."""
    return [
        example
        for command in COMMANDS
        for example in re.findall(r"Example: \[bold\](.*?)\[/bold\]", command.__doc__ or "", re.DOTALL)
    ]


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Checkpoint in, certified spectrum out: the Hessian of a PyTorch loss from Hessian-vector products.",
    epilog="\n\n".join(["One example each:", *examples(), EXIT, "NO_COLOR=1 turns colours off."]),
)
for _command in COMMANDS:
    app.command(epilog=EXIT)(_command)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(f"hvpspec {hvpspec.__version__}")
        raise typer.Exit


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line; the exit status: 0 done, 1 unforeseen error, 2 bad input, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return app(args=arguments, standalone_mode=False, prog_name="hvpspec") or 0
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exception(error)
        message, status = _explain(error)
        err.print(f"hvpspec: {message}", markup=False)
        return status


def _explain(error: Exception) -> tuple[str, int]:
    """What to say of an error, in one line, and the exit status."""
    if isinstance(error, typer.Abort):
        return "interrupted.", INTERRUPTED
    if isinstance(error, TyperException):
        return f"{error.format_message()} (hvpspec --help shows how)", 2
    if isinstance(error, InputError):
        return " ".join(str(error).split()), 2
    return f"{type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)", 1
