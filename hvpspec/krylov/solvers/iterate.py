"""What the solvers give after each iteration, what they are given in turn, and the inner products that they need."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from torch import Tensor

from hvpspec.krylov.vectors import column_inner

Multiply = Callable[[Tensor], Tensor]
"""Maps a vector (n, 1) to a new one."""


class Iterate(NamedTuple):
    """x (n, 1), which the next iteration changes in place, and what the recurrences know of r = b − A x.

    direction: what the next iteration needs the product with, in memory of the solver's; None after the last one.
    residual: ‖r‖. image: ‖A r‖ / ‖r‖ for the r before; near 0 for a least-squares solution. norm: ‖A‖, estimated by the
    Frobenius norm of the tridiagonal matrix. With a preconditioner M, the last two are those of M½ A M½. Only MINRES
    knows them.
    """

    x: Tensor
    direction: Tensor | None
    residual: float
    image: float = math.inf
    norm: float = 0.0


Solver = Generator[Iterate, Tensor, None]
"""Gives x = 0 first, and takes the product with each direction, whose memory it uses. It may end without another x."""


def following(solver: Solver, image: Tensor) -> Iterate | None:
    """The iterate after that whose direction has this product; None where there is none."""
    try:
        return solver.send(image)
    except StopIteration:
        return None


def iterates(solver: Solver, A: Multiply) -> Iterator[Iterate]:
    """All iterates but x = 0, with products of A."""
    now: Iterate | None = next(solver)
    while now is not None and now.direction is not None:
        now = following(solver, A(now.direction))
        if now is not None:
            yield now


def dot(x: Tensor, y: Tensor) -> float:
    """The inner product of two vectors (n, 1), accumulated in float64."""
    return float(column_inner(x, y))


def length(x: Tensor) -> float:
    return math.sqrt(dot(x, x))
