"""tr f(H) for f = log(λ + δ) and λ/(λ + δ): bracketed quadrature, with known eigenvalues counted one by one.

All even derivatives of both functions are negative and all odd ones positive for λ > −δ. The Gauss rule of the Lanczos
matrix is therefore an upper bound on vᵀf(H)v, and the Gauss–Radau rule with a node at a lower bound of the spectrum is
a lower bound: the quadrature error is bounded. Only the start vector is random. Its components in r eigenvectors that
are not known one by one give a mean of f with the variance 2 Var f / (r + 2). Where tr H and tr H² are known from
elsewhere, the linear and quadratic part of f is computed from those, and only the rest of f is sampled; a few outliers,
and copies of them, then add little variance. (Golub and Meurant 1994, doi:10.1007/BFb0063440; Bai, Fahey, Golub 1996,
doi:10.1016/0377-0427(96)00018-0.)
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
from hvpspec.results.density import Density

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Part:
    """The estimate of one space.

    quadrature: half the distance between the two rules. variance: of the sampling, known as accurately as from
    `freedom` normal samples. known: the effect of errors in the known eigenvalues.
    """

    value: float
    quadrature: float
    variance: float
    freedom: float
    known: float


@dataclass(frozen=True)
class _Known:
    """Eigenvalues that are known one by one: `copies` of each, to within `shift`. error: of the sum of f over them."""

    values: np.ndarray
    copies: np.ndarray
    shift: np.ndarray
    error: float


def spectral_sum(
    spaces: Sequence[Krylov], f: Function, low: float, confidence: float, sums: Sums | None = None
) -> tuple[float, float]:
    """tr f(H) and the half-width of its interval, from Krylov spaces with independent random starts. Costs no HVP.

    f: one of the functions above. low: a lower bound of the spectrum at which f is finite. sums: tr H and tr H²; the
    interval of the result then relies on theirs as well.
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
    if count > 2:  # enough for the spread between the starts to say something
        variance = max(variance, float(np.var([part.value for part in parts], ddof=1)))
    half = student(confidence, sum(part.freedom for part in parts)) * math.sqrt(variance / count)
    return value, half + float(np.mean([part.quadrature + part.known for part in parts]))


def _from_space(krylov: Krylov, f: Function, low: float, confidence: float, sums: Sums | None, degree: int) -> _Part:
    """degree: of the polynomial whose sum is computed from `sums`."""
    n = krylov.n
    if krylov.m == n:
        ritz = krylov.ritz()
        return _Part(float(f(ritz.values).sum()), 0.0, 0.0, math.inf, _moved(f, ritz.values, ritz.noise, low))
    density = read_density([krylov], confidence, 0, sums, likely=False)
    known = _known(krylov, density, f, low)
    known_sum = float(known.copies @ f(known.values))
    rest = n - float(known.copies.sum())
    sampled = ~density.exact & (density.weights > 0)
    if rest <= 0.5:
        return _Part(known_sum, 0.0, 0.0, math.inf, known.error)
    if not sampled.any():
        return _Part(known_sum, math.inf, 0.0, 1.0, known.error)
    rules = [(density.nodes[sampled], density.weights[sampled])]
    radau = _radau(krylov, low)
    if radau is not None:
        nodes, mass = radau
        mass[_nearest(nodes, known.values)] = 0.0
        rules.append((nodes, mass))
    # The sum over the rest of a polynomial p of that degree is known from tr H and tr H²; only f − p is sampled.
    polynomial, smooth, smooth_error = np.polynomial.Polynomial([0.0]), 0.0, 0.0
    if degree:
        assert sums is not None
        polynomial = np.polynomial.Polynomial(_fitted(f, *rules[0], degree))
        smooth, smooth_error = _polynomial_sum(polynomial, n, known, sums)
    means, variances, freedoms = [], [], []
    for each, (nodes, mass) in zip((1.0, 0.0), rules, strict=False):  # the node at `low` need not be an eigenvalue
        share, sample = mass / mass.sum(), f(nodes) - polynomial(nodes)
        means.append(float(share @ sample))
        variance, freedom = sampled_variance(sample, share, rest, each=each)
        variances.append(variance / density.samples)
        freedoms.append(freedom * density.samples)
    middle, quadrature = (max(means) + min(means)) / 2, (max(means) - min(means)) / 2
    widest = int(np.argmax(variances))
    return _Part(
        known_sum + smooth + rest * middle,
        rest * quadrature,
        variances[widest],
        freedoms[widest],
        known.error + smooth_error,
    )


def _known(krylov: Krylov, density: Density, f: Function, low: float) -> _Known:
    points, copies = density.nodes[density.exact], krylov.n * density.weights[density.exact]
    values, residuals, noise = _ritz(krylov)
    own = _nearest(values, points)
    gap = np.maximum(gaps(values), np.finfo(float).tiny)
    shift = np.minimum(residuals[own], residuals[own] ** 2 / gap[own]) + noise
    return _Known(points, copies, shift, _moved(f, points, copies * shift, low) if own.size else 0.0)


def _polynomial_sum(polynomial: np.polynomial.Polynomial, n: int, known: _Known, sums: Sums) -> tuple[float, float]:
    """The sum of a polynomial of degree ≤ 2 over the eigenvalues that are not known, and its error."""
    constant, slope, bend = np.concatenate([polynomial.coef, np.zeros(2)])[:3]
    value = n * constant + slope * sums.trace + bend * sums.squares - float(known.copies @ polynomial(known.values))
    steep = np.abs(slope + 2 * bend * known.values) + np.abs(bend) * known.shift
    error = abs(slope) * sums.trace_error + abs(bend) * sums.squares_error
    return value, error + float(known.copies * known.shift @ steep)


def _fitted(f: Function, nodes: np.ndarray, mass: np.ndarray, degree: int) -> np.ndarray:
    """Coefficients of the polynomial that is closest to f in the weighted mean square."""
    root = np.sqrt(mass / mass.sum())
    scale = float(np.abs(nodes).max()) or 1.0
    columns = (nodes[:, None] / scale) ** np.arange(degree + 1)
    found = np.linalg.lstsq(root[:, None] * columns, root * f(nodes), rcond=1e-12)[0]
    coefficients: np.ndarray = found / scale ** np.arange(degree + 1)
    return coefficients


def _first_segment(krylov: Krylov) -> tuple[np.ndarray, np.ndarray, int]:
    """T and coupling of the first segment, and its length."""
    known = krylov.of_start
    end = known.segments[1][0] if len(known.segments) > 1 else len(known.T)
    return known.T[:end, :end], known.coupling[:end], end


def _ritz(krylov: Krylov) -> tuple[np.ndarray, np.ndarray, float]:
    """Ritz values of the first segment, their residuals, and the error of the products."""
    ritz = krylov.of_start.ritz(krylov.eps, 0, _first_segment(krylov)[2])
    return ritz.values, ritz.residuals, krylov.of_start.product_error(krylov.eps)


def _radau(krylov: Krylov, low: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Nodes and weights of the rule with a node at `low`; None if the space is invariant, where Gauss is exact."""
    T, coupling, end = _first_segment(krylov)
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
    """By how much the sum of f may change if each value moves by its error, but not below `low`."""
    here = f(values)
    below = f(np.maximum(values - errors, min(low, float(values.min(initial=low)))))
    return float(np.maximum(np.abs(f(values + errors) - here), np.abs(here - below)).sum())
