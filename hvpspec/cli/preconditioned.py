"""The operator that is measured: the plain one, or preconditioned by the moments in a file."""

from __future__ import annotations

from pathlib import Path

from hvpspec.checkpoint.formats.torch_pickle import Trust
from hvpspec.checkpoint.optimizers.kinds import KindName
from hvpspec.cli.options.preconditioning import Preconditioning
from hvpspec.operators.hessian import HessianOperator
from hvpspec.operators.preconditioned import Measured, PreconditionedOperator, PreconditionedOverData
from hvpspec.operators.preconditioner import find_preconditioner

_KINDS: dict[str, KindName | None] = {"adam": None, "adamw": "adamw", "adam-l2": "adam"}


def preconditioned(
    H: HessianOperator, checkpoint: Path, asked: Preconditioning | None, trust: Trust, lr: float | None
) -> Measured:
    """The operator with the moments at this checkpoint, or as it is without --precondition."""
    if asked is None or asked.precondition is None:
        return H
    found = find_preconditioner(
        asked.optimizer or checkpoint, H.objective.model, H.parameters.names, trust,
        lr=lr, betas=asked.both_betas, kind=_KINDS[asked.precondition],
    )  # fmt: skip
    made = PreconditionedOperator(H, found)
    assert isinstance(made, PreconditionedOverData)
    return made
