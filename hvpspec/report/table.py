"""Tables as lines of text. No number is ever cut: in a narrow terminal notes are folded and names shortened instead."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from hvpspec.escaping import on_screen
from hvpspec.wording import columns_taken, shortened

_MIN_NOTE_WIDTH = 16  # columns; a note that has fewer goes to a line of its own
_MIN_NAME_WIDTH = 12  # columns; names are not shortened further


@dataclass(frozen=True)
class Row:
    """A quantity as text. error: "" where the value is a bound or a range. quantity: its key in QUANTITY_NAMES."""

    name: str
    value: str
    error: str = ""
    note: str = ""
    quantity: str = ""


@dataclass
class Table:
    """header: the headings of the columns. The first column has names, the last one remarks where `notes` is set, and
    the others have numbers, aligned to the right. gap: blanks between columns."""

    header: tuple[str, ...]
    notes: bool = False
    gap: int = 3
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        assert len(cells) == len(self.header)
        self.rows.append(tuple(map(on_screen, cells)))

    def width(self) -> int:
        """Columns it takes where nothing is folded."""
        return sum(self._widths(self._columns())) + self.gap * (len(self.header) - 1)

    def lines(self, width: int | None = None) -> list[str]:
        """The heading, then a line for each row, or several where notes are folded to keep within `width`."""
        columns = self._columns()
        widths, over = self._widths(columns), 0 if width is None else self.width() - width
        aside: Sequence[str] = [""] * len(columns[0])
        if over > 0 and self.notes:
            if widths[-1] - over >= _MIN_NOTE_WIDTH:
                widths[-1], over = widths[-1] - over, 0
            else:
                over -= widths.pop() + self.gap
                *columns, aside = columns
        if over > 0:
            widths[0] = max(widths[0] - over, min(widths[0], _MIN_NAME_WIDTH))
        folded = self.notes and len(columns) == len(self.header)
        found = []
        for cells, note in zip(zip(*columns, strict=True), aside, strict=True):
            first, *others = [shortened(cells[0], widths[0]), *cells[1:]]
            rest = textwrap.wrap(others.pop(), widths[-1]) if folded else []
            numbers = [_filled(cell, size, left=False) for cell, size in zip(others, widths[1:], strict=False)]
            line = (" " * self.gap).join([_filled(first, widths[0]), *numbers, *rest[:1]])
            found.append(line.rstrip())
            indent = " " * (sum(widths[:-1]) + self.gap * (len(widths) - 1))
            found += [indent + more for more in rest[1:]]
            if note and width is not None and note != self.header[-1]:
                found += textwrap.wrap(note, width, initial_indent="  ", subsequent_indent="  ")
        return found

    def _columns(self) -> list[Sequence[str]]:
        return [list(column) for column in zip(self.header, *self.rows, strict=True)]

    @staticmethod
    def _widths(columns: list[Sequence[str]]) -> list[int]:
        return [max(map(columns_taken, column)) for column in columns]


def _filled(cell: str, size: int, *, left: bool = True) -> str:
    blanks = " " * (size - columns_taken(cell))
    return cell + blanks if left else blanks + cell
