"""The commands that measure one spectrum: `hvpspec spectrum` on any checkpoint, `hvpspec demo` on the packaged one."""

from __future__ import annotations

import dataclasses
import signal
import time
from pathlib import Path

import typer

import hvpspec
from hvpspec import demo as demo_files
from hvpspec.atomic_files import prepare_folder
from hvpspec.cli.console import INTERRUPTED, announce, bars, err, out, progress_bar, say, show_table
from hvpspec.cli.options import Checkpoint, Debug, NoPreflight, Options, Source, expanded
from hvpspec.cli.prepare import Opened, made_by, open_checkpoint, refuse, show_head, strictly
from hvpspec.report.documents import to_document
from hvpspec.report.numbers import duration
from hvpspec.report.terminal import expected_costs, findings_lines, report_sections, worst_case
from hvpspec.report.write_report import write_report
from hvpspec.results.record import Record
from hvpspec.results.spectrum import Progress as Step
from hvpspec.results.spectrum import Spectrum
from hvpspec.wording import counted

_MUCH_MORE = 1.5  # times what was foreseen: worth a line


@expanded()
def spectrum(
    checkpoint: Checkpoint,
    source: Source,
    options: Options,
    no_preflight: NoPreflight = False,
    debug: Debug = False,
) -> None:
    """Top eigenvalues, trace, Frobenius norm and spectral density of the Hessian at a checkpoint, with their errors.

    Example: [bold]hvpspec spectrum model.pt --model train.py:build --data train.py:batches --loss cross_entropy[/bold]
    """
    _run(checkpoint, source, options, preflight=not no_preflight)


@expanded(dtype="float64")
def demo(options: Options, no_preflight: NoPreflight = False, debug: Debug = False) -> None:
    """The same on a checkpoint that comes with hvpspec: a small classifier of handwritten digits.

    Example: [bold]hvpspec demo --out demo-run[/bold]
    """
    source = Source(model="hvpspec.demo:build", data="hvpspec.demo:batches", loss="cross_entropy")
    _run(demo_files.CHECKPOINT, source, options, preflight=not no_preflight)


def _run(checkpoint: Path, source: Source, options: Options, *, preflight: bool) -> None:
    """The road from a checkpoint to spectrum.json. On Ctrl-C, what is known goes the same way, marked incomplete."""
    try:
        with strictly():
            _measure(checkpoint, source, options, preflight)
    except KeyboardInterrupt:
        err.print("hvpspec: interrupted before the first figure was known; nothing was written.")
        raise typer.Exit(INTERRUPTED) from None


def _measure(checkpoint: Path, source: Source, options: Options, preflight: bool) -> None:
    start = time.perf_counter()
    options.check_refinement()
    prepare_folder(options.out)
    opened = open_checkpoint(checkpoint, source, options, measure=preflight, show=show_head(checkpoint, source))
    refuse(opened.preflight)
    H = opened.H
    if notes := findings_lines(opened.preflight, "note"):
        out.print("\n".join([*notes, ""]), markup=False)

    known: Spectrum | None = None
    told = opened.preflight.expected_hvps or 0
    with progress_bar() as show:

        def follow(step: Step) -> None:
            nonlocal known, told
            if known is None:
                step = dataclasses.replace(step, expected=told or step.expected)
                told = step.expected or 0
                _print_plan(step, options, opened)
            elif step.stage == "trace and norm" and (step.expected or 0) > _MUCH_MORE * told:
                told = step.expected or 0
                _print_more(step, H)
            known = step.spectrum
            show(step)

        try:
            known = hvpspec.spectrum(H, **options.estimators(), callback=follow)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is known is about to be saved: let that finish
            if known is None or known.hvps == 0:
                raise
    provenance = made_by(H, checkpoint, source, opened.loss, options, start)
    record = Record(known, opened.loss.value, opened.preflight, provenance)
    paths = write_report(options.out, record)
    for number, section in enumerate(report_sections(known, rtol=options.rtol, tol=options.tol)):
        if number:
            out.print()
        if section.table is not None:
            show_table(section.table)
        for note in section.notes:
            say(note)
    say(f"engine: {H.plan}")
    announce(to_document(record), *paths)
    if not known.complete:
        raise typer.Exit(INTERRUPTED)


def _print_plan(step: Step, options: Options, opened: Opened) -> None:
    figures = [
        counted(options.k, "eigenvalue") if name == "eigenvalues" else name.replace("_", " ").replace("frob", "Frob")
        for name in step.spectrum.asked
    ]
    if opened.blocks:
        figures.append(counted(opened.blocks, "block"))
    if options.refine:
        figures.append(f"the eigenvalue nearest to {-options.damping:g}")
    say(f"plan: {', '.join(figures)}")
    budget = f"--max-hvps {options.max_hvps:,}" + (f", --refine-hvps {options.refine_hvps:,}" if options.refine else "")
    say(f"foreseen: about {step.expected:,} HVPs ({budget}){expected_costs(opened.preflight)}")
    if worst := worst_case(opened.preflight):
        out.print(f"          {worst}")
    out.print()


def _print_more(step: Step, H: hvpspec.HessianOperator) -> None:
    """What the first probes have shown: beside the bar, where there is one, as it is no part of the outcome."""
    if not bars.is_terminal:
        return
    assert step.expected is not None
    left = H.expected_seconds(step.expected - step.hvps)
    bars.print(f"foreseen now: about {step.expected:,} HVPs in all, {duration(left)} more; much of the trace is left")
