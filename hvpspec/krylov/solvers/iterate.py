"""What the solvers give after each iteration, and the two inner products that they need."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from hvpspec.krylov.vectors import column_inner

Multiply = Callable[[Tensor], Tensor]
"""Maps a vector (n, 1) to a new one."""


class Iterate(NamedTuple):
    """x (n, 1), which the next iteration changes in place, and what the recurrences know of r = b − A x.

    residual: ‖r‖. image: ‖A r‖ / ‖r‖ for the r before; near 0 for a least-squares solution. norm: ‖A‖, estimated by the
    Frobenius norm of the tridiagonal matrix. With a preconditioner M, the last two are those of M½ A M½. Only MINRES
    knows them.
    """

    x: Tensor
    residual: float
    image: float = math.inf
    norm: float = 0.0


def dot(x: Tensor, y: Tensor) -> float:
    """The inner product of two vectors (n, 1), accumulated in float64."""
    return float(column_inner(x, y))


def length(x: Tensor) -> float:
    return math.sqrt(dot(x, x))
