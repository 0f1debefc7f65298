"""Errors that one rank tells the others of, so that all of them raise the same."""

from __future__ import annotations

import json

import torch

from hvpspec.errors import InputError, LostRank
from hvpspec.system.stops import Stopped
from hvpspec.system.time_limit import OutOfTime


class PassedOn(BaseException):
    """Carries an error that all ranks know of through code that would handle it, as an engine does its own errors."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


_MARK = "\0error "  # begins what is told of an error, and nothing else that is told


def as_told(error: BaseException) -> str:
    """The error as a text from which `raised_again` makes one of the same kind."""
    return _MARK + _as_json(error)


def tells_of_error(words: str) -> bool:
    """Whether they are of `as_told`."""
    return words.startswith(_MARK)


def _as_json(error: BaseException) -> str:
    if isinstance(error, OutOfTime):
        return json.dumps(["OutOfTime", ""])
    if isinstance(error, KeyboardInterrupt):
        return json.dumps(["Stopped", str(getattr(error, "number", 2))])
    if isinstance(error, LostRank):
        return json.dumps(["LostRank", [error.rank, error.reason]])
    for kind, of in (("InputError", InputError), ("OutOfMemoryError", torch.OutOfMemoryError)):
        if isinstance(error, of):
            return json.dumps([kind, str(error)])
    return json.dumps(["RuntimeError", f"{type(error).__name__}: {error}"])


def raised_again(told: str, rank: int) -> BaseException:
    """The error that a rank has told of, with its number in the message."""
    kind, words = json.loads(told.removeprefix(_MARK))
    if kind == "OutOfTime":
        return OutOfTime()
    if kind == "Stopped":
        return Stopped(int(words))
    if kind == "LostRank":
        return LostRank(*words)
    message = f"rank {rank}: {words}"
    if kind == "InputError":
        return InputError(message)
    return torch.OutOfMemoryError(message) if kind == "OutOfMemoryError" else RuntimeError(message)
