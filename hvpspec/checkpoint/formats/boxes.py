"""A range of the flattened entries of a tensor, as boxes: the rest of a line, whole lines, the beginning of another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

Offsets = tuple[int, ...]
Sizes = tuple[int, ...]


class Box(NamedTuple):
    """A part of a tensor: where it begins, its size, and the flat positions in the tensor, which follow one another."""

    offsets: Offsets
    sizes: Sizes
    positions: range


def boxes(shape: Sizes, rows: range, before: Offsets = (), origin: int = 0) -> Iterator[Box]:
    """The boxes that the positions `rows` of a flattened tensor make up, in their order.

    before, origin: of the line of a larger tensor that this one is.
    """
    if not rows:
        return
    inner = math.prod(shape[1:])
    if len(shape) < 2:
        of_line = (rows.start,) if shape else ()
        sizes = (*(1 for _ in before), *((len(rows),) if shape else ()))
        yield Box((*before, *of_line), sizes, range(origin + rows.start, origin + rows.stop))
        return

    def in_line(line: int, start: int, stop: int) -> Iterator[Box]:
        return boxes(shape[1:], range(start, stop), (*before, line), origin + line * inner)

    first, last = -(-rows.start // inner), rows.stop // inner  # whole lines, from `first` to before `last`
    if first > last:
        line = last
        yield from in_line(line, rows.start - line * inner, rows.stop - line * inner)
        return
    if rows.start < first * inner:
        yield from in_line(first - 1, rows.start - (first - 1) * inner, inner)
    if first < last:
        sizes = (*(1 for _ in before), last - first, *shape[1:])
        yield Box(
            (*before, first, *(0 for _ in shape[1:])), sizes, range(origin + first * inner, origin + last * inner)
        )
    if rows.stop > last * inner:
        yield from in_line(last, 0, rows.stop - last * inner)
