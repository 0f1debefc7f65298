"""Names, lists and counts as messages have them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def shortened(name: str, length: int) -> str:
    """Its beginning and its end, with an ellipsis between, where it is longer than that."""
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[len(name) - end :]}"


def listed(names: Iterable[str], most: int = 10) -> str:
    """ "a, b and 3 more"."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(number: int, word: str) -> str:
    """ "1 eigenvalue", "2 eigenvalues"."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32"."""
    return str(dtype).removeprefix("torch.")
