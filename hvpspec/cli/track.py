"""`hvpspec track`: a series of checkpoints, in one table."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

import hvpspec
from hvpspec.atomic_files import prepare_folder
from hvpspec.checkpoint.formats.files import sha256
from hvpspec.cli.console import INTERRUPTED, announce, bars, err, out, progress_bar
from hvpspec.cli.options import Debug, NoPreflight, Options, Source, expanded
from hvpspec.cli.prepare import made_by, refuse, strictly
from hvpspec.errors import InputError
from hvpspec.estimators.spectrum import check_only
from hvpspec.estimators.track import FIGURES, check_series
from hvpspec.estimators.track import track as tracked
from hvpspec.objective.objective import LossValue
from hvpspec.preflight import examine, expected_loss, inspect_operator, loss_tolerance
from hvpspec.report.numbers import duration, with_error
from hvpspec.report.terminal import findings_lines
from hvpspec.runs.checkpoint_order import find_checkpoints, natural, step_in
from hvpspec.runs.series_rows import row as row_of
from hvpspec.runs.series_store import ELSEWHERE, Series


@expanded(k=5, rtol=0.05, only=list(FIGURES))
def track(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            help="Checkpoints of one model, a run's over time; a folder of them or a quoted pattern will do."
        ),
    ],
    source: Source,
    options: Options,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Learning rate: shows the edge of stability, 2 / lr.")
    ] = None,
    as_given: Annotated[
        bool, typer.Option("--as-given", help="Keep the order given; else by the numbers in the names: 2 before 10.")
    ] = False,
    measure_savings: Annotated[
        bool, typer.Option("--measure-savings", help="Do each also from a random start, for what that saves exactly.")
    ] = False,
    no_preflight: NoPreflight = False,
    debug: Debug = False,
) -> None:
    """Sharpness, trace, norm and top subspace over the checkpoints of a run, each started from the last eigenvectors.

    Writes track.csv, track.json and a figure after each checkpoint; interrupted, the same command goes on.

    Example: [bold]hvpspec track run/*.pt --model train.py:build --data train.py:batches --loss cross_entropy[/bold]
    """
    _check(options, lr)
    found = find_checkpoints(checkpoints)
    ordered = found if as_given else sorted(found, key=natural)
    prepare_folder(options.out)
    settings = json.loads(json.dumps({**dataclasses.asdict(source), **options.described(), "lr": lr}))
    settings |= {"dtype": options.dtype, "measure_savings": measure_savings}
    series = Series(options.out, settings, ordered)
    try:
        with strictly():
            _follow(series, source, options, lr, measure_savings, preflight=not no_preflight)
    except KeyboardInterrupt:
        done = f"{len(series.rows)} of {len(ordered)} checkpoints are done"
        err.print(f"hvpspec: interrupted; {done}, and the same command goes on from there.")
        raise typer.Exit(INTERRUPTED) from None
    _summarise(series)


def _check(options: Options, lr: float | None) -> None:
    """What can be refused before anything is read."""
    if lr is not None and not 0 < lr < math.inf:
        raise InputError(f"--lr {lr:g}: a learning rate is a finite number more than 0.")
    if options.refine or options.blocks:
        raise InputError("track takes no --refine and no --blocks; run hvpspec spectrum on the checkpoint of interest.")
    check_series(options.only)


def _follow(
    series: Series, source: Source, options: Options, lr: float | None, measure_savings: bool, *, preflight: bool
) -> None:
    start, done, remaining = time.perf_counter(), len(series.rows), series.remaining
    unknown = series.without_savings() if measure_savings else []
    if not remaining and not unknown:
        _show_done(series)
        series.write()
        return
    first = series.checkpoints[done - 1] if done else remaining[0]
    model, data, loss, findings = source.load(first)
    if any(finding.kind == "quantised" and finding.severity == "note" for finding in findings):
        raise InputError("the checkpoints are of a quantised model; track it as it was before quantisation.")
    H = hvpspec.HessianOperator(model, loss, data, **options.operator())
    value = H.loss()
    if done:
        _same_series(series, source, value, loss_tolerance(H.torch_dtype))
    inspected = inspect_operator(
        H, [*findings, *examine(model, H.device)], loss=value, expect=None if done else source.expect_loss,
        measure=preflight, **options.estimators(),
    )  # fmt: skip
    refuse(inspected)
    _show_done(series)
    if done:
        series.write()
    for line in findings_lines(inspected, "note"):
        err.print(line, markup=False)
    if inspected.expected_seconds is not None and remaining:
        bars.print(_foreseen(inspected.expected_seconds * len(remaining), len(remaining)))

    def described() -> dict[str, Any]:
        provenance = made_by(H, None, source, value, options, start)
        return {"done_before": done, "preflight": inspected.to_dict(), **provenance.to_dict()}

    asked = options.estimators()
    k, seed = asked.pop("k"), asked.pop("seed")
    runs = series.runs
    for number in unknown:
        row = series.rows[number]
        source.read(series.checkpoints[number], model)
        row["cold_hvps"] = row["hvps"] if number == 0 else hvpspec.spectrum(H, k, seed=seed + number, **asked).hvps
        row["hvps_saved"] = row["cold_hvps"] - row["hvps"]
        series.runs = [*runs, described()]
        series.write()
    warm = "density" not in check_only(options.only)
    with progress_bar() as show:
        operators = (_loaded(H, model, source, checkpoint, done + i) for i, checkpoint in enumerate(remaining))
        found = tracked(
            operators, k, start=series.vectors, measure_savings=measure_savings, seed=seed, first=done, callback=show,
            **asked,
        )  # fmt: skip
        for checkpoint, one in zip(remaining, found, strict=True):
            assert one.spectrum.eigenpairs is not None
            assert one.spectrum.eigenpairs.vectors is not None
            entry = row_of(
                one, checkpoint=str(checkpoint), step=step_in(checkpoint, source.trust), loss=H.loss().value, lr=lr,
                sha256=sha256(checkpoint), first=series.first_eigenvalue_hvps if warm else None,
            )  # fmt: skip
            series.runs = [*runs, described()]
            series.add(entry, one.spectrum.eigenpairs.vectors)
            out.print(_line(entry))
            left = len(series.remaining)
            if len(series.rows) == done + 1 and left:
                bars.print(_foreseen(entry["seconds"] * (1 + (measure_savings and done > 0)) * left, left))


def _same_series(series: Series, source: Source, loss: LossValue, rounding: float) -> None:
    """Whether data, loss and model are still those that the rows were made with: the last one's loss tells."""
    last, path = series.rows[-1], series.folder / "track.json"
    then = math.nan if last["loss"] is None else last["loss"]
    if not abs(loss.value - then) <= rounding * max(loss.size, abs(then)):
        raise InputError(
            f"the loss at {last['checkpoint']} is {loss.value:.9g} now and was {then:.9g} when {path} was made: data, "
            f"loss or model have changed; {ELSEWHERE}."
        )
    if source.expect_loss is not None:
        value, off = expected_loss(source.expect_loss)
        begun = series.rows[0]
        if not abs(begun["loss"] - value) <= off + rounding * max(loss.size, abs(value)):
            raise InputError(
                f"the loss at {begun['checkpoint']}, the first, was {begun['loss']:.6g}, not {source.expect_loss}; "
                "check checkpoint, data and loss."
            )


def _foreseen(seconds: float, left: int) -> str:
    return f"foreseen: about {duration(seconds)} for the {f'{left} checkpoints' if left > 1 else 'checkpoint'} to come"


def _show_done(series: Series) -> None:
    done = len(series.rows)
    out.print(f"{len(series.checkpoints)} checkpoints" + (f", {done} of them done before" if done else ""))
    out.print(_HEAD)
    for entry in series.rows:
        out.print(_line(entry))


def _loaded(
    H: hvpspec.HessianOperator, model: nn.Module, source: Source, checkpoint: Path, number: int
) -> hvpspec.HessianOperator:
    """The same operator with another checkpoint in its model: what was traced and compiled stays."""
    if number > 0:  # the first one is in it already
        source.read(checkpoint, model)
    return H


_HEAD = f"{'checkpoint':<20}{'loss':>10}{'λ_max':>11}{'± error':>9}{'trace':>11}{'overlap':>9}{'HVPs':>6}"


def _line(entry: dict[str, Any]) -> str:
    name = Path(entry["checkpoint"]).name
    name = name if len(name) < 20 else f"…{name[-18:]}"
    value, error = with_error(entry["lambda_max"], _known(entry["lambda_max_error"]))
    trace = "" if entry["trace"] is None else with_error(entry["trace"], _known(entry["trace_error"]))[0]
    overlap = "" if entry["overlap"] is None else f"{entry['overlap']:.3f}"
    return f"{name:<20}{entry['loss']:>10.5g}{value:>11.10}{error:>9}{trace:>11}{overlap:>9}{entry['hvps']:>6}"


def _known(error: float | None) -> float:
    return math.inf if error is None else error


def _summarise(series: Series) -> None:
    rows = series.rows
    out.print()
    made = sum(entry["hvps"] for entry in rows)
    seconds = sum(entry["seconds"] for entry in rows)
    out.print(f"{made} HVPs in {seconds:.1f} s")
    known = [entry for entry in rows if entry["cold_hvps"] is not None]
    warm = [entry["hvps_saved_estimate"] for entry in rows if entry.get("hvps_saved_estimate") is not None]
    if known:
        made, cold = (sum(entry[name] for entry in known) for name in ("hvps", "cold_hvps"))
        of = "" if len(known) == len(rows) else f" at {len(known)} of {len(rows)} checkpoints"
        out.print(f"from random starts{of}: {cold} HVPs; the warm starts saved {cold - made} ({1 - made / cold:.1%})")
    elif warm:
        begun = rows[0]["eigenvalue_hvps"]
        out.print(
            f"eigenvalues took {begun} HVPs at the first checkpoint, from a random start, and "
            f"{begun - sum(warm) / len(warm):.1f} on average at the others: about {sum(warm)} of {begun * len(warm)} "
            "saved, if all were like the first (an estimate; --measure-savings measures it)"
        )
    if rows[0]["edge"] is not None:
        beyond = sum(entry["lambda_max"] > entry["edge"] for entry in rows)
        out.print(f"edge of stability, 2 / lr: {rows[0]['edge']:.6g}; λ_max is beyond it in {beyond} of {len(rows)}")
    short = sum(not entry["converged"] for entry in rows)
    if short:
        out.print(
            f"{short} of {len(rows)} checkpoints did not reach the tolerance: their errors say how far each figure is. "
            "More products (--max-hvps) would narrow them."
        )
    announce(series.document(), *(series.folder / f"track.{kind}" for kind in ("json", "csv", "svg", "png")))
