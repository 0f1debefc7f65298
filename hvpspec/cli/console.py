"""The two consoles, and the progress bar on the second."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hvpspec.report.numbers import with_error
from hvpspec.report.table import Table
from hvpspec.results.spectrum import Progress as Step

INTERRUPTED = 130  # the exit status after Ctrl-C

# soft_wrap: a path or sentence is one line for a script to read, however wide the terminal.
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
bars = Console(stderr=True, highlight=False, soft_wrap=True)  # what --quiet silences on stderr: progress and warnings

_scripts: TextIO | None = None  # where --json goes


@contextlib.contextmanager
def speaking(*, as_json: bool, quiet: bool) -> Iterator[None]:
    """as_json: nothing goes to stdout but what `announce` is given; what the user's own code prints goes to stderr.
    quiet: nothing is printed but errors."""
    global _scripts
    with contextlib.ExitStack() as stack:
        if as_json:
            _scripts = sys.stdout
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        out.quiet = as_json or quiet
        bars.quiet = quiet
        try:
            yield
        finally:
            _scripts, out.quiet, bars.quiet = None, False, False


def announce(document: dict[str, Any], *paths: Path) -> None:
    """Says what was written where; with --json, prints the document instead."""
    if _scripts is not None:
        print(json.dumps(document, indent=2, allow_nan=False), file=_scripts, flush=True)
    if paths:
        out.print(f"written to {paths[0]}", markup=False)
    if paths[1:]:
        out.print(f"beside it: {', '.join(path.name for path in paths[1:])}", markup=False)


def say(sentence: str) -> None:
    """Wrapped where a terminal shows it; one line where a script reads it."""
    width = terminal_width()
    lines = [sentence] if width is None else textwrap.wrap(sentence, min(width, 80), subsequent_indent="  ")
    out.print("\n".join(lines), markup=False)


def show_table(table: Table) -> None:
    """Folded to a terminal's width; a line a row where a script reads it."""
    heading, *lines = table.lines(terminal_width())
    out.print(heading, markup=False, style="bold")
    for line in lines:
        out.print(line, markup=False)


def terminal_width() -> int | None:
    """Columns of the terminal; None where stdout is none, and lines are for scripts."""
    return out.width if out.is_terminal else None


def warn(message: object) -> None:
    """A warning, on stderr."""
    bars.print(f"hvpspec: warning: {message}", markup=False)


@contextlib.contextmanager
def progress_bar() -> Iterator[Any]:
    """A bar with products done, the current estimate and the time left; nothing where stderr is no terminal."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[count]} HVPs"),
        TextColumn("{task.fields[figure]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=bars,
        transient=True,
        disable=not bars.is_terminal or bars.quiet,
    )
    task = bar.add_task("", total=None, count="0", figure="")
    expected: int | None = None

    def show(step: Step) -> None:
        nonlocal expected
        expected = step.expected or expected
        count = f"{step.hvps}/{expected}" if expected else str(step.hvps)
        bar.update(
            task, description=step.stage, completed=step.hvps, total=expected, count=count, figure=_current(step)
        )

    with bar:
        yield show


def _current(step: Step) -> str:
    known = step.spectrum
    if known.trace is not None:
        value, error = with_error(known.trace.value, known.trace.error)
        return f"trace {value} ± {error}"
    if known.eigenpairs is not None:
        value, error = with_error(float(known.eigenpairs.values[0]), float(known.eigenpairs.error[0]))
        return f"λ1 {value} ± {error}"
    return ""
