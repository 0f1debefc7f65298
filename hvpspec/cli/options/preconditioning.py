"""The options of --precondition. No torch: --help needs none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from hvpspec.cli.options.flags import SOURCE, WANTED, option
from hvpspec.errors import InputError

Optimizer = Literal["adam", "adamw", "adam-l2"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preconditioning:
    """Whether the matrix is preconditioned by an optimizer, and where the optimizer's moments are."""

    precondition: Annotated[
        Optimizer | None,
        option(
            WANTED,
            "Precondition the matrix by the moments of the optimizer (Adam, AdamW, RMSprop, Adagrad; SGD has none), "
            "and compare λ_max with the edge of stability of that optimizer. Files of older versions of torch do not "
            "tell adamw from adam-l2, Adam with a weight decay in the gradient.",
            "--precondition",
        ),
    ] = None
    optimizer: Annotated[
        Path | None,
        option(
            SOURCE,
            "File that holds the state of the optimizer for --precondition; by default the checkpoint, or optimizer.pt "
            "in its directory.",
            "--optimizer",
            metavar="FILE",
        ),
    ] = None
    betas: Annotated[
        str | None,
        option(WANTED, "Adam's β₁ and β₂ for --precondition, such as 0.9,0.999; by default the file's.", "--betas"),
    ] = None

    def __post_init__(self) -> None:
        if self.precondition not in (None, *get_args(Optimizer)):
            raise InputError(
                f"--precondition must be one of {', '.join(get_args(Optimizer))}; got {self.precondition}."
            )
        if self.precondition is None:
            for name in ("optimizer", "betas"):
                if getattr(self, name) is not None:
                    raise InputError(f"--{name} needs --precondition adam.")
        _ = self.both_betas

    @property
    def both_betas(self) -> tuple[float, float] | None:
        """The numbers; None where they are the file's. Raises InputError."""
        if self.betas is None:
            return None
        try:
            first, second = (float(beta) for beta in self.betas.split(","))
        except ValueError:
            first = second = -1.0
        if not (0 <= first < 1 and 0 <= second < 1):
            raise InputError(f"--betas must be two numbers ≥ 0 and < 1, such as 0.9,0.999; got {self.betas}.")
        return first, second

    def check_momentum(self, momentum: float | None) -> None:
        """Raises InputError for a momentum, which is the optimizer's own here."""
        if self.precondition is not None and momentum is not None:
            raise InputError("--momentum is for gradient descent; with --precondition the optimizer has its own.")

    def described(self) -> dict[str, Any]:
        """For the provenance: nothing without --precondition."""
        given = {"precondition": self.precondition, "betas": self.betas}
        where = {"optimizer": None if self.optimizer is None else str(self.optimizer)}
        return {name: value for name, value in {**given, **where}.items() if value is not None}
