"""Products with other rounding errors: in float64, or in the same precision with everything rounded otherwise.

A product in float32 errs symmetrically, so that neither the symmetry of the matrix nor a repeated product shows by how
much. In float64 the same parameters and data give the product that is meant. Where that is not possible, the parameters
are moved by one unit in the last place, at random, and the vectors are scaled by no power of 2: forward and backward
passes then round otherwise, and products differ about as much as they err. (The idea of stochastic arithmetic: Vignes
1993, doi:10.1016/0378-4754(93)90003-D.) Where a model computes parts with fewer digits, the unit is that of these
parts: a smaller step changes few of their numbers, and scaled vectors change only what depends on the vector.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hvpspec.errors import InputError, ZeroHessianWarning
from hvpspec.kernels.torch_kernels import EXCLUSIVE
from hvpspec.memory import free_memory
from hvpspec.objective.live_model import set_data
from hvpspec.objective.objective import Objective
from hvpspec.objective.parameters import as_real
from hvpspec.oracle import autograd
from hvpspec.results.estimate import Recomputed
from hvpspec.system.undoing import run_all

_SCALE = 0.7  # of a vector: no power of 2
_VECTORS_IN_FLOAT64 = 6  # of the model's size, with their margin: its copy, a gradient with its graph, and the product


def recomputed(objective: Objective, columns: Tensor) -> tuple[Tensor, Recomputed]:
    """H times the columns (n, b) with other rounding errors, and how it was computed. Costs b products."""
    with EXCLUSIVE, warnings.catch_warnings():
        warnings.simplefilter("ignore", ZeroHessianWarning)  # the products themselves have said so
        if objective.dtype != torch.float64 and _fits(objective, columns):
            with contextlib.suppress(torch.OutOfMemoryError, InputError, RuntimeError, TypeError):
                return autograd.hvp(objective.in_float64(), columns.double()), "float64"
        return rounded_otherwise(objective, columns, torch.finfo(objective.dtype).eps).double(), "other rounding"


def rounded_otherwise(objective: Objective, columns: Tensor, unit: float) -> Tensor:
    """H times the columns at parameters that are moved by a relative `unit`, for vectors that are scaled."""
    with EXCLUSIVE, objective.evaluating() as parameters, _nudged(parameters, unit):
        return autograd.hvp(objective.with_(), columns * _SCALE) / _SCALE


def _fits(objective: Objective, columns: Tensor) -> bool:
    size = sum(tensor.numel() for tensor in objective.model.parameters()) + columns.numel()
    return 8 * _VECTORS_IN_FLOAT64 * size < free_memory(objective.device)


@contextlib.contextmanager
def _nudged(parameters: Sequence[Tensor], unit: float) -> Iterator[None]:
    """Each entry moved up or down by a relative `unit`, at random, and back when it ends."""
    undo = map(set_data, parameters, [parameter.data for parameter in parameters])
    generator = torch.Generator().manual_seed(0)
    try:
        for parameter in parameters:
            entries = as_real(parameter.data)
            up = torch.randint(0, 2, entries.shape, generator=generator).to(entries.device)
            moved = torch.where(up.bool(), entries * (1 + unit), entries * (1 - unit))
            parameter.data = torch.view_as_complex(moved) if parameter.is_complex() else moved
        yield
    finally:
        run_all(undo)
