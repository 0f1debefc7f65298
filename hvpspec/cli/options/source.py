"""Where model, data and loss come from, and what an earlier run has left in the same folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from hvpspec.cli.options.flags import OUTPUT, SOURCE, flag, option
from hvpspec.errors import InputError
from hvpspec.options import LOSS_NAMES
from hvpspec.validation import check_count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Earlier:
    """What to do with what an earlier run has left in --out, and whether to leave a journal there."""

    restart: Annotated[
        bool, flag(OUTPUT, "Start over, rather than go on with an interrupted run in --out.", "--restart")
    ] = False
    force: Annotated[
        bool, flag(OUTPUT, "Replace what was made in --out with another checkpoint, data or options.", "--force")
    ] = False
    no_journal: Annotated[
        bool, flag(OUTPUT, "Keep no journal in --out, from which an interrupted run goes on.", "--no-journal")
    ] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where model, data and loss come from."""

    model: Annotated[
        str | None,
        option(
            SOURCE,
            "Function that builds the nn.Module, such as train.py:build or package.module:build. Not needed for a "
            "checkpoint that holds the model (a Hugging Face directory, a TorchScript or torch.export archive).",
            metavar="FILE:FUNCTION",
        ),
    ] = None
    data: Annotated[
        str,
        option(
            SOURCE,
            "Function that returns the batches: a list or a DataLoader, read again for every product.",
            metavar="FILE:FUNCTION",
        ),
    ]
    loss: Annotated[
        str | None,
        option(
            SOURCE,
            f"{', '.join(LOSS_NAMES)}; or FILE:NAME, a function of (model, batch) or of (outputs, targets), or a "
            "criterion. Not needed for a Hugging Face directory whose model returns its own loss.",
            metavar="LOSS",
        ),
    ] = None
    key: Annotated[
        str | None,
        option(SOURCE, "Where in the checkpoint the state dict is nested, such as ema or ema.shadow."),
    ] = None
    allow_class: Annotated[
        list[str] | None,
        option(
            SOURCE,
            "A class whose objects the checkpoint may hold besides tensors, as package.module.Class; may be repeated.",
            "--allow-class",
            metavar="CLASS",
        ),
    ] = None
    trust_pickle: Annotated[
        bool,
        flag(SOURCE, "Last resort: read the checkpoint whatever it holds. This runs its code.", "--trust-pickle"),
    ] = False
    freeze_data: Annotated[
        bool,
        flag(
            SOURCE,
            "Keep the batches of the first pass in memory, for data that are shuffled or augmented.",
            "--freeze-data",
        ),
    ] = False
    batches: Annotated[
        int | None,
        option(
            SOURCE,
            "A quick look: only so many of the batches, drawn at random with --seed.",
            "--batches",
        ),
    ] = None
    max_batches: Annotated[
        int | None,
        option(
            SOURCE,
            "Only the first so many batches of each pass over the data, which may be endless.",
            "--max-batches",
        ),
    ] = None
    expect_loss: Annotated[
        str | None,
        option(
            SOURCE,
            "The loss that the data should give; stop if it differs by more than half a unit of the last digit given.",
            "--expect-loss",
            metavar="LOSS",
        ),
    ] = None

    def for_checkpoint(self, checkpoint: Path) -> Source:
        """The same with the loss that is meant where none is given. Raises InputError where that is not clear."""
        if self.loss is not None:
            return self
        if self.model is None and (checkpoint / "config.json").is_file():
            return dataclasses.replace(self, loss="model")
        raise InputError(
            "Missing option '--loss', which only the directory of a Hugging Face model with a loss of its own can do "
            "without."
        )

    def __post_init__(self) -> None:
        if self.batches is not None:
            check_count("--batches", self.batches)
        if self.max_batches is not None:
            check_count("--max-batches", self.max_batches)
        if self.expect_loss is not None:
            from hvpspec.preflight import expected_loss  # here, as it needs torch

            expected_loss(self.expect_loss)
