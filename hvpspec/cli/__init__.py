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
from hvpspec.cli.console import INTERRUPTED, plain_console
from hvpspec.errors import InputError
from hvpspec.escaping import in_message, on_screen

COMMANDS = (spectrum, check, compare, track, verify, demo)
EXIT = "Exit status: 0 done · 2 bad input, with a sentence that says what to do · 130 interrupted · 1 any other error."


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


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line; the exit status: 0 done, 2 bad input, 130 interrupted, 1 any other error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return app(args=arguments, standalone_mode=False, prog_name="hvpspec") or 0
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exception(error)
        message, status = _explain(error)
        plain_console(stderr=True).print(on_screen(f"hvpspec: {message}"))
        return status


def _as_sentence(message: str) -> str:
    return message if message.endswith((".", "?", "!")) else f"{message}."


def _in_own_words(message: str) -> str:
    """A message of Typer with Pydantic's words in it."""
    message = message.replace("Value error, ", "")
    for kind, ours in (("number", "a number"), ("integer", "a whole number")):
        message = re.sub(rf"Input should be a valid {kind}, .*", f"expected {ours}", message)
    return message


def _explain(error: Exception) -> tuple[str, int]:
    """What to say of an error, in one line, and the exit status."""
    if isinstance(error, typer.Abort):
        return "interrupted.", INTERRUPTED
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        command = "hvpspec" if context is None else context.command_path
        message = in_message(_in_own_words(error.format_message()).rstrip("."))
        return f"{_as_sentence(message)} {command} --help lists the options.", 2
    message = " ".join(in_message(str(error)).split())
    if isinstance(error, InputError):
        return _as_sentence(message), 2
    return f"{type(error).__name__}: {message} (--debug shows where)", 1
