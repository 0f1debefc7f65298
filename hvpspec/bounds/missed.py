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
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hvpspec.bounds.eigenvalues import WAYS, Count, Exclusion, none_beyond
from hvpspec.bounds.probe_intervals import chi_squared
from hvpspec.krylov.lanczos import Krylov, Ritz
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.krylov.probes import Direction, Grams, Pool
from hvpspec.krylov.vectors import column_inner, inner
from hvpspec.options import Which
from hvpspec.results.estimate import Bracket

PROBABILITY_OF_MISS = 0.01  # that any of the eigenvalues asked for is missing from a gap that is taken to be empty
_UNCHECKED_SHARE = 1 / 3  # of a gap, next to each of its ends, where an eigenvalue cannot be told from the end
_POINTS_PER_GAP = 3
_ROUNDING_OF_POINTS = 1e-9  # of the distance of a point from a value
_DIRECTIONS_TO_SEARCH = 4  # where eigenvalues of one end are asked for: the strongest may belong to the other end


def nothing_missed(exclusion: Exclusion | None, found: np.ndarray, which: Which, tol: float) -> bool:
    """Whether it is shown that no eigenvalue is missing among those found (in the order of `which`), copies apart.

    The start may have an unusually small component in one of them; a warm start, large ones in others. Then the values
    found are accurate, but not those that were asked for. What cannot be shown is the absence of an eigenvalue next to
    one that was found; copies of it are the extreme case.
    """
    if exclusion is None:
        return True
    points = _gaps_to_check(np.sort(found), tol, exclusion)
    points = points[[beyond(point, found, which) > tol * abs(point) for point in points]]
    return exclusion.empty_at(points, PROBABILITY_OF_MISS / len(found))


def none_nearer(exclusion: Exclusion | None, ritz: Ritz, found: np.ndarray, sigma: float, tol: float) -> bool:
    """Whether it is shown that no eigenvalue is missing that is nearer to σ than the farthest one found, copies apart.

    Copies are eigenvalues that are no farther from one found than twice the tolerance (relative to the distance from
    σ), or than rounding. Between Ritz values the bound is smooth, so that a few points there stand for all.
    """
    if exclusion is None:
        return True
    distances, least = np.abs(found - sigma), 2 * max(exclusion.slack, float(ritz.noise.max()))
    near = np.maximum(2 * tol * distances, least)
    reach = float((distances - near).max())
    inside = ritz.values[np.abs(ritz.values - sigma) < reach]
    edges = np.concatenate([[sigma - reach, sigma + reach], inside, found - near, found + near])
    edges = np.unique(edges[np.abs(edges - sigma) <= reach])
    if reach <= 0:
        return True
    points = np.concatenate([edges, (edges[:-1, None] + np.diff(edges)[:, None] * WAYS).ravel()])
    apart = (np.abs(points[:, None] - found) >= near * (1 - _ROUNDING_OF_POINTS)).all(1)
    return exclusion.empty_at(points[apart], PROBABILITY_OF_MISS / len(found))


def block_shows_all_copies(exclusion: Exclusion | None, ritz: Ritz, chosen: np.ndarray) -> bool:
    """Whether a start of several vectors shows that none of the chosen Ritz values has more copies than were found.

    Found are all Ritz values, those included that k leaves out. A further copy u can be chosen orthogonal to the c Ritz
    vectors of its eigenvalue, so that their terms in the bound on the component of the start in u are zero. That
    component is at least the smallest singular value of the b × (c + 1) components of the start in the eigenspace. Its
    square is about 1/(c + 1) times that of b − c vectors in u.
    """
    if exclusion is None or exclusion.width < 2 or exclusion.share != 1 or not len(chosen):
        return False
    found = _with_copies(ritz, chosen)
    for i in found:
        near = ritz.residuals[i] + ritz.noise[i]
        value = float(ritz.values[i])
        copies = int((np.abs(ritz.values[found] - value) <= near + ritz.residuals[found]).sum())
        if copies >= exclusion.width:
            return False
        rest = exclusion.without(np.abs(exclusion.values - value) <= near)
        rest = replace(rest, width=exclusion.width - copies)
        level = rest.least_overlap(PROBABILITY_OF_MISS / len(found)) / math.sqrt(copies + 1)
        if float(rest.overlap(np.array([value]))[0]) > level:
            return False
    return True


def _with_copies(ritz: Ritz, chosen: np.ndarray) -> np.ndarray:
    """The chosen Ritz values and those that may be further copies of them, which k has left out."""
    off = (ritz.residuals + ritz.noise)[chosen]
    near: np.ndarray = np.flatnonzero((np.abs(ritz.values[:, None] - ritz.values[chosen]) <= off).any(1))
    return near


def _gaps_to_check(found: np.ndarray, tol: float, exclusion: Exclusion) -> np.ndarray:
    """Points in the gaps between the values found (ascending), and one beyond each end."""
    gaps = np.diff(found)
    unresolved = 2 * tol * np.maximum(np.abs(found[1:]), np.abs(found[:-1]))
    inside = [
        np.linspace(a + _UNCHECKED_SHARE * gap, b - _UNCHECKED_SHARE * gap, _POINTS_PER_GAP)
        for a, b, gap, least in zip(found, found[1:], gaps, unresolved, strict=False)
        if gap > max(least, 2 * exclusion.slack)
    ]
    # For the largest in magnitude, the other end as well: that far out there may be an eigenvalue of the other sign.
    least = float(np.abs(found).min())
    ends = [end for end in (-least, least) if np.abs(found - end).min() > _UNCHECKED_SHARE * least]
    return np.concatenate([*inside, (1 + 2 * tol) * np.array(ends)])


def beyond(value: float, chosen: np.ndarray, which: Which) -> float:
    """By how much a value is more extreme than the least extreme of the chosen ones, in the order of `which`."""
    if which == "LM":
        return abs(value) - float(np.abs(chosen).min())
    if which == "LA":
        return value - float(chosen.min())
    if which == "SA":
        return float(chosen.max()) - value
    low, high = chosen[(len(chosen) + 1) // 2 :], chosen[: (len(chosen) + 1) // 2]
    above = value - float(high.min())
    below = float(low.max()) - value if len(low) else -math.inf
    return max(above, below)


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


def ends_asked(interval: tuple[float, float], which: Which) -> list[float]:
    """The ends of the interval beyond which eigenvalues are asked for."""
    return [end for end, wanted in zip(interval, (which != "LA", which != "SA"), strict=True) if wanted]


def least_to_exclude(values: np.ndarray, which: Which, interval: tuple[float, float]) -> tuple[float, float]:
    """How far B's spectrum may reach for the interval of the rest to contain all that is not among the values.

    Only copies are to be excluded (gaps between different values are shown to be empty by the start itself), so that
    half of the way to the nearest value outside the interval is allowed.
    """
    low, high = interval
    if which == "LM":
        values = np.concatenate([values, -values])
    above, below = values[values > high], values[values < low]
    if above.size:
        high = (high + float(above.min())) / 2
    if below.size:
        low = (low + float(below.max())) / 2
    return low, high


def rest_has_none(ritz: Ritz, chosen: np.ndarray, which: Which, tol: float, rest: tuple[float, float]) -> bool:
    """Whether B, whose spectrum lies in `rest`, has no eigenvalue that belongs among the chosen Ritz values."""
    if not len(chosen) or not any(map(math.isfinite, rest)):
        return False
    values = ritz.values[chosen]
    low, high = least_to_exclude(values, which, _beyond_rest(ritz, chosen, which, tol))
    return (which == "LA" or rest[0] >= low) and (which == "SA" or rest[1] <= high)


def no_copies(
    krylov: Krylov,
    ritz: Ritz,
    chosen: np.ndarray,
    which: Which,
    tol: float,
    rest: tuple[float, float],
    counts: Sequence[Count],
) -> bool:
    """Whether it is shown that no copy of a chosen Ritz value is missing: by counts, or by B's spectrum (in `rest`)."""
    if not len(chosen):
        return False
    if counts and not sides_to_count(ritz, chosen, which, tol, counts):
        return True
    none = rest_has_none(ritz, chosen, which, tol, rest)
    return none and not hides_copies(krylov, ritz, chosen, which, tol, rest)


def sides_to_count(ritz: Ritz, chosen: np.ndarray, which: Which, tol: float, counts: Sequence[Count]) -> list[Count]:
    """For each side on which copies may be missing: a point in the gap inside of the chosen values, and T's count.

    Left out are sides where the counts show that T has as many eigenvalues beyond such a point as H.
    """
    beyond_rest = _beyond_rest(ritz, chosen, which, tol)
    middle = least_to_exclude(ritz.values[chosen], which, beyond_rest)
    wanted = []
    for side, end, t in ((1, beyond_rest[1], middle[1]), (-1, beyond_rest[0], middle[0])):
        outside = side * ritz.values[chosen]
        outside = outside[outside > side * end]
        if outside.size and not any(
            count.side == side
            and side * count.t < float(outside.min())
            and count.number == int((side * (ritz.values - count.t) > 0).sum())
            for count in counts
        ):
            wanted.append(Count(side, t, int((side * (ritz.values - t) > 0).sum())))
    return wanted


def hides_copies(
    krylov: Krylov, ritz: Ritz, chosen: np.ndarray, which: Which, tol: float, rest: tuple[float, float]
) -> bool:
    """Whether a further copy of a chosen Ritz value may be an eigenvalue of H, though B's spectrum lies in `rest`.

    A vector u of H u = λ u that is orthogonal to the one found has the component x = Qᵀu in the basis, and the rest z
    of it has (B − λ) z = −F Cᵀx. In a space from one random vector x is 0 but for rounding, which grows as the Ritz
    value converges, to that of a product relative to the residual: then the copy appears in the basis, bit by bit.
    Where there is a wide gap, H is seen to have no more eigenvalues beyond it than T all the same.
    """
    low, high = _beyond_rest(ritz, chosen, which, tol)
    mixed = krylov.projection.coupling.T @ ritz.coefficients
    rounding, coupled = krylov.projection.product_error(krylov.eps), float(np.linalg.norm(krylov.projection.coupling))
    for value, residual in zip(ritz.values[chosen], ritz.residuals[chosen], strict=True):
        if low <= value <= high:
            continue
        distance = value - rest[1] if value > high else rest[0] - value
        inside = rounding / max(float(residual), rounding)
        small = inside < 1 and coupled * inside < distance * math.sqrt(1 - inside**2)
        side, end = (1, rest[1]) if value > high else (-1, rest[0])
        if (krylov.starts > 1 or not small) and not none_beyond(ritz, mixed, _inside(ritz, value, side), side, end):
            return True
    return False


def _inside(ritz: Ritz, value: float, side: int) -> float:
    """The middle of the gap on the inner side of a Ritz value, and of those that rounding may make of it."""
    further = side * (value - ritz.values)
    gap = float(further[further > 2 * float(ritz.noise.max())].min(initial=math.inf))
    return value - side * gap / 2


def _beyond_rest(ritz: Ritz, chosen: np.ndarray, which: Which, tol: float) -> tuple[float, float]:
    """The interval of the rest (`interval_of_rest`), widened by rounding; open on a side that is not asked for."""
    ends = Bracket(-math.inf, -math.inf, 1.0), Bracket(math.inf, math.inf, 1.0)
    low, high = interval_of_rest(ritz.values[chosen], which, tol, *ends)
    noise = float(ritz.noise[chosen].max())
    return low - noise, high + noise


def images_within(grams: list[Grams]) -> tuple[float, float]:
    """Bounds on the spectrum of B by the images Y of N normal probes.

    A vector u with B u = μ u contributes μ² Σ (ωᵀu)² to λ_max(YᵀY), where the sum has a χ² distribution with N degrees
    of freedom.
    """
    largest = max(grams, key=lambda entry: entry.count)
    least = chi_squared(PROBABILITY_OF_MISS, largest.count)
    norm = math.sqrt(max(float(np.linalg.eigvalsh(largest.yy)[-1]), 0.0) / least)
    return -norm, norm


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
