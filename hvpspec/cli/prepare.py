"""The first half of every command: from a checkpoint to an operator that has passed its preflight."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hvpspec.checkpoint.fingerprint import Fingerprint, fingerprinted
from hvpspec.checkpoint.formats.torch_pickle import Trust
from hvpspec.checkpoint.load import load_checkpoint
from hvpspec.cli.console import Screen
from hvpspec.cli.options.preconditioning import Preconditioning
from hvpspec.cli.options.run import Options
from hvpspec.cli.options.source import Source
from hvpspec.cli.preconditioned import preconditioned
from hvpspec.cli.provenance import checkpoint_file, data_source, describe, shown, tensors_sha256
from hvpspec.cli.run_folder import RunFolder
from hvpspec.cli.user_code import import_module, load_data, load_loss, load_model
from hvpspec.distributed.launch import leads
from hvpspec.errors import CheckpointWarning, InputError, ZeroHessianWarning
from hvpspec.krylov.blocks import find_blocks
from hvpspec.krylov.log.journal import Journal
from hvpspec.krylov.operator_view import preconditioned_by
from hvpspec.objective.batches import frozen
from hvpspec.objective.losses.loss import LossValue
from hvpspec.objective.subsets.sampled_batches import FirstBatches, WatchedBatches, has_length, sample_batches
from hvpspec.operators.by_name import operator_named
from hvpspec.operators.hessian import HessianOperator
from hvpspec.operators.preconditioned import Measured, PreconditionedOverData
from hvpspec.options import MATRIX_NAMES
from hvpspec.preflight import Finding, Preflight, count_parameters, examine, inspect_operator, make_differentiable
from hvpspec.preflight.of_ranks import exchange_seconds, on_ranks
from hvpspec.preflight.per_batch import planned_per_batch, with_per_batch
from hvpspec.report.rows.condition import edge_note
from hvpspec.results.record import CheckpointFile, Provenance
from hvpspec.runs.checkpoint_order import step_in
from hvpspec.system.time_limit import interruptible
from hvpspec.wording import counted

CHECKING = "checking model, loss and data"
_RAN_CODE = ("pickle", "program")  # kinds of warnings that code of the checkpoint was run


@dataclass(frozen=True)
class Loaded:
    """The model with the checkpoint's parameters, data and loss, and what is known already of file and model.

    read: what is known of the checkpoint that was read, which may be replaced from then on.
    """

    model: nn.Module
    data: Any
    loss: Any
    findings: list[Finding]
    read: Read


@dataclass(frozen=True)
class Read:
    """A checkpoint as it was when it was read; its training step where that is asked for and known."""

    fingerprint: Fingerprint
    step: int | None = None


@dataclass(frozen=True)
class Opened:
    """An operator, the checkpoint in it, the loss on its data, the preflight, and how many blocks were asked for.

    A: what is measured, H itself or H preconditioned.
    """

    H: HessianOperator
    A: Measured
    checkpoint: CheckpointFile
    loss: LossValue
    preflight: Preflight
    blocks: int = 0


def load(checkpoint: Path, source: Source, screen: Screen, seed: int, *, with_step: bool = False) -> Loaded:
    """Everything that the options name. seed: of the draw of batches."""
    loss = load_loss(source.loss or "")
    built = load_model(source.model) if source.model is not None else None
    found: list[Finding] = []

    def note(warning: CheckpointWarning) -> None:
        found.append(Finding(warning.kind, warning.found, warning.done, "note"))
        if warning.kind in _RAN_CODE:
            screen.warning(warning)  # at once: code was run, and what follows may fail

    model, was_read = read(checkpoint, source, built, screen, note, with_step=with_step)
    model, findings = make_differentiable(model)
    if built is None:
        _refuse_frozen(checkpoint, model)
    return Loaded(model, _data(source, screen, seed), loss, [*found, *findings], was_read)


def _data(source: Source, screen: Screen, seed: int) -> Any:
    """All batches, or those that are drawn."""
    data = load_data(source.data)
    if source.max_batches is not None:
        data = FirstBatches(data, source.max_batches)
    elif not has_length(data):
        data = WatchedBatches(data, screen.note)
    if source.batches is None:
        return frozen(data) if source.freeze_data else data
    drawn = sample_batches(data, source.batches, seed=seed)
    if len(drawn) == drawn.of:
        screen.note(f"--batches {source.batches:,}: the data have {drawn.of:,}, and all are used.")
        return frozen(data) if source.freeze_data else data
    return drawn.frozen() if source.freeze_data else drawn


def _refuse_frozen(checkpoint: Path, model: nn.Module) -> None:
    """A model that comes with its checkpoint may be frozen as a whole, as for inference."""
    parameters = list(model.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        raise InputError(
            f"{checkpoint}: all {len(parameters)} parameter tensors of its model are frozen (requires_grad is False), "
            "so that there is nothing to differentiate with respect to; name a function with --model FILE:FUNCTION "
            "that builds the network, or loads it, and calls requires_grad_() on its parameters."
        )


def read(
    checkpoint: Path,
    source: Source,
    model: nn.Module | None,
    screen: Screen,
    note: Callable[[CheckpointWarning], None] | None = None,
    *,
    with_step: bool = False,
) -> tuple[nn.Module, Read]:
    """The checkpoint's parameters in the model, or in the checkpoint's own, and what was read.

    note: takes what the reader warns of. with_step: reads the training step as well.
    """

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if note is not None and isinstance(message, CheckpointWarning):
            note(message)
        else:
            screen.warning(message)

    with fingerprinted(checkpoint) as fingerprint, warnings.catch_warnings():
        warnings.simplefilter("always", CheckpointWarning)
        warnings.showwarning = show
        loaded = load_checkpoint(
            checkpoint,
            model,
            key=source.key,
            allow_classes=source.allow_class or (),
            trust_pickle=source.trust_pickle,
            main_modules=trust(source).main_modules,
        )
        step = step_in(checkpoint, trust(source)) if with_step else None
    return loaded, Read(fingerprint, step)


def trust(source: Source) -> Trust:
    """What the checkpoint may hold. Its classes may be defined where the user's functions are."""
    loss = source.loss if ":" in (source.loss or "") else None
    named = ((source.model, "--model"), (source.data, "--data"), (loss, "--loss"))
    modules = dict.fromkeys(import_module(spec, option) for spec, option in named if spec is not None)
    return Trust(tuple(source.allow_class or ()), source.trust_pickle, tuple(modules))


def open_checkpoint(
    checkpoint: Path,
    source: Source,
    options: Options,
    screen: Screen,
    *,
    measure: bool = True,
    folder: RunFolder | None = None,
    preconditioning: Preconditioning | None = None,
    lr: float | None = None,
) -> Opened:
    """Loads, shows operator and loss, and inspects. What is refused is in the preflight; the caller refuses.

    measure: make the checks that cost products and gradients as well. folder: where the result goes, if what is there
    is to be compared, and a journal kept. preconditioning, lr: of the optimizer, where it preconditions the matrix.
    """
    with interruptible():
        loaded = load(checkpoint, source, screen, options.seed)
        tensors = tensors_sha256(loaded.model)  # now: the operator may convert them
        operator = operator_named(options.one_matrix, loaded.loss)
        H = operator(loaded.model, loaded.loss, loaded.data, **options.operator())
        A = preconditioned(H, checkpoint, preconditioning, trust(source), lr)
        # Blocks first: a pattern that matches nothing is refused before any product.
        blocks = find_blocks(H, options.blocks) if options.blocks else ()
        findings = [*loaded.findings, *examine(loaded.model, H.device, train_mode=options.train_mode)]
        findings = shown_findings(findings, checkpoint, options)
        loss = H.loss()
    _show_head(checkpoint, source, H, loss, screen)
    _show_optimizer(A, screen)
    file = checkpoint_file(checkpoint, source.key, loaded.read.fingerprint, tensors)
    if folder is not None:
        more = preconditioning.described() if preconditioning is not None else {}
        folder.check_result(made_by(H, file, source, loss, options, time.perf_counter(), **more))
        folder.open_journal(A, source, options.spectrum(), file.sha256, loss=loss)

    def inspected() -> Preflight:
        with screen.waiting(CHECKING):
            return on_first_rank(A, findings, source.expect_loss, options, loss=loss, measure=measure)

    preflight = inspected() if folder is None or folder.journal is None else recorded(folder.journal, H, inspected)
    return Opened(H, A, file, loss, preflight, len(blocks))


def recorded(journal: Journal, H: HessianOperator, inspected: Callable[[], Preflight]) -> Preflight:
    """The preflight, from the journal of an interrupted run if that has it; one that refuses is not recorded."""
    resumed = journal.replaying

    def find() -> dict[str, Any]:
        preflight = inspected()
        refuse(preflight)
        return preflight.to_dict()

    preflight = Preflight.from_dict(journal.fact("preflight", find))
    if resumed:
        H.verified()  # by the process that made the preflight
    return preflight


def shown_findings(findings: list[Finding], checkpoint: Path, options: Options) -> list[Finding]:
    """The findings, which name the checkpoint without its folder if none are to be in the files."""
    if not options.no_paths:
        return findings
    named = [
        tuple(text.replace(str(checkpoint), checkpoint.name) for text in (finding.found, finding.done))
        for finding in findings
    ]
    return [
        dataclasses.replace(finding, found=found, done=done)
        for finding, (found, done) in zip(findings, named, strict=True)
    ]


def on_first_rank(
    A: Measured, findings: list[Finding], expect: str | None, options: Options, *, loss: LossValue, measure: bool
) -> Preflight:
    """The preflight. Of ranks, the first one makes it with its own batches, whose products cost what a run's do, but
    for what ranks send one another."""
    H = A.A if isinstance(A, PreconditionedOverData) else A
    if H.ranks is None:
        return inspect(H, findings, expect, options, loss=loss, measure=measure, of=A)

    def find() -> dict[str, Any]:
        if not leads():
            return {}
        judged = inspect(H.alone(), findings, expect, options, loss=loss, measure=False)
        if judged.refused or not measure:
            return judged.to_dict()
        found = inspect(H.alone(), findings, None, options, loss=None, measure=True, of=A.alone())
        return dataclasses.replace(found, loss=loss.value).to_dict()

    group = H.ranks.group
    found = Preflight.from_dict(group.agreed(group.together(find)))
    return found if found.seconds is None else on_ranks(found, group.size, exchange_seconds(H))


def inspect(
    H: HessianOperator,
    findings: list[Finding],
    expect: str | None,
    options: Options,
    *,
    loss: LossValue | None,
    measure: bool,
    of: Measured | None = None,
) -> Preflight:
    """The preflight of a run with these options. of: what it is of, where that is H preconditioned."""
    found = inspect_operator(
        H, findings, loss=loss, expect=expect, measure=measure, options=options.spectrum(),
        preconditioned=of if isinstance(of, PreconditionedOverData) else None,
    )  # fmt: skip
    if not options.per_batch:
        return found
    asked = options.batches()
    of_rank = dataclasses.replace(asked, max_batches=math.ceil(asked.max_batches / H.sharing))
    return with_per_batch(found, planned_per_batch(H.batch_count(), of_rank))


def _show_head(checkpoint: Path, source: Source, H: HessianOperator, loss: LossValue, screen: Screen) -> None:
    """Prints what was loaded, and its loss: a model that was loaded wrongly shows there."""
    count = count_parameters(H.objective.model, H.parameters.n)
    of = "" if H.matrix == "hessian" else f" · {MATRIX_NAMES[H.matrix]}"
    screen.line(f"{checkpoint.name} · {count} · {H.dtype.name} on {H.device}{of}")
    batches = data_source(H, source.data, loss).counted_batches
    how = ["sum"] * (H.objective.reduction == "sum") + ["training mode"] * H.objective.train_mode
    said = ", ".join([source.loss or "", *how, batches or "", _weight(loss)])
    screen.line(f"loss on the data: {loss.value:.6g} ({said})")
    screen.line()


def _show_optimizer(A: Measured, screen: Screen) -> None:
    """Prints what preconditions the matrix, which the optimizer's file may say in another way than the user thinks."""
    if (by := preconditioned_by(A)) is not None:
        screen.sentence(f"preconditioned by {edge_note(by)}")
        screen.line()


def _weight(loss: LossValue) -> str:
    """ "512 samples" where each sample counts once."""
    if loss.samples is not None and loss.weight == loss.samples:
        return counted(loss.samples, "sample")
    return f"weights sum to {loss.weight:,.10g}"


def made_by(
    H: HessianOperator,
    checkpoint: CheckpointFile | None,
    source: Source,
    loss: LossValue,
    options: Options,
    start: float,
    **more: Any,
) -> Provenance:
    """The `provenance` of what this command writes. start: when it began, by time.perf_counter.

    more: further options; those that are None were not given.
    """
    if H.objective.reduction == "sum":
        more["reduction"] = "sum"  # also where the criterion says so
    more["max_batches"] = source.max_batches
    given = {name: value for name, value in more.items() if value is not None}
    if "optimizer" in given:
        given["optimizer"] = shown(given["optimizer"], not options.no_paths)
    return describe(
        H,
        checkpoint=checkpoint,
        sources=dataclasses.asdict(source),
        loss=loss,
        options={**options.described(), **given},
        command=["hvpspec", *sys.argv[1:]],
        seconds=time.perf_counter() - start,
        folders=not options.no_paths,
    )


def refuse(preflight: Preflight) -> None:
    """Raises InputError with what the preflight refuses, if anything."""
    if preflight.refused:
        raise InputError("; ".join(str(finding) for finding in preflight.refused) + ".")


@contextmanager
def zero_hessian_refused() -> Iterator[None]:
    """A zero Hessian means, here, that the model was loaded or written wrongly: an error, not a warning."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ZeroHessianWarning)
            yield
    except ZeroHessianWarning as warning:
        raise InputError(str(warning)) from warning
