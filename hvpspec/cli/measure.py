"""What `hvpspec spectrum` and `hvpspec demo` do."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from hvpspec.atomic_files import prepare_folder, write_json
from hvpspec.cli.console import Screen
from hvpspec.cli.ends import ended, ended_by, explained
from hvpspec.cli.options.preconditioning import Preconditioning
from hvpspec.cli.options.run import Options
from hvpspec.cli.options.saving import Saving
from hvpspec.cli.options.source import Earlier, Source
from hvpspec.cli.prepare import Opened, made_by, open_checkpoint, refuse, zero_hessian_refused
from hvpspec.cli.run_folder import RunFolder, held, inputs_in
from hvpspec.distributed.launch import inherits, leads
from hvpspec.errors import InputError, OutputError
from hvpspec.estimators.batches import per_batch
from hvpspec.estimators.spectrum import spectrum
from hvpspec.memory import readable
from hvpspec.options import EIGENVALUE_KINDS
from hvpspec.report.documents import to_document
from hvpspec.report.notes import draw_notes
from hvpspec.report.numbers import QUANTITY_NAMES, duration
from hvpspec.report.tensor_files import save_vectors
from hvpspec.report.terminal import expected_costs, findings_lines, report_sections, worst_case
from hvpspec.report.write_report import FILES, write_report
from hvpspec.results.parts import Batches
from hvpspec.results.preflight import Preflight
from hvpspec.results.record import Record
from hvpspec.results.spectrum import Progress, Spectrum
from hvpspec.system.out_of_memory import forget_frames
from hvpspec.system.stops import Stopped, check_stops, holding, stopped_by, when_unheard
from hvpspec.system.time_limit import OutOfTime, command_began, time_left, time_limit
from hvpspec.wording import counted

_MUCH_MORE = 1.5  # times the products expected so far: an expectation that grows by this factor is worth a line
_SECONDS_TO_REPORT, _SHARE_TO_REPORT = 1.5, 0.1  # of a time limit, at most, for pictures and files
_MUCH_DISK = 64 << 20  # bytes: a smaller journal is not worth a line


@dataclasses.dataclass(frozen=True)
class _Request:
    """What was asked for, and when the command began, by time.perf_counter; earlier by what was spent before."""

    source: Source
    options: Options
    lr: float | None
    momentum: float | None
    preconditioning: Preconditioning
    saving: Saving
    start: float

    def record(self, opened: Opened, found: Spectrum) -> Record:
        """All that is known, for the files."""
        provenance = made_by(
            opened.H, opened.checkpoint, self.source, opened.loss, self.options, self.start,
            lr=self.lr, momentum=self.momentum, **self.preconditioning.described(),
        )  # fmt: skip
        return Record(found, opened.loss.value, opened.preflight, provenance)


def measure(
    checkpoint: Path,
    source: Source,
    options: Options,
    earlier: Earlier,
    screen: Screen,
    *,
    preflight: bool,
    lr: float | None,
    momentum: float | None,
    explain: bool,
    preconditioning: Preconditioning | None = None,
    saving: Saving | None = None,
) -> None:
    """From a checkpoint to spectrum.json.

    Where a signal or an error ends the run, what is known by then is shown and written, marked incomplete.
    """
    request = _Request(
        source, options, lr, momentum, preconditioning or Preconditioning(), saving or Saving(), time.perf_counter()
    )
    allowed = options.spectrum().seconds
    if allowed is not None:
        allowed -= min(_SECONDS_TO_REPORT, _SHARE_TO_REPORT * allowed)
    with held(options.out, earlier, screen) as folder, time_limit(allowed, command_began(), alarm=True):
        _measure(checkpoint, request, screen, folder, preflight=preflight, explain=explain)


def _measure(
    checkpoint: Path, request: _Request, screen: Screen, folder: RunFolder, *, preflight: bool, explain: bool
) -> None:
    source, options = request.source, request.options
    prepare_folder(options.out, files=FILES)
    folder.vectors = request.saving.paths()
    course: _Course | None = None
    end: BaseException | None = None
    with contextlib.ExitStack() as held:
        try:
            with zero_hessian_refused():
                opened = open_checkpoint(
                    checkpoint, source, options, screen, measure=preflight, folder=folder,
                    preconditioning=request.preconditioning, lr=request.lr,
                )  # fmt: skip
                refuse(opened.preflight)
                _show_findings(opened.preflight, screen)
                request = dataclasses.replace(request, start=request.start - folder.spent_before)
                course = _Course(opened, request, screen, folder)
                course.run()
            held.enter_context(holding())
        except BaseException as error:  # sys.exit() in somebody's code included
            held.enter_context(holding())
            inherits(error)
            if course is None or course.known_by(error) is None:
                if isinstance(error, OutOfTime):
                    raise InputError(
                        f"--time-limit {options.time_limit} was over before the loss on the data was known, and "
                        f"{_nothing_written(folder.home)}; allow more time."
                    ) from None
                if not isinstance(error, KeyboardInterrupt):
                    raise
                where = _nothing_written(folder.home)
                screen.error(f"{stopped_by(error)} before the first figure was known; {where}.")
                raise ended(error) from None
            forget_frames(error)  # frees what the product held
            end = error
        found = course.known_by(end)
        assert found is not None
        record = request.record(opened, found)
        if not leads():
            return _end_elsewhere(record, request, opened, screen, folder, end)
        figures = partial(_show_figures, record, request, opened, screen, explain=explain)
        paths, failure = _written(folder.home, record, figures)
        if _goes_on(opened, failure, end):
            failure = _save_vectors(record, request, opened, screen, paths, alone=end is not None)
        _remove_journal(folder, found, failure, end)
    _show_files(record, paths, screen)
    if end is not None and failure is not None:
        screen.error(explained(failure)[0])
    _end_with(end or failure)


def _end_with(reason: BaseException | None) -> None:
    """Ends the command, once all is said and written."""
    if isinstance(reason, KeyboardInterrupt):
        raise ended(reason)
    if reason is not None:
        raise reason


def _end_elsewhere(
    record: Record, request: _Request, opened: Opened, screen: Screen, folder: RunFolder, end: BaseException | None
) -> None:
    """On other ranks than the first, which says and writes all but their parts of the eigenvectors."""
    if end is None and _goes_on(opened, None, end):
        _save_vectors(record, request, opened, screen, [])
    _remove_journal(folder, record.spectrum, None, end)
    _end_with(end)


def _goes_on(opened: Opened, failure: OutputError | None, end: BaseException | None) -> bool:
    """Whether eigenvectors are saved after the report: on all ranks, or on none of them."""
    ranks = opened.H.ranks
    return failure is None if ranks is None or end is not None else bool(ranks.group.agreed(failure is None))


def _remove_journal(folder: RunFolder, found: Spectrum, failure: OutputError | None, end: BaseException | None) -> None:
    """Unless the same command, or one that has more time, is to go on from there."""
    goes_on = found.out_of_time and found.hvps > 0
    if found.complete and not goes_on:
        folder.done(failure is None, ended=end is not None)


def _written(folder: Path, record: Record, show: Callable[[bool], None]) -> tuple[list[Path], OutputError | None]:
    """The paths of the files, and what could not be written. show: see `write_report`."""
    try:
        return write_report(folder, record, show), None
    except OutputError as error:
        return error.written, error


def _save_vectors(
    record: Record, request: _Request, opened: Opened, screen: Screen, paths: list[Path], *, alone: bool = False
) -> OutputError | None:
    """Writes the vectors that are known, and adds their paths; what could not be written.

    alone: other ranks may have ended, and with them their parts of the eigenvectors.
    """
    saving, failure, pairs = request.saving, None, record.spectrum.eigenpairs
    lost = alone and pairs is not None and pairs.shard is not None
    wanted = (saving.save_diagonal if leads() else None, None if lost else saving.save_eigenvectors)
    try:
        for path in save_vectors(record, opened.H.parameters, *wanted, inputs_in(record.provenance)):
            paths.append(path)
    except OutputError as error:
        failure = error
    why = "other ranks may have ended with their parts of it" if lost else "it was not known by then"
    for name, path in saving.paths().items() if failure is None else ():
        if path not in paths:
            screen.error(f"{name} {path}: not written, as {why}.")
    return failure


def _nothing_written(folder: Path) -> str:
    path = folder / "spectrum.json"
    return f"nothing was written ({path} is of an earlier run)" if path.exists() else "nothing was written"


def _show_figures(
    record: Record, request: _Request, opened: Opened, screen: Screen, saved: bool, *, explain: bool
) -> None:
    """Prints the tables. saved: whether the figures are in a file."""
    options = request.options
    if not saved:
        screen.insist()
    sections = report_sections(
        record.spectrum, rtol=options.rtol, tol=options.tol, lr=request.lr, momentum=request.momentum, explain=explain
    )
    screen.sections(sections)
    for note in draw_notes(record):
        screen.sentence(note)
    screen.sentence(f"engine: {opened.H.plan}")


def _show_files(record: Record, paths: Sequence[Path], screen: Screen) -> None:
    """Prints where the files are."""
    found = record.spectrum
    try:
        screen.announce(to_document(record), *paths)
        if found.complete:
            check_stops()
    except KeyboardInterrupt as stop:
        which = "all figures are known" if found.complete else "what was known by then is saved"
        where = f"written: {', '.join(map(str, paths))}" if paths else "no file could be written"
        screen.error(f"{stopped_by(stop)} after the last product: {which}; {where}.")
        raise ended(stop) from None


def _show_findings(preflight: Preflight, screen: Screen) -> None:
    """What is worth knowing of model and data, and what eval mode changes: not what was fixed exactly."""
    notes = findings_lines(preflight, "note")
    if preflight.eval_mode:
        notes.append(preflight.eval_mode)
    for line in [*notes, ""] if notes else []:
        screen.line(line)


class _Course:
    """The course of a run: what is known so far, and how many products the user expects."""

    def __init__(self, opened: Opened, request: _Request, screen: Screen, folder: RunFolder) -> None:
        self.opened, self.request, self.options, self.screen = opened, request, request.options, screen
        self.journal, self.home = folder.journal, folder.home
        self.show: Callable[[Progress], None] = lambda step: None
        self.known: Spectrum | None = None
        self.expected = opened.preflight.expected_hvps or 0

    def run(self) -> None:
        """Makes the products, with a progress bar."""
        with self.screen.progress_bar() as self.show, when_unheard(self.save):
            self.known = spectrum(
                self.opened.A, **self.options.estimators(), journal=self.journal, callback=self.follow
            )
            if self.options.per_batch:
                self._measure_batches(self.known)

    def _measure_batches(self, found: Spectrum) -> None:
        """The matrices of single batches, whose products are counted by themselves."""
        began, options = time.perf_counter(), self.options
        self.known = dataclasses.replace(found, complete=False)
        asked = options.batches()
        budget = asked.budget(min(self.opened.H.batch_count(), asked.max_batches))

        def follow(batches: Batches) -> None:
            check_stops()
            seconds = found.seconds + time.perf_counter() - began
            self.known = dataclasses.replace(found, per_batch=batches, complete=False, seconds=seconds)
            done = max(len(batches.batches), 1)
            expected = min(math.ceil(batches.hvps * batches.asked / done), budget)
            self.show(Progress(f"batches {len(batches.batches)}/{batches.asked}", batches.hvps, expected, self.known))

        batches = per_batch(
            self.opened.A, **vars(asked), pairs=found.eigenpairs, basis_memory=options.basis_memory,
            basis_on=options.basis_on, journal=self.journal, callback=follow,
        )  # fmt: skip
        seconds, late = found.seconds + time.perf_counter() - began, found.out_of_time or batches.out_of_time
        self.known = dataclasses.replace(found, per_batch=batches, seconds=seconds, out_of_time=late)

    def known_by(self, end: BaseException | None) -> Spectrum | None:
        """What was known when that ended the run; None before the first product."""
        if self.known is None or self.known.complete:
            return self.known
        if self.known.hvps == 0:
            return None
        return dataclasses.replace(self.known, stopped=None if end is None else ended_by(end))

    def save(self, stop: Stopped) -> None:
        """While a library's call goes on: whoever has sent the signal may not wait for its end."""
        if (inherits(stop) or leads()) and (known := self.known_by(stop)) is not None:
            write_json(self.home / "spectrum.json", to_document(self.request.record(self.opened, known)))
            self.screen.error(f"{stopped_by(stop)}: what is known is saved; waiting for an operation to end.")

    def follow(self, step: Progress) -> None:
        check_stops()
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
        if options.per_batch:
            parts.append(self._batches_planned())
        if options.diagonal:
            parts.append("diagonal")
        if options.refine:
            parts.append(f"the eigenvalue nearest to {-options.damping:g}")
        self.screen.sentence(f"plan: {', '.join(parts)}")
        budget = f"--max-hvps {options.max_hvps:,}"
        if options.time_limit is not None:
            budget += f", --time-limit {options.time_limit}"
        if options.diagonal:
            budget += f", --diagonal-hvps {options.diagonal_hvps:,}"
        if options.refine:
            budget += f", --refine-hvps {options.refine_hvps:,}"
        if options.block_density:
            budget += f", --block-hvps {options.block_hvps:,}"
        expected = f"expected: about {step.expected:,} HVPs ({budget}){expected_costs(preflight)}"
        if too_many := (affordable := self._affordable()) < (step.expected or 0):
            expected += f"; there is time for about {affordable:,.0f}"
        self.screen.sentence(expected)
        if not too_many and (worst := worst_case(preflight)):
            self.screen.line(f"          {worst}")
        self._show_journal()
        self.screen.line()

    def _batches_planned(self) -> str:
        asked, of = self.options.batches(), self.opened.H.batch_count()
        many = min(of, asked.max_batches)
        named = ("" if many == of else f"{many:,} of ") + counted(of, "batch", "batches")
        return f"λ of {named}, each by itself (up to {asked.budget(many):,} products with one batch each)"

    def _affordable(self) -> float:
        """HVPs that there is time for, judging by the preflight."""
        seconds, hvps = self.opened.preflight.expected_seconds, self.opened.preflight.expected_hvps
        return max(time_left(), 0.0) / seconds * hvps if seconds and hvps else math.inf

    def _show_journal(self) -> None:
        """How much the journal will take, where that is worth a line; it is given up where the disk lacks the room."""
        if self.journal is None:
            return
        products = int(min(self.expected, self._affordable()))
        self.journal.plan(products, self.opened.H.shape[0] * self.opened.H.torch_dtype.itemsize)
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
