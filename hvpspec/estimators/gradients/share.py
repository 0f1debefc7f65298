"""How much of a vector lies in eigenspaces that are known to within an angle.

Let V be the computed vectors of a group of eigenvalues, R = H V − V Θ their residuals, and δ the distance from the
group to all other eigenvalues. Davis and Kahan's theorem in the Frobenius norm, which holds wherever the others lie,
gives ‖sin(V, U)‖_F ≤ ‖R‖_F / δ, where U is the eigenspace itself. (doi:10.1137/0707001; Stewart and Sun, Matrix
Perturbation Theory, section V.3.) For several groups the squares of the sines add up.

A unit vector g at an angle φ to the span of V is then at an angle between φ − θ and φ + θ to U, so that its share lies
between cos²(φ + θ) and cos²(φ − θ). Eigenvalues that are equal, as far as their errors tell, are one group: in it, a
single vector means nothing. A group that is not shown to be apart from all others adds nothing to the lower end.

The upper end needs no gap. Let P project onto all eigenspaces of the values found, copies that were missed included,
and g = V c + g'. Where c₀ is any number from which these values are d away,

    ‖P g‖² ≤ ‖c‖² + 2 ‖(I − P) V c‖ ‖g'‖ + ‖P g'‖²,      ‖P g'‖ ≤ ‖(H − c₀) g'‖ / d

and H g' follows from the product H g.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hvpspec.results.eigenpairs import Eigenpairs

RIGHT_ANGLE = math.pi / 2


@dataclass(frozen=True)
class Rest:
    """What is left of a unit vector outside of the eigenvectors, g': ‖g'‖², g'ᵀHg', ‖Hg'‖² and the error of Hg'."""

    square: float
    curvature: float
    product: float
    error: float

    def inside(self, values: np.ndarray, off: float) -> float:
        """A bound on its share of the eigenspaces at the values, each of which may be off by so much."""
        least = self.square
        for centre in (0.0, self.curvature / self.square if self.square else 0.0):
            length = math.sqrt(max(self.product - 2 * centre * self.curvature + centre**2 * self.square, 0.0))
            if (distance := float(np.abs(values - centre).min()) - off) > 0:
                least = min(least, ((length + self.error) / distance) ** 2)
        return least


@dataclass(frozen=True)
class Shares:
    """parts: the share along each vector; errors: how far it may be off. whole: their sum, between `lower` and `upper`.

    apart: whether each of them is in an eigenspace that is known.
    """

    parts: np.ndarray
    errors: np.ndarray
    whole: float
    lower: float
    upper: float
    apart: bool


def shares(components: np.ndarray, pairs: Eigenpairs, rest: Rest, slack: float) -> Shares:
    """components: of a unit vector along the eigenvectors. slack: an angle by which it may be off itself."""
    parts, groups = components**2, _groups(pairs)
    known = [(group, sine, float(parts[group].sum())) for group, sine in groups]
    proven = [(sine, share) for _, sine, share in known if sine < 1]
    inside, angle = sum(share for _, share in proven), _angle([sine for sine, _ in proven]) + slack
    lower, whole = _range(inside, angle)[0], min(float(parts.sum()), 1.0)
    outside = math.sin(min(angle, RIGHT_ANGLE)) * math.sqrt(inside) + math.sqrt(max(whole - inside, 0.0))
    off = float((pairs.residuals + pairs.error).max())
    upper = whole + 2 * (outside * math.sqrt(rest.square) + slack) + rest.inside(pairs.values, off)
    if pairs.all_copies and len(proven) == len(known):
        upper = min(upper, _range(inside, angle)[1])
    upper = min(upper, 1.0)
    errors, lows, highs = np.zeros(len(parts)), 0.0, 0.0
    for group, sine, share in known:
        others = _range(max(inside - share, 0.0) if sine < 1 else inside, angle)[0]
        low, high = _range(share, _angle([sine]) + slack)
        high = min(high, upper - others) if pairs.all_copies else upper - others
        if len(group) == 1:
            errors[group] = max(share - low, high - share)
        else:
            errors[group] = np.maximum(parts[group], high - parts[group])
        lows, highs = lows + low, highs + high
    lower, upper = max(lower, lows), min(upper, highs)
    errors, apart = np.clip(errors, 0.0, 1.0), len(proven) == len(known)
    return Shares(np.minimum(parts, 1.0), errors, whole, min(lower, whole), max(upper, whole), apart)


def _angle(sines: list[float]) -> float:
    """Of several groups together."""
    return math.asin(min(math.hypot(*sines), 1.0))


def _range(share: float, angle: float) -> tuple[float, float]:
    """Where the share of the eigenspace lies if that of the span is `share`, and the two are so far from each other."""
    own = math.acos(math.sqrt(min(max(share, 0.0), 1.0)))
    return math.cos(min(own + angle, RIGHT_ANGLE)) ** 2, math.cos(max(own - angle, 0.0)) ** 2


def _groups(pairs: Eigenpairs) -> list[tuple[list[int], float]]:
    """The eigenvalues that are equal as far as is known, together, each with the sine of its angle at most: 1 where
    there is no gap to others."""
    gaps = np.zeros((len(pairs.values), 2)) if pairs.gaps is None else pairs.gaps
    off = pairs.residuals + pairs.error  # the error includes what rounding adds to the residual
    groups: list[list[int]] = []
    for i in np.argsort(pairs.values, kind="stable").tolist():
        last = groups[-1][-1] if groups else i
        if groups and pairs.values[i] - pairs.values[last] <= off[i] + off[last]:
            groups[-1].append(i)
        else:
            groups.append([i])
    found = []
    for group in groups:
        gap, length = min(gaps[group[0], 0], gaps[group[-1], 1]), float(np.linalg.norm(off[group]))
        found.append((group, min(length / gap, 1.0) if gap > 0 else 1.0))
    return found
