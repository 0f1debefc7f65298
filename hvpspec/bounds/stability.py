"""Whether gradient descent is stable: λ_max against the learning rate and the momentum.

On a quadratic with curvature λ, gradient descent with learning rate η and heavy-ball momentum β (that of
torch.optim.SGD) converges if 0 < λ < 2(1 + β)/η. That bound is called the edge of stability (arXiv:2103.00065).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hvpspec.errors import InputError
from hvpspec.results.estimate import Bracket
from hvpspec.results.spectrum import Preconditioned, Spectrum


@dataclass(frozen=True)
class Stability:
    """λ_max against a learning rate (None where it is not known) and a momentum, or against an optimizer's edge.

    optimizer: of a preconditioned matrix; its learning rate is `lr`, and its edge is given.
    """

    lambda_max: Bracket
    lr: float | None = None
    momentum: float = 0.0
    optimizer: Preconditioned | None = None

    @property
    def edge(self) -> float | None:
        """The edge of stability; None without a learning rate."""
        if self.optimizer is not None:
            return self.optimizer.threshold
        return None if self.lr is None else edge_of_stability(self.lr, self.momentum)

    @property
    def largest_step(self) -> float | None:
        """The largest learning rate that is stable with the bracket's confidence; None where none is known."""
        top = self.lambda_max.upper
        if not 0 < top < math.inf:
            return None
        if self.optimizer is None:
            return 2 * (1 + self.momentum) / top
        edge, lr, decay = self.edge, self.lr, self.optimizer.decay
        if edge is None or lr is None or lr * decay >= 2:
            return None
        return 2 / (top * (2 / lr - decay) / edge + decay)  # the edge is proportional to 2/lr − decay

    @property
    def ratio(self) -> Bracket | None:
        """λ_max relative to the edge of stability; None without a learning rate."""
        if not (edge := self.edge):
            return None
        return Bracket(self.lambda_max.lower / edge, self.lambda_max.upper / edge, self.lambda_max.confidence)

    @property
    def stable(self) -> bool | None:
        """Whether the learning rate is stable; None where the bracket of λ_max leaves it open, or without one."""
        ratio = self.ratio
        if ratio is None or ratio.lower < 1 <= ratio.upper:
            return None
        return ratio.upper < 1


def edge_of_stability(lr: float, momentum: float = 0.0) -> float:
    """The largest stable λ_max at this learning rate, 2(1 + β)/lr.

    Raises InputError unless lr is finite and positive, and the momentum in [0, 1).
    """
    if not 0 < lr < math.inf:
        raise InputError(f"lr={lr:g}: a learning rate is a finite number greater than 0.")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum={momentum:g}: a momentum is at least 0 and less than 1.")
    return 2 * (1 + momentum) / lr


def stability(spectrum: Spectrum, lr: float | None = None, momentum: float | None = None) -> Stability | None:
    """From the bracket of λ_max; None where the spectrum has none, or no positive curvature.

    Of a preconditioned matrix the optimizer's own edge counts, not lr and momentum; None where it is not known.
    """
    pairs, condition = spectrum.eigenpairs, spectrum.condition
    bracket = condition.largest if condition is not None else pairs.largest if pairs is not None else None
    if bracket is None or bracket.upper <= 0:
        return None
    if (by := spectrum.preconditioned) is not None:
        return None if by.threshold is None else Stability(bracket, by.lr, optimizer=by)
    return Stability(bracket, lr, momentum or 0.0)
