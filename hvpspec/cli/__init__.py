"""The command line; the commands are in `commands`. What one needs is imported when it runs: --help needs no torch."""

from __future__ import annotations

import re
import sys
import traceback
from typing import Annotated

import typer
from typer.exceptions import TyperException

from hvpspec.cli.commands.check import check
from hvpspec.cli.commands.compare import compare
from hvpspec.cli.commands.spectrum import demo, spectrum
from hvpspec.cli.commands.track import track
from hvpspec.cli.commands.verify import verify
from hvpspec.cli.console import plain_console
from hvpspec.cli.ends import EXIT, Said, explained
from hvpspec.distributed.launch import is_under_torchrun, leads, ranks_joined
from hvpspec.errors import InputError, LostRank, OutputError
from hvpspec.escaping import on_screen
from hvpspec.system.stops import asked, stoppable
from hvpspec.system.time_limit import counting_from

_TYPER_INTERRUPTED = 130  # what it makes of a KeyboardInterrupt while it reads the arguments
COMMANDS = (spectrum, check, compare, track, verify, demo)


def examples() -> list[str]:
    """A working example of each command, as its --help has it."""
    return [
        example
        for command in COMMANDS
        for example in re.findall(r"Example: \[bold\](.*?)\[/bold\]", command.__doc__ or "", re.DOTALL)
    ]


app = typer.Typer(
    add_completion=False,
    add_help_option=False,  # see _help
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Checkpoint in, certified spectrum out: the Hessian of a PyTorch loss from Hessian-vector products.",
    epilog="\n\n".join(["One example each:", *examples(), EXIT, "NO_COLOR=1 turns colours off."]),
)
for _command in COMMANDS:
    app.command(epilog=EXIT)(_command)


def _help(context: typer.Context, asked: bool) -> None:
    """Typer's own --help, when it is not given, imports Pydantic before a command is looked at: 0.1 s."""
    if asked:
        typer.echo(context.get_help())
        raise typer.Exit


def _version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        typer.echo(f"hvpspec {metadata.version('hvpspec')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[
        bool, typer.Option("--version", metavar="", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
    asked: Annotated[
        bool, typer.Option("--help", metavar="", is_eager=True, callback=_help, help="Show this message and exit.")
    ] = False,
) -> None:
    pass


def run(arguments: list[str] | None = None, began: float | None = None) -> int:
    """Runs the command line; the exit status is as `EXIT` says. began: when, by the clock of `system.time_limit`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with stoppable(), counting_from(began):
            if not is_under_torchrun():
                return _status(arguments)
            with ranks_joined(arguments) as own:
                return 0 if own is None else _status(own)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            traceback.print_exception(error)
        if not isinstance(error, KeyboardInterrupt | InputError | OutputError | LostRank | TyperException):
            error = asked() or error  # a library that a signal interrupts, as while it is imported, fails as it likes
        message, status = explained(error)
        if leads():
            plain_console(stderr=True).print(on_screen(f"hvpspec: {message}"))
        return status


def _status(arguments: list[str]) -> int:
    status = app(args=arguments, standalone_mode=False, prog_name="hvpspec") or 0
    if status == _TYPER_INTERRUPTED and not isinstance(status, Said):
        raise asked() or KeyboardInterrupt
    return int(status)
