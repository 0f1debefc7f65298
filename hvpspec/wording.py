"""Names, lists and numbers as messages show them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def shortened(name: str, length: int) -> str:
    """The beginning and the end of a name that is longer than `length`, with an ellipsis between them."""
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[len(name) - end :]}"


def listed(names: Iterable[str], most: int = 10) -> str:
    """ "a, b and 3 more"."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def abridged(values: Sequence[float], most: int = 4) -> str:
    """The first numbers, to five digits: "[3.2, -1.5, … 8 more]"."""
    shown = [f"{value:.5g}" for value in values[:most]]
    if len(values) > most:
        shown.append(f"… {len(values) - most} more")
    return f"[{', '.join(shown)}]"


def counted(number: int, word: str, several: str | None = None) -> str:
    """ "1 eigenvalue", "2 eigenvalues"; several: the plural, where it does not end with an s alone."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {several or word + 's'}"


def a_kind(value: object) -> str:
    """The type of a value with its article: "a float", "an ndarray"."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' or name == 'ndarray' else 'a'} {name}"


def percent(confidence: float) -> str:
    """A probability as a reader has it: "95 %"."""
    return f"{100 * confidence:g} %"


def two_digits_percent(share: float) -> str:
    """A relative difference: "33 %", "0.0012 %"."""
    return percent(float(f"{share:.2g}"))


def columns_taken(text: str) -> int:
    """Columns that a text takes on a terminal: two for a wide character, none for a combining one."""
    marks = ("Mn", "Me", "Cf")
    return sum(
        0 if unicodedata.category(letter) in marks else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def device_name(device: torch.device) -> str:
    """ "cpu", or "cuda:0 (NVIDIA H100)"."""
    import torch  # here, not above: the command line words its help without torch, which takes seconds

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32"."""
    return str(dtype).removeprefix("torch.")
