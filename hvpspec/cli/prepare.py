"""The first half of every command's road: from a checkpoint to an operator that has passed its preflight."""

from __future__ import annotations

import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvpspec
from hvpspec.cli.console import out
from hvpspec.cli.options import Options, Source
from hvpspec.cli.provenance import describe
from hvpspec.errors import InputError, ZeroHessianWarning
from hvpspec.krylov.blocks import find_groups
from hvpspec.objective.objective import LossValue
from hvpspec.preflight import Preflight, examine, inspect_operator
from hvpspec.results.record import Provenance


@dataclass(frozen=True)
class Opened:
    """An operator, the loss on its data, what the preflight says, and how many groups of parameters were asked for."""

    H: hvpspec.HessianOperator
    loss: LossValue
    preflight: Preflight
    blocks: int = 0


def open_checkpoint(
    checkpoint: Path, source: Source, options: Options, *, measure: bool = True, show: Callable[[Any, LossValue], None]
) -> Opened:
    """Loads, shows operator and loss, and inspects. What is refused is in the preflight; the caller refuses.

    measure: also what takes products and gradients.
    """
    model, data, loss, findings = source.load(checkpoint)
    H = hvpspec.HessianOperator(model, loss, data, **options.operator())
    blocks = find_groups(H, options.blocks) if options.blocks else ()  # a glob that fits nothing: before any product
    findings += examine(model, H.device)
    value = H.loss()
    show(H, value)
    preflight = inspect_operator(
        H, findings, loss=value, expect=source.expect_loss, measure=measure, **options.estimators()
    )
    return Opened(H, value, preflight, len(blocks))


def show_head(checkpoint: Path, source: Source) -> Callable[[hvpspec.HessianOperator, LossValue], None]:
    """Prints what was loaded, and its loss: a wrongly loaded model shows there."""

    def show(H: hvpspec.HessianOperator, loss: LossValue) -> None:
        out.print(f"{checkpoint.name} · {H.parameters.n:,} parameters · {H.dtype.name} on {H.device}")
        batches = f"{loss.batches} batch" + ("es" if loss.batches > 1 else "")
        out.print(f"loss on the data: {loss.value:.6g} ({source.loss}, {batches}, total weight {loss.weight:,.10g})")
        out.print()

    return show


def made_by(
    H: hvpspec.HessianOperator, checkpoint: Path | None, source: Source, loss: LossValue, options: Options, start: float
) -> Provenance:
    """The `provenance` of what this command writes; start: when it began, by time.perf_counter."""
    return describe(
        H,
        checkpoint=checkpoint,
        sources=dataclasses.asdict(source),
        loss=loss,
        options=options.described(),
        command=["hvpspec", *sys.argv[1:]],
        seconds=time.perf_counter() - start,
    )


def refuse(preflight: Preflight) -> None:
    """Raises InputError with what the preflight refuses, if anything."""
    if preflight.refused:
        raise InputError("; ".join(str(finding) for finding in preflight.refused) + ".")


@contextmanager
def strictly() -> Iterator[None]:
    """A zero Hessian, here, is a model that was loaded or written wrongly: an error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ZeroHessianWarning)
            yield
    except ZeroHessianWarning as warning:
        raise InputError(str(warning)) from warning
