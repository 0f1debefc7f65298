"""A batch's matrix times several vectors: one after the other, or together where each operation has to be launched.

On a GPU a backward pass of a small model is a long row of short kernels, and takes as long for eight vectors as for one
if `torch.vmap` takes them through it together. On a CPU that gains nothing, and needs more memory.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.kernels.torch_kernels import vector_jacobian_product
from hvpspec.objective.objective import Objective
from hvpspec.objective.parameters import joined
from hvpspec.oracle.chains import Chain
from hvpspec.system.out_of_memory import OutOfMemory, within_memory
from hvpspec.validation import relative_difference

TOGETHER_ON = {"cuda"}  # types of devices
MOST_TOGETHER = 8  # vectors: each needs a backward pass's memory
_LARGEST_DIFFERENCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # relative: sums in another order stay far below

_one_by_one: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models whose operations vmap cannot take together
_compared: weakref.WeakKeyDictionary[nn.Module, set[Any]] = weakref.WeakKeyDictionary()
"""The matrices and losses of a model for which both ways have been compared."""


def through(objective: Objective, links: Chain, rows: Tensor) -> Tensor | None:
    """A batch's matrix times each of the rows, shape (b, n); None where it is zero."""
    if not links.links:
        return None
    if len(rows) == 1 or rows.device.type not in TOGETHER_ON:
        return _in_turn(objective, links, rows)
    return torch.cat([_some(objective, links, part) for part in torch.split(rows, MOST_TOGETHER)])


def _some(objective: Objective, links: Chain, rows: Tensor) -> Tensor:
    """Together where that is possible; half of them where memory lacks for all."""
    if len(rows) == 1 or objective.model in _one_by_one:
        return _in_turn(objective, links, rows)
    found = within_memory(lambda: _together(objective, links, rows))
    if isinstance(found, OutOfMemory):
        return torch.cat([_some(objective, links, part) for part in rows.chunk(2)])
    compared, kind = _compared.setdefault(objective.model, set()), (objective.matrix, id(objective.loss))
    if found is not None and kind not in compared:
        row = int(torch.linalg.vector_norm(found, dim=1).argmax())
        expected = _in_turn(objective, links, rows[row : row + 1])
        if relative_difference(found[row : row + 1], expected) <= _LARGEST_DIFFERENCE[rows.dtype]:
            compared.add(kind)
        else:
            found = None
    if found is None:
        _one_by_one.add(objective.model)
        return _in_turn(objective, links, rows)
    return found


def _together(objective: Objective, links: Chain, rows: Tensor) -> Tensor | None:
    """None where an operation of the backward passes cannot be taken together."""

    def product(row: Tensor) -> Tensor:
        pieces = objective.space.pieces(row)
        return joined(_whole(links(pieces, vector_jacobian_product), pieces))

    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of operations that are taken in turn
            return torch.vmap(product)(rows)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception:  # a Function of the user's own may raise anything; in turn, it is said what
        return None


def _in_turn(objective: Objective, links: Chain, rows: Tensor) -> Tensor:
    result = torch.empty_like(rows)
    for row, vector in zip(result, rows, strict=True):
        pieces = objective.space.pieces(vector)
        joined(_whole(links(pieces, vector_jacobian_product), pieces), out=row)
    return result


def _whole(found: Sequence[Tensor | None], pieces: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(v) if piece is None else piece for piece, v in zip(found, pieces, strict=True)]
