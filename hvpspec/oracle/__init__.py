"""How one HVP is computed. One engine a file, one signature: (objective, V) -> HV for a block V of shape (n, b).

A third, optional argument is told each batch's share of the product: see `hvpspec.oracle.autograd.hvp`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.objective import Objective
from hvpspec.oracle import autograd
from hvpspec.oracle.autograd import OnBatch


class Engine(Protocol):
    def __call__(self, objective: Objective, block: Tensor, on_batch: OnBatch | None = None) -> Tensor: ...


ENGINES: dict[str, Engine] = {"autograd": autograd.hvp}


def choose_engine(name: str) -> tuple[str, Engine]:
    """The engine of that name and the name it goes by in reports; "auto" is the best that there is."""
    chosen = "autograd" if name == "auto" else name
    if chosen not in ENGINES:
        names = ", ".join(f"'{key}'" for key in ("auto", *ENGINES))
        raise InputError(f"no engine is named '{name}'; choose one of {names}.")
    return chosen, ENGINES[chosen]
