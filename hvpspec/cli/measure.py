"""What `hvpspec spectrum` and `hvpspec demo` do."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable
from pathlib import Path

import typer

from hvpspec.cli.console import INTERRUPTED, Screen
from hvpspec.cli.options import Options, Source
from hvpspec.cli.prepare import Opened, made_by, open_checkpoint, refuse, zero_hessian_refused
from hvpspec.cli.run_folder import RunFolder
from hvpspec.estimators.spectrum import spectrum
from hvpspec.krylov.journal import Journal
from hvpspec.memory import readable
from hvpspec.options import EIGENVALUE_KINDS
from hvpspec.report.documents import to_document
from hvpspec.report.numbers import QUANTITY_NAMES, duration
from hvpspec.report.terminal import expected_costs, findings_lines, report_sections, worst_case
from hvpspec.report.write_report import write_report
from hvpspec.results.preflight import Preflight
from hvpspec.results.record import Record
from hvpspec.results.spectrum import Progress, Spectrum
from hvpspec.wording import counted

_MUCH_MORE = 1.5  # times the products expected so far: an expectation that grows by this factor is worth a line
_MUCH_DISK = 64 << 20  # bytes: a smaller journal is not worth a line


def measure(
    checkpoint: Path,
    source: Source,
    options: Options,
    screen: Screen,
    folder: RunFolder,
    *,
    preflight: bool,
    lr: float | None,
    momentum: float | None,
    explain: bool,
) -> None:
    """From a checkpoint to spectrum.json. On Ctrl-C, what is known by then is written and marked incomplete."""
    start = time.perf_counter()
    try:
        with zero_hessian_refused():
            opened = open_checkpoint(checkpoint, source, options, screen, measure=preflight, folder=folder)
            refuse(opened.preflight)
            _show_findings(opened.preflight, screen)
            found = _spectrum(opened, options, screen, folder.journal)
    except KeyboardInterrupt:
        screen.error("interrupted before the first figure was known; nothing was written.")
        raise typer.Exit(INTERRUPTED) from None
    provenance = made_by(opened.H, opened.checkpoint, source, opened.loss, options, start, lr=lr, momentum=momentum)
    record = Record(found, opened.loss.value, opened.preflight, provenance)
    paths = write_report(options.out, record)
    if found.complete:
        folder.done()
    sections = report_sections(found, rtol=options.rtol, tol=options.tol, lr=lr, momentum=momentum, explain=explain)
    screen.sections(sections)
    screen.sentence(f"engine: {opened.H.plan}")
    screen.announce(to_document(record), *paths)
    if not found.complete:
        raise typer.Exit(INTERRUPTED)


def _show_findings(preflight: Preflight, screen: Screen) -> None:
    """What is worth knowing of model and data, and what eval mode changes: not what was fixed exactly."""
    notes = findings_lines(preflight, "note")
    if preflight.eval_mode:
        notes.append(preflight.eval_mode)
    for line in [*notes, ""] if notes else []:
        screen.line(line)


def _spectrum(opened: Opened, options: Options, screen: Screen, journal: Journal | None) -> Spectrum:
    """The spectrum, with a progress bar; what was known by then when Ctrl-C comes after the first product."""
    with screen.progress_bar() as show:
        course = _Course(opened, options, screen, show, journal)
        try:
            return spectrum(opened.H, **options.estimators(), journal=journal, callback=course.follow)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is known is about to be saved: let that finish
            if course.known is None or course.known.hvps == 0:
                raise
            return course.known


class _Course:
    """The course of a run: what is known so far, and how many products the user expects."""

    def __init__(
        self,
        opened: Opened,
        options: Options,
        screen: Screen,
        show: Callable[[Progress], None],
        journal: Journal | None,
    ) -> None:
        self.opened, self.options, self.screen, self.show, self.journal = opened, options, screen, show, journal
        self.known: Spectrum | None = None
        self.expected = opened.preflight.expected_hvps or 0

    def follow(self, step: Progress) -> None:
        if self.known is None:
            step = dataclasses.replace(step, expected=self.expected or step.expected)
            self.expected = step.expected or 0
            self._show_plan(step)
        elif step.stage == "trace and norm" and (step.expected or 0) > _MUCH_MORE * self.expected:
            self.expected = step.expected or 0
            self._show_more(step)
        self.known = step.spectrum
        self.show(step)

    def _show_plan(self, step: Progress) -> None:
        options, preflight = self.options, self.opened.preflight
        parts = [self._named(name) for name in step.spectrum.asked]
        if self.opened.blocks:
            parts.append(counted(self.opened.blocks, "block"))
        if options.refine:
            parts.append(f"the eigenvalue nearest to {-options.damping:g}")
        self.screen.sentence(f"plan: {', '.join(parts)}")
        budget = f"--max-hvps {options.max_hvps:,}"
        if options.refine:
            budget += f", --refine-hvps {options.refine_hvps:,}"
        self.screen.sentence(f"expected: about {step.expected:,} HVPs ({budget}){expected_costs(preflight)}")
        if worst := worst_case(preflight):
            self.screen.line(f"          {worst}")
        self._show_journal()
        self.screen.line()

    def _show_journal(self) -> None:
        """How much the journal will take, where that is worth a line; it is given up where the disk lacks the room."""
        if self.journal is None:
            return
        self.journal.plan(self.expected, self.opened.H.shape[0] * self.opened.H.torch_dtype.itemsize)
        if self.journal.is_open and self.journal.expected_bytes >= _MUCH_DISK:
            size = readable(self.journal.expected_bytes)
            self.screen.sentence(f"journal: about {size} in {self.journal.folder}, until the run has ended well")

    def _named(self, quantity: str) -> str:
        if quantity != "eigenvalues":
            return QUANTITY_NAMES[quantity]
        which = self.options.which
        kind = "eigenvalue" if which == "LM" else EIGENVALUE_KINDS[which].removesuffix("s")
        return counted(self.options.k, kind)

    def _show_more(self, step: Progress) -> None:
        """What the first probes have shown: next to the progress bar, as it is not part of the results."""
        if not self.screen.shows_progress:
            return
        assert step.expected is not None
        left = duration(self.opened.H.expected_seconds(step.expected - step.hvps))
        self.screen.note(
            f"now expected: about {step.expected:,} HVPs in all, {left} more, judging by the first random probes"
        )
