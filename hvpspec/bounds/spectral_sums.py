"""tr f(H) for f = log(λ + δ) and λ/(λ + δ): quadrature that is bracketed, known eigenvalues counted one by one.

All even derivatives of both functions are negative and all odd ones positive on λ > −δ, so that the Gauss rule of the
Lanczos matrix lies above vᵀf(H)v, and the Gauss–Radau rule with a node at a lower bound of the spectrum lies below it:
there is no guess in the quadrature. What is left to chance is the start vector. Its parts in r eigenvectors that are
not known one by one are such that the mean of f it gives has the variance 2 Var f / (r + 2). Where tr H and tr H² are
known from elsewhere, the part of f that is linear or quadratic in λ is taken from those, and only the rest of f
scatters: so does little of what few far eigenvalues, and copies of them, add. (Golub and Meurant 1994,
doi:10.1007/BFb0063440; Bai, Fahey, Golub 1996, doi:10.1016/0377-0427(96)00018-0.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, solve

from hvpspec.bounds.copies import Sums, sampled_variance
from hvpspec.bounds.probe_intervals import student
from hvpspec.bounds.quadrature import gaps, read_density
from hvpspec.krylov.lanczos import Krylov

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Part:
    """One space's estimate: value, half the distance of the quadrature's bounds, variance, as of how many samples it is
    known, and what the errors of the known eigenvalues make."""

    value: float
    quadrature: float
    variance: float
    freedom: float
    known: float


def spectral_sum(
    spaces: Sequence[Krylov], f: Function, low: float, confidence: float, sums: Sums | None = None
) -> tuple[float, float]:
    """tr f(H) and the half-width of its interval, from Krylov spaces with independent random starts. Costs no HVP.

    f: one of the functions above. low: a lower bound of the spectrum at which f is finite. sums: tr H and tr H², whose
    intervals that of the result rests on as well.
    """
    degrees = (0,) if sums is None else (0, 1, 2)
    return min((_combined(spaces, f, low, confidence, sums, degree) for degree in degrees), key=lambda found: found[1])


def _combined(
    spaces: Sequence[Krylov],
    f: Function,
    low: float,
    confidence: float,
    sums: Sums | None,
    degree: int,
) -> tuple[float, float]:
    whole = next((krylov for krylov in spaces if krylov.m == krylov.n), None)
    used = [whole] if whole else spaces
    parts = [_from_space(krylov, f, low, confidence, sums, degree) for krylov in used]
    count = len(parts)
    value = float(np.mean([part.value for part in parts]))
    variance = float(np.mean([part.variance for part in parts]))
    if count > 2:  # what the starts differ by tells as well, by then
        variance = max(variance, float(np.var([part.value for part in parts], ddof=1)))
    half = student(confidence, sum(part.freedom for part in parts)) * math.sqrt(variance / count)
    return value, half + float(np.mean([part.quadrature + part.known for part in parts]))


def _from_space(krylov: Krylov, f: Function, low: float, confidence: float, sums: Sums | None, degree: int) -> _Part:
    """degree: of the polynomial that is taken from `sums`."""
    n = krylov.n
    if krylov.m == n:
        ritz = krylov.ritz()
        return _Part(float(f(ritz.values).sum()), 0.0, 0.0, math.inf, _moved(f, ritz.values, ritz.noise, low))
    density = read_density([krylov], confidence, 0, sums, likely=False)
    exact = density.exact
    points, copies = density.nodes[exact], n * density.weights[exact]
    rest = n - float(copies.sum())
    values, residuals, noise = _ritz(krylov)
    own = _nearest(values, points)
    gap = np.maximum(gaps(values), np.finfo(float).tiny)
    shift = np.minimum(residuals[own], residuals[own] ** 2 / gap[own]) + noise
    known = float(copies @ f(points))
    known_error = _moved(f, points, copies * shift, low) if own.size else 0.0
    sampled = ~exact & (density.weights > 0)
    if rest <= 0.5:
        return _Part(known, 0.0, 0.0, math.inf, known_error)
    if not sampled.any():
        return _Part(known, math.inf, 0.0, 1.0, known_error)
    rules = [(density.nodes[sampled], density.weights[sampled])]
    radau = _radau(krylov, low)
    if radau is not None:
        nodes, mass = radau
        mass[_nearest(nodes, points)] = 0.0
        rules.append((nodes, mass))
    # What a polynomial p of that degree makes of the rest is known of tr H and tr H²; f − p is sampled.
    polynomial = np.polynomial.Polynomial(_fitted(f, *rules[0], degree))
    smooth, smooth_error = 0.0, 0.0
    if degree:
        assert sums is not None
        constant, slope, bend = np.concatenate([polynomial.coef, np.zeros(2)])[:3]
        smooth = n * constant + slope * sums.trace + bend * sums.squares - float(copies @ polynomial(points))
        steep = np.abs(slope + 2 * bend * points) + np.abs(bend) * shift
        smooth_error = abs(slope) * sums.trace_error + abs(bend) * sums.squares_error + float(copies * shift @ steep)
    else:
        polynomial = np.polynomial.Polynomial([0.0])
    means, variances, freedoms = [], [], []
    for each, (nodes, mass) in zip((1.0, 0.0), rules, strict=False):  # the node at `low` need not be an eigenvalue
        share, found = mass / mass.sum(), f(nodes) - polynomial(nodes)
        means.append(float(share @ found))
        variance, freedom = sampled_variance(found, share, rest, each=each)
        variances.append(variance / density.samples)
        freedoms.append(freedom * density.samples)
    middle, quadrature = (max(means) + min(means)) / 2, (max(means) - min(means)) / 2
    widest = int(np.argmax(variances))
    return _Part(
        known + smooth + rest * middle,
        rest * quadrature,
        variances[widest],
        freedoms[widest],
        known_error + smooth_error,
    )


def _fitted(f: Function, nodes: np.ndarray, mass: np.ndarray, degree: int) -> np.ndarray:
    """Coefficients of the polynomial that is nearest to f in the mean square."""
    root = np.sqrt(mass / mass.sum())
    scale = float(np.abs(nodes).max()) or 1.0
    columns = (nodes[:, None] / scale) ** np.arange(degree + 1)
    found = np.linalg.lstsq(root[:, None] * columns, root * f(nodes), rcond=1e-12)[0]
    return found / scale ** np.arange(degree + 1)


def _first(krylov: Krylov) -> tuple[np.ndarray, np.ndarray, int]:
    known = krylov.of_start
    end = known.segments[1][0] if len(known.segments) > 1 else len(known.T)
    return known.T[:end, :end], known.coupling[:end], end


def _ritz(krylov: Krylov) -> tuple[np.ndarray, np.ndarray, float]:
    """Ritz values of the start's own space, their residuals, and what rounding adds."""
    ritz = krylov.of_start.ritz(krylov.eps, 0, _first(krylov)[2])
    noise = 50 * krylov.eps * krylov.of_start.norm + float(np.linalg.norm(krylov.of_start.defects))
    return ritz.values, ritz.residuals, noise


def _radau(krylov: Krylov, low: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The rule with a node at `low`; None where the space has closed, and Gauss is exact."""
    T, coupling, end = _first(krylov)
    beta = float(np.linalg.norm(coupling))
    if beta == 0:
        return None
    last = np.zeros(end)
    last[-1] = beta**2
    shifted = T - low * np.eye(end)
    corner = low + float(solve(shifted, last, assume_a="sym")[-1])
    side = np.zeros((end, 1))
    side[-1] = beta
    values, vectors = eigh(np.block([[T, side], [side.T, np.array([[corner]])]]))
    return np.maximum(values, low), vectors[0] ** 2


def _nearest(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.abs(values[:, None] - targets).argmin(0) if len(targets) else np.zeros(0, int)


def _moved(f: Function, values: np.ndarray, errors: np.ndarray, low: float) -> float:
    """By how much the sum of f may change when each value moves by its error, but not below `low`."""
    here = f(values)
    below = f(np.maximum(values - errors, min(low, float(values.min(initial=low)))))
    return float(np.maximum(np.abs(f(values + errors) - here), np.abs(here - below)).sum())
