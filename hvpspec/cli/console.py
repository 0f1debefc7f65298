"""What a command says and where: results on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from hvpspec.cli.progress import Outlook, current_estimate
from hvpspec.escaping import on_lines
from hvpspec.system.time_limit import clock

if TYPE_CHECKING:
    from hvpspec.report.table import Table
    from hvpspec.report.terminal import Section
    from hvpspec.results.spectrum import Progress

_SECONDS_BETWEEN_LINES = 60.0  # of progress, where stderr is no terminal
_SECONDS_BEFORE_A_BAR = 3.0  # what is over sooner needs none


def plain_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that shows a text as it is: rich adds no colours, line breaks, markup or pictures of its own."""
    return Console(stderr=stderr, quiet=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)


class Screen:
    """The two streams as one command sees them; `screen_for` makes one."""

    def __init__(self, *, quiet: bool = False, json_stream: TextIO | None = None) -> None:
        self._out = plain_console(quiet=quiet or json_stream is not None)
        self._err = plain_console(stderr=True, quiet=quiet)
        self._errors = plain_console(stderr=True)
        self._json_stream = json_stream
        self._minute = _Minute(self.note)
        self._parts = False

    def line(self, text: str = "", *, style: str | None = None) -> None:
        """One line on stdout, however long."""
        self._out.print(on_lines(text), style=style)

    def sentence(self, text: str) -> None:
        """Wrapped where a terminal shows it; one line where a script reads it."""
        from hvpspec.report.terminal import wrapped

        self.line("\n".join(wrapped(text, self.width)))

    def table(self, table: Table) -> None:
        """Folded to the terminal's width; one line for each row where a script reads it."""
        heading, *lines = table.lines(self.width)
        self.line(heading, style="bold")
        for line in lines:
            self.line(line)

    def sections(self, sections: Sequence[Section]) -> None:
        """A report, with a blank line between its sections."""
        for number, section in enumerate(sections):
            if number:
                self.line()
            if section.table is not None:
                self.table(section.table)
            for note in section.notes:
                self.sentence(note)

    def note(self, text: str) -> None:
        """One line on stderr: what belongs to the course of the run and not to its results."""
        self._err.print(on_lines(text))

    def warning(self, message: object) -> None:
        """A warning, on stderr."""
        self.note(f"hvpspec: warning: {message}")

    def error(self, message: str) -> None:
        """An error, on stderr, even with --quiet."""
        self._errors.print(on_lines(f"hvpspec: {message}"))

    def insist(self) -> None:
        """Prints from now on even with --quiet: what would be lost otherwise."""
        self._out.quiet = self._json_stream is not None

    def announce(self, document: dict[str, Any], *paths: Path) -> None:
        """Says what was written where; with --json, prints the document instead."""
        if self._json_stream is not None and not self._parts:
            print(json.dumps(document, indent=2, allow_nan=False), file=self._json_stream, flush=True)
        if paths:
            self.line(f"written to {paths[0]}")
        if paths[1:]:
            folder = paths[0].parent
            names = (path.name if path.parent == folder else str(path) for path in paths[1:])
            self.line(f"also written: {', '.join(names)}")

    @contextlib.contextmanager
    def parts(self) -> Iterator[None]:
        """What is announced meanwhile is part of a document that follows: with --json, that alone is printed."""
        self._parts = True
        try:
            yield
        finally:
            self._parts = False

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None where stdout is not one, so that lines are for scripts."""
        return self._out.width if self._out.is_terminal else None

    @property
    def shows_progress(self) -> bool:
        """Whether there is a progress bar: stderr is a terminal, and --quiet was not given."""
        return self._err.is_terminal and not self._err.quiet

    @contextlib.contextmanager
    def progress_bar(self, about: Callable[[], str] = lambda: "") -> Iterator[Callable[[Progress], None]]:
        """A bar with the products made, the current estimate and the time left; without a terminal, a line a minute.

        about: what the run is of, where there are several.
        """
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        from hvpspec.report.numbers import duration

        names = ("count", "estimate", "pace", "left", "end")
        texts = [TextColumn(f"{{task.fields[{name}]}}") for name in names]
        bar = Bar(
            TextColumn("{task.description}"), BarColumn(bar_width=12), *texts,
            console=self._err, transient=True, disable=not self.shows_progress,
        )  # fmt: skip
        fields: dict[str, Any] = dict.fromkeys(names, "")
        task, outlook = bar.add_task("", total=None, **fields), Outlook()

        def show(step: Progress) -> None:
            outlook.follow(step)
            if not self.shows_progress:
                self._minute.say(lambda: f"{about()}{outlook.line(step)}")
                return
            left = "" if math.isnan(outlook.left) else f"{duration(outlook.left)} left"
            bar.update(
                task, description=f"{about()}{step.stage}", completed=step.hvps, total=outlook.expected,
                count=f"{outlook.count} HVPs", estimate=current_estimate(step), pace=outlook.pace, left=left,
                end=outlook.end,
            )  # fmt: skip

        with bar:
            yield show

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Says once in a while that something goes on, whose end is not known, and for how long it has."""
        from rich.progress import Progress as Bar
        from rich.progress import TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), TimeElapsedColumn())
        bar = Bar(*columns, console=self._err, transient=True, disable=not self.shows_progress)
        bar.add_task(what)
        over, began = threading.Event(), clock()

        def show() -> None:
            if over.wait(_SECONDS_BEFORE_A_BAR if self.shows_progress else _SECONDS_BETWEEN_LINES):
                return
            if self.shows_progress:
                bar.start()
                return
            while True:
                self.note(f"{what}: {clock() - began:.0f} s so far")
                if over.wait(_SECONDS_BETWEEN_LINES):
                    return

        thread = threading.Thread(target=show, name="hvpspec-waiting", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            bar.stop()


class _Minute:
    """Says something at most once a minute, and not in the first one."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._last = say, clock()

    def say(self, text: Callable[[], str]) -> None:
        if clock() >= self._last + _SECONDS_BETWEEN_LINES:
            self._last = clock()
            self._say(text())


@contextlib.contextmanager
def screen_for(*, as_json: bool, quiet: bool) -> Iterator[Screen]:
    """The screen of one command.

    as_json: nothing goes to stdout but what `announce` is given; what the user's own code prints goes to stderr.
    quiet: nothing is printed but errors, and with `as_json` the document.
    """
    if not as_json:
        yield Screen(quiet=quiet)
        return
    screen = Screen(quiet=quiet, json_stream=sys.stdout)
    with contextlib.redirect_stdout(sys.stderr):
        yield screen
