"""What to do next for trace and norm: one more basis vector, some more probes, or stop.

A probe's variance is proportional to what the basis has left (‖B_c‖_F² for the trace, ‖B²‖_F² for the norm). If N
probes are needed in all and a basis vector takes off the share g of what is left, it saves N g probes: extend the basis
while N g > 1, else probe. With a budget too small for the tolerance, N is the number of probes that it leaves. The
share is measured over the last steps; before there are any, a bound says whether they are worth trying: a step takes
off at most 2 ‖B_c‖₂² ≤ 2 ‖B_c²‖_F, which a flat spectrum has little of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hvpspec.estimators.shared_pass import Figure, OnePass
from hvpspec.options import PILOT_PROBES
from hvpspec.results.estimate import Estimate
from hvpspec.validation import Tolerance

_WINDOW = 6  # steps over which the gain of a step is measured
_BLOCK = 8  # probes multiplied together
_WORTH = 0.8  # N g from which a step is made: what is left is an estimate, and a step too few can cost much more


@dataclass(frozen=True)
class Move:
    """The next thing to do, with how many products, and how many are expected until all is done (that one included)."""

    action: Literal["extend", "probe", "stop"]
    count: int = 0
    expected: float = 0


def ends(one: OnePass, tolerance: Tolerance, budget: int | None) -> bool:
    """Whether there is an end to it: a tolerance, a budget, or room for a basis of the whole space."""
    return (
        tolerance.rtol > 0 or tolerance.atol > 0 or budget is not None or (one.can_extend and one.capacity == one.A.n)
    )


def choose(one: OnePass, figures: dict[Figure, Estimate], tolerance: Tolerance, left: float) -> Move:
    """The move that brings the figures within tolerance with the fewest products; `left`: what the budget allows."""
    probes, dimension = one.pool.count, one.dimension
    if left <= 0 or dimension == 0 or (probes >= PILOT_PROBES and all(figure.converged for figure in figures.values())):
        return Move("stop")
    fits = one.can_extend and dimension <= min(left, one.capacity - one.krylov.m)
    if fits and dimension <= PILOT_PROBES:
        return Move("extend", 1, dimension)
    if probes < PILOT_PROBES:
        count = int(min(PILOT_PROBES - probes, left))
        return Move("probe", count, count)

    needed = {name: _needed(figure, one, name, tolerance) for name, figure in figures.items()}
    binding = max(needed, key=lambda name: needed[name])
    further = needed[binding] - probes
    if fits and further >= dimension:
        return Move("extend", 1, dimension)
    final = min(needed[binding], probes + left)
    if one.can_extend and final * _gain(one, binding, further) > _WORTH:
        return Move("extend", 1, min(further, left))
    return Move("probe", int(min(_BLOCK, max(further, 1.0) // 1 + 1, left)), min(further, left))


def _needed(estimate: Estimate, one: OnePass, figure: Figure, tolerance: Tolerance) -> float:
    """Probes in all, half-widths falling like 1/√probes."""
    if estimate.converged:
        return 0.0
    scale = estimate.value
    if estimate.relative_to == "frobenius_norm":
        scale = one.estimate("frobenius_norm", tolerance).value
    allowed = tolerance.allowed(scale)
    return math.inf if allowed == 0 else one.pool.count * (estimate.error / allowed) ** 2


def _gain(one: OnePass, figure: Figure, further: float) -> float:
    """The share of the remainder that a further step takes off."""
    remainder = one.remainder()
    if remainder.variation <= 0:
        return 0.0
    steps = [entry for entry in one.history if entry[0] >= one.krylov.m - _WINDOW]
    if len(one.history) <= _WINDOW:
        if further <= _WINDOW:
            return 0.0
        return min(2 * math.sqrt(remainder.fourth) / remainder.variation, 1.0)
    c = remainder.centre
    (m_then, *then), (m_now, *now) = steps[0], steps[-1]
    taken = (now[1] - then[1]) - 2 * c * (now[0] - then[0]) + c**2 * (m_now - m_then)
    return 1 - (remainder.variation / (remainder.variation + max(taken, 0.0))) ** (1 / (m_now - m_then))
