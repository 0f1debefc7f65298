"""The ends of a spectrum, λ_max and λ_min, as one Krylov space from a random vector shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from hvpspec.bounds.eigenvalues import Exclusion, bracket
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.results.estimate import Bracket

Side = Literal[1, -1]  # of λ_max and λ_min


class Ends:
    """λ_max and λ_min of the operator of a pass, without probes.

    rounding: what products of a larger matrix have shown to be their error, which may be large for this one.
    """

    def __init__(self, shared: SharedPass, confidence: float, *, rounding: float = 0.0) -> None:
        self.shared, self.confidence, self.rounding = shared, confidence, rounding

    @property
    def norm(self) -> float:
        """The largest magnitude among the Ritz values."""
        return float(np.abs(self.shared.krylov.ritz().values).max())

    def value(self, side: Side) -> float:
        """The outermost Ritz value; 0 where that lies beyond it and is an eigenvalue, of a row that is zero."""
        values, zeros = self.shared.krylov.ritz().values, self.shared.krylov.zeros
        outermost = float(values[-1] if side > 0 else values[0])
        return side * max(side * outermost, 0.0) if zeros else outermost

    def bracket(self, side: Side) -> Bracket:
        """The inner bound is certain, the outer one holds with the confidence."""
        krylov = self.shared.krylov
        found = bracket(krylov.ritz(), Exclusion.of(krylov), side, self.confidence)
        lower, upper = found.lower - self.rounding, found.upper + self.rounding
        if krylov.zeros:
            lower, upper = sorted(side * max(side * end, 0.0) for end in (lower, upper))
        return Bracket(lower, upper, found.confidence)

    def within(self, side: Side, width: float) -> bool:
        """Whether that end is known to the width.

        A start with a small component in the eigenvector can make a bracket narrow too early; then the residual is not
        small.
        """
        found, residuals = self.bracket(side), self.shared.krylov.ritz().residuals
        return found.upper - found.lower <= width and residuals[-1 if side > 0 else 0] <= width

    def steps(self, budget: float, outermost: Side) -> Iterator[None]:
        """Products, one after the other, up to the budget of the whole pass, or until no more can be learnt.

        outermost: the end whose Ritz vectors are kept where memory is full; the brackets then improve no more.
        """
        shared = self.shared
        while shared.hvps < min(budget, shared.A.n):
            shared.extend(1, lambda values, count: np.argsort(-outermost * values, kind="stable")[:count])
            if shared.krylov.undisturbed is not None:
                return
            yield
