"""Whether the basis lacks an eigenvalue that belongs among those found, as the probes of its complement show it.

If the eigenvalues found are those that were asked for, all others lie in an interval [a, b], and so do those of B,
which is H on the complement of the basis. So wᵀ(B − a)(B − b)w > 0 for some w proves that B has an eigenvalue outside,
and then H has one more there than were found (Cauchy interlacing). For the eigenvalues of largest magnitude the
interval is [−a, a], and the criterion ‖B w‖ > a ‖w‖.

Good candidates for w are the principal directions of the images of the probes, shifted so that the eigenvalues outside
are the largest in magnitude.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from hvpspec.krylov.lanczos import Krylov
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.krylov.probes import Direction, Pool
from hvpspec.krylov.vectors import column_inner, inner
from hvpspec.options import Which
from hvpspec.results.estimate import Bracket

_DIRECTIONS_TO_SEARCH = 4  # where eigenvalues of one end are asked for: the strongest may belong to the other end


def interval_of_rest(
    values: np.ndarray, which: Which, tol: float, smallest: Bracket, largest: Bracket
) -> tuple[float, float]:
    """Where all other eigenvalues lie if `values` (in the order of `which`) are those that are asked for.

    One that exceeds the least extreme value by no more than `tol` times that is not another one. On a side that is not
    asked for, the interval ends with the spectrum (smallest, largest: brackets of its ends).
    """
    if which == "LM":
        end = (1 + tol) * float(np.abs(values).min())
        return -end, end
    top = {"LA": len(values), "SA": 0, "BE": (len(values) + 1) // 2}[which]
    low, high = smallest.lower, largest.upper
    if top:
        end = float(values[:top].min())
        high = end + tol * abs(end)
    if top < len(values):
        end = float(values[top:].max())
        low = end - tol * abs(end)
    return low, high


def shows_outside(direction: Direction, low: float, high: float) -> bool:
    """Whether the direction shows that B has an eigenvalue outside [low, high]; one end may be infinite."""
    if math.isinf(low):
        return direction.first > high * direction.zeroth
    if math.isinf(high):
        return direction.first < low * direction.zeroth
    return direction.second - (low + high) * direction.first + low * high * direction.zeroth > 0


def suspect(pool: Pool, which: Which, interval: tuple[float, float]) -> Direction | None:
    """A direction that seems to show an eigenvalue of B outside the interval, by estimates that make no product."""
    if not pool.count:
        return None
    by_magnitude = which == "LM"
    # Relative to the mean of B, the eigenvalues at both ends are the largest in magnitude.
    centre = 0.0 if by_magnitude else pool.grams()[-1].centre
    for number in range(1 if by_magnitude else _DIRECTIONS_TO_SEARCH):
        found = pool.direction(number, centre)
        if found is not None and by_magnitude:
            found = replace(found, zeroth=1.0)  # as in all versions so far: a seed keeps its meaning
        if found is not None and shows_outside(found, *interval):
            return found
    return None


def proved(A: Symmetric, krylov: Krylov, direction: Direction, interval: tuple[float, float]) -> bool:
    """Whether the direction does show such an eigenvalue; one product."""
    image = A @ direction.vector
    for _ in range(2):
        image = image - krylov.basis.combine(krylov.basis.inner(image))
    first, second = float(inner(direction.vector, image)), float(column_inner(image, image))
    noise = float(krylov.ritz().noise.max())
    measured = Direction(direction.vector, 1.0, first, second)
    return shows_outside(measured, interval[0] - noise, interval[1] + noise)
