"""What `hvpspec track` does."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from hvpspec.atomic_files import prepare_folder
from hvpspec.cli.console import Screen
from hvpspec.cli.ends import ended
from hvpspec.cli.options.preconditioning import Preconditioning
from hvpspec.cli.options.run import Options
from hvpspec.cli.options.source import Source
from hvpspec.cli.preconditioned import preconditioned
from hvpspec.cli.prepare import (
    CHECKING,
    Read,
    load,
    made_by,
    on_first_rank,
    read,
    refuse,
    shown_findings,
    trust,
    zero_hessian_refused,
)
from hvpspec.cli.provenance import shown, shown_command
from hvpspec.cli.run_folder import RunFolder
from hvpspec.errors import InputError
from hvpspec.estimators.spectrum import spectrum
from hvpspec.objective.losses.loss import LossValue
from hvpspec.operators.by_name import operator_named
from hvpspec.operators.hessian import HessianOperator
from hvpspec.operators.preconditioned import Measured
from hvpspec.preflight import Preflight, examine, expected_loss, loss_tolerance
from hvpspec.report.numbers import duration, with_error
from hvpspec.report.rows.blocks import MARK
from hvpspec.report.terminal import findings_lines
from hvpspec.results.runs.tracked import Tracked
from hvpspec.runs.checkpoint_order import find_checkpoints, natural
from hvpspec.runs.series_rows import row as row_of
from hvpspec.runs.series_store import ELSEWHERE, FILES, Series
from hvpspec.runs.track import track
from hvpspec.system.stops import check_stops, holding, stopped_by
from hvpspec.system.time_limit import OutOfTime, command_began, interruptible, time_limit


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    source: Source
    options: Options
    screen: Screen
    folder: RunFolder
    lr: float | None
    momentum: float | None = None
    measure_savings: bool = False
    preflight: bool = True
    preconditioning: Preconditioning = field(default_factory=Preconditioning)

    def operator(self, H: HessianOperator, checkpoint: Path) -> Measured:
        """What is measured at a checkpoint, whose parameters are in the model."""
        return preconditioned(H, checkpoint, self.preconditioning, trust(self.source), self.lr)

    @property
    def folders(self) -> bool:
        """Whether the files have paths with their folders."""
        return not self.options.no_paths

    def settings(self) -> dict[str, Any]:
        """What track.json says of it; a series is continued only with the same settings."""
        described = self.options.described()
        described.pop("which")  # always LM
        described.pop("time_limit", None)
        rate = {"lr": self.lr, "momentum": self.momentum}
        source = dataclasses.asdict(self.source)
        named = {name: source[name] and shown(source[name], self.folders) for name in ("model", "data", "loss")}
        settings: dict[str, Any] = json.loads(json.dumps({**source, **named, **described, **rate}))
        settings |= self.preconditioning.described()
        return settings | {"dtype": self.options.dtype, "measure_savings": self.measure_savings}


@dataclass(frozen=True)
class _Opened:
    """The model of the series in its operator, with one checkpoint's parameters, and their loss."""

    model: nn.Module
    H: HessianOperator
    loss: LossValue
    preflight: Preflight
    first: Read


def in_order(checkpoints: Sequence[Path], *, as_given: bool) -> Sequence[Path]:
    """The checkpoints that the arguments stand for. Raises InputError where one is missing."""
    found = find_checkpoints(checkpoints)
    return found if as_given else sorted(found, key=natural)


def follow(ordered: Sequence[Path], request: Request) -> None:
    """The checkpoints in order, in a table and in files that grow with each."""
    earlier = request.folder.earlier
    prepare_folder(request.options.out, files=[f"track.{kind}" for kind in FILES])
    series = Series(
        request.options.out, request.settings(), ordered, restart=earlier.restart, force=earlier.force,
        command=shown_command(["hvpspec", *sys.argv[1:]], request.folders), folders=request.folders,
    )  # fmt: skip

    def done_so_far() -> str:
        return f"{len(series.rows)} of {len(ordered)} checkpoints are done"

    try:
        with zero_hessian_refused(), time_limit(request.options.spectrum().seconds, command_began(), alarm=True):
            _continue(series, request)
    except OutOfTime:
        request.screen.note(f"the time is up: {done_so_far()}, and the same command continues from there.")
        if not series.rows:
            return
    except KeyboardInterrupt as stop:
        done = done_so_far()
        request.screen.error(f"{stopped_by(stop)}; {done}, and the same command continues from there.")
        raise ended(stop) from None
    except Exception:
        if series.rows:
            request.screen.error(f"{done_so_far()}.")
        raise
    if series.writes:
        _summarise(series, request.screen)


def _continue(series: Series, request: Request) -> None:
    """Measures what the series lacks."""
    start, screen, done = time.perf_counter(), request.screen, len(series.rows)
    without_savings = series.without_savings() if request.measure_savings else []
    if not series.remaining and not without_savings:
        _show_done(series, screen)
        series.write()
        return
    opened = _open(series, request)
    _show_done(series, screen)
    if done:
        series.write()
    for line in findings_lines(opened.preflight, "note"):
        screen.note(line)
    seconds, left = opened.preflight.expected_seconds, len(series.remaining)
    if seconds is not None and left:
        screen.note(_expected(seconds * left, left))
    earlier = series.runs

    def note_run() -> None:
        began = start - request.folder.spent_before
        provenance = made_by(opened.H, None, request.source, opened.loss, request.options, began)
        series.runs = [*earlier, {"done_before": done, "preflight": opened.preflight.to_dict(), **provenance.to_dict()}]

    for number in without_savings:
        series.rows[number] |= _savings(series, number, opened, request)
        note_run()
        with holding():
            series.write()
        check_stops()
    for checkpoint, read_then, found in _measured(series, opened, request):
        if found.spectrum.out_of_time:
            raise OutOfTime  # its products are in the journal
        note_run()
        entry = _row(checkpoint, read_then, found, opened.H, series, request)
        assert found.spectrum.eigenpairs is not None
        vectors = found.spectrum.eigenpairs.gather().vectors
        assert vectors is not None
        screen.line(_line(entry))  # first, in case it cannot be written
        with holding():
            series.add(entry, vectors)
        check_stops()
        left = len(series.remaining)
        if len(series.rows) == done + 1 and left:
            screen.note(_expected(entry["seconds"] * (1 + (request.measure_savings and done > 0)) * left, left))


def _open(series: Series, request: Request) -> _Opened:
    """The last checkpoint that is done, whose loss shows whether this is the same series; or the first."""
    source, options, done = request.source, request.options, len(series.rows)
    number = max(done - 1, 0)
    checkpoint = series.checkpoints[number]
    with interruptible():
        loaded = load(checkpoint, source, request.screen, options.seed, with_step=True)
        if done:
            series.check_unchanged(number, loaded.read.fingerprint.sha256)
        if any(finding.kind == "quantised" and finding.severity == "note" for finding in loaded.findings):
            raise InputError("the checkpoints are of a quantised model; track it as it was before quantisation.")
        operator = operator_named(options.one_matrix, loaded.loss)
        H = operator(loaded.model, loaded.loss, loaded.data, **options.operator())
        loss = H.loss()
        if done:
            _check_same_series(series, source, loss, loss_tolerance(H.torch_dtype))
    of_model = examine(loaded.model, H.device, train_mode=options.train_mode)
    findings = shown_findings([*loaded.findings, *of_model], checkpoint, options)
    expect = None if done else source.expect_loss
    with request.screen.waiting(CHECKING):
        A = request.operator(H, checkpoint)
        preflight = on_first_rank(A, findings, expect, options, loss=loss, measure=request.preflight)
    refuse(preflight)
    return _Opened(loaded.model, H, loss, preflight, loaded.read)


def _check_same_series(series: Series, source: Source, loss: LossValue, rounding: float) -> None:
    """Raises InputError where data, loss or model are no longer those of the rows, as the last one's loss shows."""
    last, path = series.rows[-1], series.folder / "track.json"
    then = math.nan if last["loss"] is None else last["loss"]
    if not abs(loss.value - then) <= rounding * max(loss.size, abs(then)):
        raise InputError(
            f"the loss at {last['checkpoint']} is {loss.value:.9g} now and was {then:.9g} when {path} was made: data, "
            f"loss or model have changed; {ELSEWHERE}."
        )
    if source.expect_loss is not None:
        value, off = expected_loss(source.expect_loss)
        first = series.rows[0]
        if not abs(first["loss"] - value) <= off + rounding * max(loss.size, abs(value)):
            raise InputError(
                f"the loss at {first['checkpoint']}, the first checkpoint, was {first['loss']:.6g}, not "
                f"{source.expect_loss}; check checkpoint, data and loss."
            )


def _savings(series: Series, number: int, opened: _Opened, request: Request) -> dict[str, int]:
    """What a random start takes at a checkpoint that is done."""
    row, folder = series.rows[number], request.folder
    digest = _read(series.checkpoints[number], opened, request).fingerprint.sha256
    series.check_unchanged(number, digest)
    if number == 0:
        return {"cold_hvps": row["hvps"], "hvps_saved": 0}
    asked = request.options.spectrum()
    asked = dataclasses.replace(asked, seed=asked.seed + number)
    A = request.operator(opened.H, series.checkpoints[number])
    folder.open_journal(A, request.source, asked, digest, number=number)
    with request.screen.progress_bar() as show:
        cold = spectrum(A, **vars(asked), journal=folder.journal, callback=show).hvps
    folder.done()
    return {"cold_hvps": cold, "hvps_saved": cold - row["hvps"]}


def _read(checkpoint: Path, opened: _Opened, request: Request) -> Read:
    """Puts a checkpoint's parameters into the model."""
    return read(checkpoint, request.source, opened.model, request.screen, with_step=True)[1]


def _measured(series: Series, opened: _Opened, request: Request) -> Iterator[tuple[Path, Read, Tracked]]:
    """The checkpoints that are not done yet, each with what was read and what was found."""
    done, remaining, folder = len(series.rows), series.remaining, request.folder
    reads: list[Read] = []

    def operators() -> Iterator[Measured]:
        """The same operator with one checkpoint after another in its model: what was traced and compiled stays."""
        for number, checkpoint in enumerate(remaining, start=done):
            # The first one is in the model already.
            with interruptible():
                reads.append(_read(checkpoint, opened, request) if number > 0 else opened.first)
                A = request.operator(opened.H, checkpoint)
            folder.open_journal(
                A, request.source, request.options.spectrum(), reads[-1].fingerprint.sha256,
                number=number, start=series.vectors,
            )  # fmt: skip
            yield A

    def which() -> str:
        return f"checkpoint {done + len(reads)} of {len(series.checkpoints)}: "

    with request.screen.progress_bar(which) as show:
        found = track(
            operators(),
            start=series.vectors,
            measure_savings=request.measure_savings,
            first=done,
            journal=lambda number: folder.journal,
            callback=show,
            **request.options.estimators(),
        )
        for number, one in enumerate(found):
            yield remaining[number], reads[number], one
            folder.done()


def _row(
    checkpoint: Path, read_then: Read, found: Tracked, H: HessianOperator, series: Series, request: Request
) -> dict[str, Any]:
    warm = not request.options.spectrum().density
    return row_of(
        found,
        checkpoint=series.named(checkpoint),
        step=read_then.step,
        loss=H.loss().value,
        lr=request.lr,
        momentum=request.momentum,
        sha256=read_then.fingerprint.sha256,
        first=series.first_eigenvalue_hvps if warm else None,
    )


def _expected(seconds: float, left: int) -> str:
    return (
        f"expected: about {duration(seconds)} for the remaining {f'{left} checkpoints' if left > 1 else 'checkpoint'}"
    )


def _show_done(series: Series, screen: Screen) -> None:
    done = len(series.rows)
    screen.line(f"{len(series.checkpoints)} checkpoints" + (f", {done} of them done before" if done else ""))
    screen.line(_HEAD)
    for entry in series.rows:
        screen.line(_line(entry))


_HEAD = f"{'checkpoint':<20}{'loss':>10}{'λ_max':>11}{'± error':>9}{'trace':>11}{'overlap':>9}{'HVPs':>6}"


def _line(entry: dict[str, Any]) -> str:
    name = Path(entry["checkpoint"]).name
    name = name if len(name) < 20 else f"…{name[-18:]}"
    value, error = with_error(entry["lambda_max"], _known(entry["lambda_max_error"]))
    error += _mark(entry, "eigenvalues")
    trace = "" if entry["trace"] is None else with_error(entry["trace"], _known(entry["trace_error"]))[0]
    trace += _mark(entry, "trace")
    overlap = "" if entry["overlap"] is None else f"{entry['overlap']:.3f}"
    return f"{name:<20}{entry['loss']:>10.5g}{value:>11.10}{error:>9}{trace:>11}{overlap:>9}{entry['hvps']:>6}"


def _mark(entry: dict[str, Any], name: str) -> str:
    """The mark of a quantity that is not within its tolerance."""
    return MARK if entry[f"{name}_converged"] is False else ""


def _known(error: float | None) -> float:
    return math.inf if error is None else error


def _summarise(series: Series, screen: Screen) -> None:
    rows = series.rows
    made, seconds = (sum(entry[name] for entry in rows) for name in ("hvps", "seconds"))
    screen.line()
    screen.line(f"{made} HVPs in {seconds:.1f} s")
    if line := _savings_line(rows):
        screen.line(line)
    known = [entry for entry in rows if entry["edge"] is not None]
    if known:
        beyond = sum(entry["lambda_max"] > entry["edge"] for entry in known)
        edges = dict.fromkeys(f"{edge:.6g}" for edge in sorted(entry["edge"] for entry in known))
        edge = " … ".join(dict.fromkeys([next(iter(edges)), list(edges)[-1]]))
        screen.line(f"edge of stability: {edge}; λ_max exceeds it at {beyond} of {len(rows)} checkpoints")
    short = sum(not entry["converged"] for entry in rows)
    if short:
        screen.line(
            f"{short} of {len(rows)} checkpoints did not reach the tolerance: the errors say how accurate each value "
            f"is, {MARK} marks λ_max and traces that it is true of. More products (--max-hvps) would narrow them."
        )
    screen.announce(series.document(), *(series.folder / f"track.{kind}" for kind in FILES))


def _savings_line(rows: Sequence[dict[str, Any]]) -> str:
    """What the warm starts have saved, as measured or estimated; nothing where neither is known."""
    known = [entry for entry in rows if entry["cold_hvps"] is not None]
    warm = [entry["hvps_saved_estimate"] for entry in rows if entry.get("hvps_saved_estimate") is not None]
    if known:
        made, cold = (sum(entry[name] for entry in known) for name in ("hvps", "cold_hvps"))
        of = "" if len(known) == len(rows) else f" at {len(known)} of {len(rows)} checkpoints"
        return f"from random starts{of}: {cold} HVPs; the warm starts saved {cold - made} ({1 - made / cold:.1%})"
    if warm:
        first = rows[0]["eigenvalue_hvps"]
        return (
            f"eigenvalues took {first} HVPs at the first checkpoint, from a random start, and "
            f"{first - sum(warm) / len(warm):.1f} on average at the others: about {sum(warm)} of {first * len(warm)} "
            "saved, if all were like the first (an estimate; --measure-savings measures it)"
        )
    return ""
