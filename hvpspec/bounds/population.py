"""An interval for λ_max of the population that the data are a sample of.

λ_max is convex, so that a sample's own λ_max is larger than the population's on average. The two sides bracket it. Let
H_g be the mean over fold g of the data, H the mean over all folds, and u the population's eigenvector:

    λ = E uᵀHu ≤ E λ_max(H),    λ ≥ E vᵀH_g v for a unit vector v that was found without fold g

So λ_max(H) exp(t s / λ_max(H)) is an upper end (its logarithm is the less skewed), and the mean over g of v₋gᵀH_g v₋g,
less t s, a lower one, where v₋g is the top eigenvector of the other folds' mean, s the standard error of either, from
its spread over the folds, and t a quantile of Student's distribution. (Leave-one-out as in Efron and Stein 1981,
doi:10.1214/aos/1176345462; the bracket: Mak, Morton and Wood 1999, doi:10.1016/S0167-6377(98)00054-6.)

The basis holds the top Ritz vectors V of H. What a fold's H_g V has outside of V is known from its sketch, random
signed sums of its entries, and that is enough for v₋g: it has one component there, along what H₋g V has outside. The
curvature along that is taken to be the mean eigenvalue for the search, and none for the lower end.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
from scipy import special

from hvpspec.results.estimate import Bracket

MIN_FOLDS = 4  # of the data, for an interval
_ORDER_LEVEL = 0.02  # the probability that batches in random order are said not to be
_MAX_ORDERS = 2000  # orders of the folds that are compared
_LARGEST_EXPONENT = 1.0  # of the upper end; the rest of t s is added as it is
_LEAST_SHARE_OF_LARGEST_FOLD = 0.5  # of its weight: a smaller last fold varies more than the others


def population_bracket(
    inside: np.ndarray,
    outside: np.ndarray,
    weights: np.ndarray,
    largest: float,
    confidence: float,
    typical: float = 0.0,
) -> Bracket:
    """The interval.

    inside: Vᵀ H_g V (G, r, r), with the top Ritz vector first. outside: sketches (G, d, r) of what H_g V has outside of
    V. largest: λ_max of H. typical: its mean eigenvalue, about.
    """
    share = weights / weights.sum()
    whole, whole_outside = np.tensordot(share, inside, 1), np.tensordot(share, outside, 1)
    held_out = np.empty(len(share))
    for g, part in enumerate(share):
        rest = (whole - part * inside[g]) / (1 - part)
        rest_outside = (whole_outside - part * outside[g]) / (1 - part)
        held_out[g] = _on_fold(*_top(rest, rest_outside, max(typical, 0.0)), inside[g], outside[g])
    # From few folds a standard error may come out small by chance; two of nearly the same quantity rarely both do.
    error = max(_standard_error(held_out, share), _standard_error(inside[:, 0, 0], share))
    half = float(special.stdtrit(len(share) - 1, (1 + confidence) / 2)) * error
    upper = largest + _stretched(half, largest)
    return Bracket(min(float(share @ held_out) - half, upper), upper, confidence)


def _stretched(half: float, largest: float) -> float:
    """What the upper end adds to λ_max."""
    if largest <= 0:
        return half
    exponent = min(half / largest, _LARGEST_EXPONENT)
    return largest * math.expm1(exponent) + half - exponent * largest


def _top(inside: np.ndarray, outside: np.ndarray, typical: float) -> tuple[np.ndarray, np.ndarray]:
    """The top eigenvector of the rest of the data: coefficients of V, and the sketch of its part outside of V."""
    values, vectors = np.linalg.eigh(inside)
    coefficients = vectors[:, -1]
    direction = outside @ coefficients
    length = float(np.linalg.norm(direction))
    if length == 0:
        return coefficients, direction
    rotation = np.linalg.eigh(np.array([[values[-1], length], [length, typical]]))[1][:, -1]
    return rotation[0] * coefficients, rotation[1] * direction / length


def _on_fold(coefficients: np.ndarray, beyond: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> float:
    """vᵀ H_g v for the v that `_top` gives."""
    return float(coefficients @ inside @ coefficients + 2 * beyond @ (outside @ coefficients))


def in_random_order(inside: np.ndarray, outside: np.ndarray, weights: np.ndarray) -> bool:
    """False where neighbouring folds are more alike than in all but few orders: the order is not random.

    A permutation test of Σ ‖x_g − x_{g+1}‖², where x_g is H_g v for the top Ritz vectors v, as far as it is known.
    """
    full = weights >= _LEAST_SHARE_OF_LARGEST_FOLD * weights.max()
    columns = inside[full].reshape(int(full.sum()), -1)
    features = np.hstack([columns, outside[full, :, 0]])
    distances = ((features[:, None] - features) ** 2).sum(2)
    orders = _orders(len(features))
    lengths = distances[orders[:, :-1], orders[:, 1:]].sum(1)
    return bool((lengths <= lengths[0] * (1 + 1e-12)).mean() > _ORDER_LEVEL)


@cache
def _orders(count: int) -> np.ndarray:
    """All orders of so many things, or as many random ones; the first leaves them where they are."""
    if math.factorial(count) <= _MAX_ORDERS:
        return np.array(list(itertools.permutations(range(count))))
    generator = np.random.default_rng(0)
    return np.array([np.arange(count), *(generator.permutation(count) for _ in range(_MAX_ORDERS - 1))])


def _standard_error(values: np.ndarray, share: np.ndarray) -> float:
    """Of the weighted mean of the folds' values."""
    return float(np.sqrt(len(share) / (len(share) - 1) * share**2 @ (values - share @ values) ** 2))
