"""What to do next for trace and norm: one more basis vector, some more probes, or stop.

The variance of a probe is proportional to what the basis leaves (‖B_c‖_F² for the trace, ‖B²‖_F² for the norm). If N
probes are needed in all and a basis vector removes the share g of what is left, it saves N g probes: extend the basis
while N g > 1, otherwise probe. If the budget is too small for the tolerance, N is the number of probes that it allows.
The share is measured over the last steps. Before there are enough of them, a bound decides whether they are worth
trying: a step removes at most 2 ‖B_c‖₂² ≤ 2 ‖B_c²‖_F, which is small for a flat spectrum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.krylov.lanczos import Krylov
from hvpspec.options import PILOT_PROBES, SampledQuantity, fewest
from hvpspec.results.estimate import Estimate
from hvpspec.validation import Tolerance

_STEPS_TO_MEASURE_GAIN = 6
# A complement of this dimension is spanned rather than probed where more probes would leave too few products for that:
# how many probes are needed is an estimate, and may turn out too small again and again.
SMALL_COMPLEMENT = 8 * PILOT_PROBES
_STEPS_TO_MEASURE_RATE = 3
_ISOLATED_SHARE = 1e-2  # of the distance to the nearest other Ritz value: the residual of an isolated one, at most
_MAX_STEPS_TO_SETTLE_ZERO = 12
_PROBES_TOGETHER = 8  # that are multiplied at once
# N g from which a step is made: below 1, since what is left is an estimate, and a missing step can cost much more.
_LEAST_SAVING_PER_STEP = 0.8


@dataclass(frozen=True)
class Move:
    """The next thing to do with how many products, and the expected number until the end, this move included."""

    action: Literal["extend", "probe", "stop"]
    count: int = 0
    expected: float = 0


def ends(shared: SharedPass, tolerance: Tolerance, budget: int | None) -> bool:
    """Whether the pass is sure to end: by a tolerance, a budget, or a basis of the whole space that fits in memory."""
    whole_space_fits = shared.can_extend and shared.capacity == shared.A.n
    return tolerance.rtol > 0 or tolerance.atol > 0 or budget is not None or whole_space_fits


def choose(shared: SharedPass, estimates: dict[SampledQuantity, Estimate], tolerance: Tolerance, left: float) -> Move:
    """The move that reaches the tolerance with the fewest products; left: products that the budget allows."""
    probes, dimension = shared.pool.count, shared.dimension
    reached = probes >= PILOT_PROBES and all(estimate.converged for estimate in estimates.values())
    if left <= 0 or dimension == 0 or reached:
        return Move("stop")
    fits = shared.can_extend and dimension <= min(left, shared.capacity - shared.krylov.m)
    if fits and dimension <= PILOT_PROBES:
        return Move("extend", 1, dimension)
    if probes < PILOT_PROBES:
        count = int(min(PILOT_PROBES - probes, left))
        return Move("probe", count, count)

    needed = {name: _needed(estimate, shared, tolerance) for name, estimate in estimates.items()}
    binding = max(needed, key=lambda name: needed[name])
    further = needed[binding] - probes
    if fits and (further >= dimension or (dimension <= SMALL_COMPLEMENT and shared.spare < _PROBES_TOGETHER)):
        return Move("extend", 1, dimension)
    final = min(needed[binding], probes + left)
    if shared.can_extend and final * (gain := _gain(shared, further)) > _LEAST_SAVING_PER_STEP:
        return Move("extend", 1, min(max(fewest(needed[binding], 1 / gain) - probes, 1.0), further, dimension, left))
    return Move("probe", int(min(_PROBES_TOGETHER, max(further, 1.0) // 1 + 1, left)), min(further, left))


def distance_of_zero(krylov: Krylov) -> float:
    """How far from settled it is whether an isolated Ritz value at 0 is an eigenvalue of 0: its residual in roundoffs.

    1 or less where it is settled, or where there is no such Ritz value. Until then, rank and number of negative
    eigenvalues are open by as many as that value stands for: the null space of a ReLU network, for example.
    """
    ritz = krylov.ritz()
    nearest = int(np.argmin(np.abs(ritz.values)))
    value, residual, noise = abs(ritz.values[nearest]), ritz.residuals[nearest], ritz.noise[nearest]
    others = np.abs(np.delete(ritz.values, nearest) - ritz.values[nearest])
    isolated = residual <= _ISOLATED_SHARE * float(others.min(initial=math.inf))
    return float(residual / noise) if isolated and value <= residual and noise > 0 else 0.0


class SettlingZero:
    """Whether a few more steps will settle it.

    The residual of an isolated value falls faster with each step, and to nothing where the space becomes invariant.
    """

    def __init__(self) -> None:
        self._distances: list[float] = []
        self._steps = 0

    def worth_a_step(self, krylov: Krylov, otherwise_done: bool) -> bool:
        """To be called after each step; counts those that are made for this alone."""
        self._distances.append(distance_of_zero(krylov))
        worth = otherwise_done and self._steps < _MAX_STEPS_TO_SETTLE_ZERO and self._falls()
        self._steps += worth
        return worth

    def _falls(self) -> bool:
        recent = self._distances[-_STEPS_TO_MEASURE_GAIN:]
        if recent[-1] <= 1 or min(recent) <= 0:
            return False
        if len(recent) < _STEPS_TO_MEASURE_RATE:
            return True
        rate = (math.log(recent[0]) - math.log(recent[-1])) / (len(recent) - 1)
        return rate > 0 and math.log(recent[-1]) <= 1.5 * rate * _MAX_STEPS_TO_SETTLE_ZERO


def _needed(estimate: Estimate, shared: SharedPass, tolerance: Tolerance) -> float:
    """Probes in all, as the half-width is proportional to 1/√probes."""
    if estimate.converged:
        return 0.0
    scale = estimate.value
    if estimate.relative_to == "frobenius_norm":
        scale = shared.estimate("frobenius_norm", tolerance).value
    allowed = tolerance.allowed(scale)
    return math.inf if allowed == 0 else shared.pool.count * (estimate.error / allowed) ** 2


def _gain(shared: SharedPass, further: float) -> float:
    """The share of the remainder that one more step removes; further: probes still needed without it."""
    remainder = shared.remainder()
    if remainder.variation <= 0:
        return 0.0
    steps = [entry for entry in shared.history if entry[0] >= shared.krylov.m - _STEPS_TO_MEASURE_GAIN]
    if len(shared.history) <= _STEPS_TO_MEASURE_GAIN:
        if further <= _STEPS_TO_MEASURE_GAIN:
            return 0.0
        return min(2 * math.sqrt(remainder.fourth) / remainder.variation, 1.0)
    c = remainder.centre
    (m_then, *then), (m_now, *now) = steps[0], steps[-1]
    removed = (now[1] - then[1]) - 2 * c * (now[0] - then[0]) + c**2 * (m_now - m_then)
    left = remainder.variation / (remainder.variation + max(removed, 0.0))
    return 1 - math.pow(left, 1 / (m_now - m_then))
