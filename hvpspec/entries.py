"""One entry of a JSON file: what it must be, and what is said where it is something else, with its path in the file.

Type hints say what kind of value an entry is; the marks below are added to them with `typing.Annotated`, and say what
a hint cannot: `Annotated[float, NonFinite(math.inf), AtLeast(0)]`.
"""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args

import numpy as np

from hvpspec.errors import InputError
from hvpspec.wording import shortened

_LARGEST, _LARGEST_COUNT = sys.float_info.max, 2**64 - 1  # JSON's numbers have no limit, and seeds are below 2**64
_JSON_NAMES = {bool: "true or false", str: "a text", dict: "an object"}


@dataclass(frozen=True)
class NonFinite:
    """Of a number, or of the numbers in an array: what null stands for. Without this mark they cannot be null."""

    value: float


@dataclass(frozen=True)
class AtLeast:
    """Of a number, or of the numbers in an array: none is smaller."""

    value: float


@dataclass(frozen=True)
class AtMost:
    """Of a number, or of the numbers in an array: none is larger."""

    value: float


@dataclass(frozen=True)
class Matching:
    """Of a text: the regular expression that all of it matches, and what that is in words."""

    pattern: str
    words: str


Count = Annotated[int, AtLeast(0)]
Size = Annotated[float, AtLeast(0)]  # an error, a duration, a norm
Share = Annotated[float, AtLeast(0), AtMost(1)]  # a probability
Sha256 = Annotated[str, Matching("[0-9a-f]{64}", "the 64 hexadecimal digits of a SHA-256")]


@dataclass(frozen=True)
class Limits:
    """What the marks around a hint say of a value. nullable: whether null stands for a number, and `null` which."""

    null: float = math.nan
    nullable: bool = False
    least: float = -math.inf
    most: float = math.inf
    text: Matching | None = None

    def with_marks(self, marks: tuple[Any, ...]) -> Limits:
        limits = self
        for mark in marks:
            match mark:
                case NonFinite(value):
                    limits = replace(limits, null=value, nullable=True)
                case AtLeast(value):
                    limits = replace(limits, least=value)
                case AtMost(value):
                    limits = replace(limits, most=value)
                case Matching():
                    limits = replace(limits, text=mark)
        return limits

    def described(self, hint: Any) -> str:
        """The numbers that are allowed, in words."""
        kind = "a whole number" if hint is int else "a number"
        if math.isfinite(self.least) and math.isfinite(self.most):
            return f"{kind} from {self.least:g} to {self.most:g}"
        kind += f" ≥ {self.least:g}" if math.isfinite(self.least) else ""
        return f"{kind}, or null" if self.nullable else kind


def unfit(path: str, expected: str, value: Any) -> InputError:
    shown = "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else None
    shown = shown or shortened(json.dumps(value, default=repr), 40)
    return InputError(f"{path}: expected {expected}; got {shown}")


def read_number(hint: Any, value: Any, path: str, limits: Limits) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | hint):
        raise unfit(path, limits.described(hint), value)
    if not limits.least <= value <= limits.most or not abs(value) <= (_LARGEST_COUNT if hint is int else _LARGEST):
        raise unfit(path, limits.described(hint), value)
    return value


def read_exactly(hint: Any, value: Any, path: str, limits: Limits) -> Any:
    if not isinstance(value, hint):
        raise unfit(path, _JSON_NAMES[hint], value)
    if limits.text is not None and not re.fullmatch(limits.text.pattern, value):
        raise unfit(path, limits.text.words, value)
    return value


def read_choice(hint: Any, value: Any, path: str, limits: Limits) -> Any:
    if not isinstance(value, str) or value not in get_args(hint):
        raise unfit(path, f"one of {', '.join(map(json.dumps, get_args(hint)))}", value)
    return value


def read_list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise unfit(path, "a list", value)
    return list(value)


def read_array(hint: Any, value: Any, path: str, limits: Limits) -> Any:
    (dtype,) = get_args(get_args(hint)[1])  # NDArray[x] is ndarray[shape, dtype[x]]
    entries: list[Any] = []
    kind = {np.bool_: bool, np.int64: int}.get(dtype, float)
    read = read_exactly if kind is bool else read_number
    if kind is int:
        limits = replace(limits, most=min(limits.most, np.iinfo(np.int64).max))
    for number, entry in enumerate(read_list(value, path)):
        null = entry is None and limits.nullable
        place = path.replace("[]", f"[{number}]") if "[]" in path else f"{path}[{number}]"
        entries.append(limits.null if null else read(kind, entry, place, limits))
    return np.array(entries, dtype)
