"""Words made to fit."""

from __future__ import annotations


def shortened(name: str, length: int) -> str:
    """Its beginning and its end, with an ellipsis between, where it is longer than that."""
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[len(name) - end :]}"


def counted(number: int, word: str) -> str:
    """ "1 eigenvalue", "2 eigenvalues"."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
