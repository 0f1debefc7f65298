"""How a command ends: what is said of an error or a signal, and the exit status."""

from __future__ import annotations

import re

import typer
from typer.exceptions import TyperException

from hvpspec.errors import InputError, OutputError
from hvpspec.escaping import in_message
from hvpspec.system.out_of_memory import LACKING_MEMORY, is_out_of_memory
from hvpspec.system.stops import exit_status, stopped_by

EXIT = (
    "Exit status: 0 done · 2 bad input, with a sentence that says what to do · 130 interrupted (143 by SIGTERM, 129 by "
    "SIGHUP) · 1 any other error."
)
_MAX_MESSAGE_LENGTH = 2000  # characters: a message of somebody's own code may quote anything


class Said(int):
    """The exit status of a stop that has been told of already: Typer gives 130 to any other, without a word."""


def ended(stop: KeyboardInterrupt) -> typer.Exit:
    """To be raised once it is said what has ended the command."""
    return typer.Exit(Said(exit_status(stop)))


def explained(error: BaseException) -> tuple[str, int]:
    """What to say of an error, in one line, and the exit status."""
    if isinstance(error, KeyboardInterrupt):
        return f"{stopped_by(error)}.", exit_status(error)
    if isinstance(error, typer.Abort):  # what Typer makes of a KeyboardInterrupt outside of a command
        stop = error.__cause__
        return explained(stop if isinstance(stop, KeyboardInterrupt) else KeyboardInterrupt())
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        command = "hvpspec" if context is None else context.command_path
        message = in_message(_in_own_words(error.format_message()).rstrip("."))
        return f"{_as_sentence(message)} {command} --help lists the options.", 2
    message = _one_line(error)
    if isinstance(error, InputError):
        return _as_sentence(message), 2
    if isinstance(error, OutputError):
        return message, 1
    if is_out_of_memory(error):
        return f"out of memory ({message}). {LACKING_MEMORY}", 1
    where = "".join(f", {note}" for note in getattr(error, "__notes__", []))
    return f"{type(error).__name__}{where}: {message} (--debug shows where)", 1


def ended_by(error: BaseException) -> str:
    """Why a run is not complete, for its files."""
    if isinstance(error, KeyboardInterrupt):
        return stopped_by(error)
    if isinstance(error, InputError):
        return f"ended by an error: {_one_line(error)}"
    return f"ended by an error: {type(error).__name__}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    message = " ".join(in_message(str(error)).split()) or type(error).__name__
    return message if len(message) <= _MAX_MESSAGE_LENGTH else f"{message[:_MAX_MESSAGE_LENGTH]} …"


def _as_sentence(message: str) -> str:
    return message if message.endswith((".", "?", "!")) else f"{message}."


def _in_own_words(message: str) -> str:
    """A message of Typer with Pydantic's words in it."""
    message = message.replace("Value error, ", "")
    for kind, ours in (("number", "a number"), ("integer", "a whole number")):
        message = re.sub(rf"Input should be a valid {kind}, .*", f"expected {ours}", message)
    return message
