"""One right-hand side: a solver is run on what is left of it, until the true residual is small enough.

The residuals in the solvers' recurrences continue to decrease after rounding has stopped the true one. So that is
computed from time to time, and after each run of the solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hvpspec.krylov.solvers.iterate import Multiply, Solver, following, length
from hvpspec.krylov.solvers.shifted import BudgetSpent, ShiftedProducts
from hvpspec.krylov.solvers.together import Procedure, Request

_MAX_RUNS = 6  # of the solver, each on the residual that the last one left
_STALLED_RATIO = 0.9  # of the residuals after and before a further run: above this, there is no more progress
_ROUNDOFFS_OF_RESIDUAL = 8  # of ‖A + δI‖ ‖x‖: what rounding in the products leaves of a residual in any case
_ITERATIONS_PER_CHECK = 20  # after which the true residual is computed
_LEAST_CHANGE = 0.1  # of the residual: if the last iterations cannot have changed it by more, the solver is stopped
_SHARE_OF_ROUNDING = 0.03  # what the recurrence's residual may be of it: less, and products are spent on noise
_LARGEST_STEP = 0.5  # of the residual: each run of the solver reduces it by half at least
_MAX_ITERATIONS = 20  # of a run, in units of n
_KERNEL_TO_AIM = 0.01  # where A + δI maps a residual to so little of the aim, it is taken to lie in the kernel


@dataclass
class Column:
    """A system (A + δI) x = b, and how it is solved: vectors (n, 1), in float64.

    solver: of a right-hand side. tolerance: of the residual, relative to b. start: an x to start from, None for 0.
    first: maps a residual to a first correction. x: the best so far. rest: b − (A + δI) x, of length `residual`.
    """

    product: ShiftedProducts
    right: Tensor
    solver: Callable[[Tensor], Solver]
    tolerance: float
    start: Tensor | None = None
    first: Multiply | None = None
    iterations: int = 0

    def __post_init__(self) -> None:
        self.x, self.rest, self.residual = torch.zeros_like(self.right), self.right.clone(), length(self.right)
        self.target = self.tolerance * self.residual

    def rounding(self, x: Tensor | None = None) -> float:
        """What rounding leaves of the residual, of this x or another one."""
        return _ROUNDOFFS_OF_RESIDUAL * self.product.A.eps * self.product.norm * length(self.x if x is None else x)

    def solve(self) -> Procedure[None]:
        """Until the residual is at the target or at rounding, or the budget is spent."""
        if not self.residual:
            return
        try:
            if self.start is not None:
                self.x, self.rest = self.start, self.right - (yield Request(self.start))
                self.residual = length(self.rest)
            if self.first is not None and self.residual and math.isfinite(length(step := self.first(self.rest))):
                yield from self._improve(self.x + step)
            for run in range(_MAX_RUNS):
                if self.residual <= max(self.target, self.rounding()):
                    return
                step = yield from self._correction(run)
                if not 0 < length(step) < math.inf:
                    return
                if (yield from self._improve(self.x + step)) > _STALLED_RATIO and run > 0:
                    return
        except BudgetSpent:
            pass

    def _improve(self, candidate: Tensor) -> Procedure[float]:
        """Takes the candidate if its residual is smaller; returns the ratio of the new residual to the old one."""
        rest = self.right - (yield Request(candidate))
        ratio = length(rest) / self.residual
        if ratio < 1:
            self.x, self.rest, self.residual = candidate, rest, ratio * self.residual
        return ratio

    def _correction(self, run: int) -> Procedure[Tensor]:
        """The solver's correction for the residual; one product is reserved for the residual after it.

        The solver is stopped when x has moved too little to have changed it much.
        """
        product, rest = self.product, self.rest
        aim = max(0.5 * self.target / self.residual, product.A.eps)
        # Of ‖(A + δI) r‖, relative to ‖A + δI‖ ‖r‖: less, and r is taken to lie in the kernel. Each run doubts it more.
        kernel = max(aim * _KERNEL_TO_AIM ** (1 + run), product.A.eps)
        enough, aim = max(0.5 * self.target, self.rounding()), min(aim, _LARGEST_STEP) * self.residual
        solver, iterations = self.solver(rest), 0
        now = next(solver)
        step, checked = now.x, torch.zeros_like(rest)
        try:
            while now.direction is not None and iterations < _MAX_ITERATIONS * product.A.n:
                after = following(solver, (yield Request(now.direction, reserve=1)))
                if after is None:
                    break
                now, iterations = after, iterations + 1
                self.iterations += 1
                step = now.x
                if now.image <= kernel * now.norm or now.residual <= max(aim, _SHARE_OF_ROUNDING * self.rounding(step)):
                    break
                if iterations % _ITERATIONS_PER_CHECK == 0:
                    left = length(rest - (yield Request(step, reserve=1)))
                    moved = product.norm * length(step - checked)
                    checked = step.clone()
                    if left <= enough or moved <= _LEAST_CHANGE * left:
                        break
        except BudgetSpent:
            pass
        return step
