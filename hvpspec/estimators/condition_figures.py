"""How well conditioned H + δI is: read off the basis, the probes and the density that a pass has made. No further HVP.

With H Q = Q T + F Cᵀ, the eigenvalues of T + δI interlace with those of H + δI (Cauchy): how many of them are negative,
and how large they are, bounds for certain what H + δI has. So does σ_min of [T + δI; Cᵀ], which is the least
‖(H + δI) x‖ / ‖x‖ over the basis and so not below the smallest |λ + δ|. A bound on the other side no number of products
proves, unless H + δI is definite: then the brackets of λ_max and λ_min give one, at their confidence.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hvpspec.bounds.eigenvalues import Exclusion, bracket
from hvpspec.bounds.spectral_sums import Function, spectral_sum
from hvpspec.estimators.shared_pass import OnePass
from hvpspec.krylov.lanczos import Krylov
from hvpspec.results.condition import Condition, Definite
from hvpspec.results.density import Density
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bound, Bracket, Estimate
from hvpspec.validation import Tolerance

ACCURACY = 1e-6  # what the iterations of the solvers are counted to


def read_condition(
    one: OnePass,
    density: Density,
    *,
    confidence: float,
    damping: float = 0.0,
    rank_threshold: float | None = None,
    pairs: Eigenpairs | None = None,
    others: tuple[Krylov, ...] = (),
) -> Condition:
    """The conditioning figures of H + damping · I.

    rank_threshold: absolute; by default n · 2ε · ‖H‖₂, as is usual for dense matrices. pairs: those found, which the
    bulk is the rest of. others: Krylov spaces from other random starts, for the sums over all eigenvalues.
    """
    krylov = one.krylov
    ritz, exclusion, n = krylov.ritz(), Exclusion.of(krylov), krylov.n
    half = (1 + confidence) / 2  # for each of two figures or ends that are needed together
    zero = float(ritz.noise.max())
    high, low = (bracket(ritz, exclusion, side, half) for side in (1, -1))
    inner = float(np.abs(ritz.values).max())
    norm = Bracket(max(inner - zero, 0.0), max(abs(high.upper), abs(low.lower), inner), confidence)
    threshold = max(2 * one.A.eps * n * inner, zero) if rank_threshold is None else float(rank_threshold)
    below, above = int((ritz.values < -2 * zero).sum()), int((ritz.values > 2 * zero).sum())
    beyond = int((np.abs(ritz.values) > threshold + zero).sum())
    reasons: dict[str, str] = {}

    definite, kappa, nearest = _kappa(krylov, ritz.values, zero, high, low, damping, confidence)
    lost = Bracket(math.log10(kappa.lower), math.log10(kappa.upper), confidence)
    rule = Bound((2 * one.A.eps) ** (2 / 3) * kappa.lower, "rule", 0.0)
    figures: dict[str, Any] = {}
    figures |= _of_trace_and_norm(one, norm, half, confidence, pairs, reasons)
    figures |= _sums(one, (krylov, *others), damping, definite, confidence, reasons)
    figures |= _solvers(definite, kappa, high, damping, n, confidence, reasons)
    if math.isinf(kappa.upper):
        reasons["kappa"] = "only a lower bound: no number of products shows that no eigenvalue lies nearer to zero"
    return Condition(
        parameters=n,
        damping=damping,
        confidence=confidence,
        zero=zero,
        largest=bracket(ritz, exclusion, 1, confidence),
        smallest=bracket(ritz, exclusion, -1, confidence),
        norm=norm,
        negative=_within(density.count(density.support[0] - 1, -zero), below, n - above),
        negative_at_least=below,
        negative_mass=_negative_mass(density, ritz.values, zero, one.hvps),
        rank=_rank(density, threshold, beyond)
        if inner > 0
        else Estimate(0.0, 0.0, confidence, True, one.hvps, "exact"),
        rank_at_least=beyond,
        rank_threshold=threshold,
        definite=definite,
        nearest_zero=nearest,
        nearest_range=_nearest_range(definite, high, low, nearest, damping, confidence),
        kappa=kappa,
        digits_lost=lost,
        digits=-math.log10(2 * one.A.eps),
        finite_difference=rule,
        hvps=one.hvps,
        accuracy=ACCURACY,
        reasons=reasons,
        **figures,
    )


def _kappa(
    krylov: Krylov, values: np.ndarray, noise: float, high: Bracket, low: Bracket, damping: float, confidence: float
) -> tuple[Definite, Bracket, Bound]:
    nearest = float(np.linalg.svd(krylov.projection.shifted(damping), compute_uv=False)[-1]) + noise
    largest = max(float(np.abs(values + damping).max()) - noise, nearest)
    bottom, top = low.lower + damping, high.upper + damping
    definite: Definite = "unknown"
    if bottom > 0:
        definite = "positive"
    elif top < 0:
        definite = "negative"
    elif values.min() + damping < -noise and values.max() + damping > noise:
        definite = "indefinite"
    upper = math.inf
    if definite in ("positive", "negative"):
        upper = max(abs(bottom), abs(top)) / min(abs(bottom), abs(top))
    lower = largest / nearest if nearest > 0 else 1.0
    return definite, Bracket(min(lower, upper), upper, confidence), Bound(nearest, "upper")


def _nearest_range(
    definite: Definite, high: Bracket, low: Bracket, nearest: Bound, damping: float, confidence: float
) -> Bracket:
    """Of the smallest |λ + δ|; its lower end is 0 unless H + δI is definite."""
    ends = {"positive": low.lower + damping, "negative": -high.upper - damping}
    return Bracket(min(ends.get(definite, 0.0), nearest.value), nearest.value, confidence)


def _solvers(
    definite: Definite,
    kappa: Bracket,
    high: Bracket,
    damping: float,
    n: int,
    confidence: float,
    reasons: dict[str, str],
) -> dict[str, Any]:
    """The step of gradient descent, and how many iterations it and CG need for an error `ACCURACY` times smaller."""
    found: dict[str, Any] = {}
    if high.lower + damping > 0:
        found["step"] = Bracket(2 / (high.upper + damping), 2 / (high.lower + damping), confidence)
    else:
        reasons["step"] = "no positive curvature was found"
    if definite in ("indefinite", "negative"):
        shown = "negative definite" if definite == "negative" else "indefinite"
        reasons["gradient_descent"] = reasons["conjugate_gradients"] = f"H + damping · I is {shown}: neither converges"
        return found
    ends = (descent_iterations(kappa.lower), descent_iterations(kappa.upper))
    found["gradient_descent"] = Bracket(*ends, confidence)
    if math.isfinite(kappa.upper):
        root = math.sqrt(kappa.upper)
        steps = math.ceil(_rate(math.log(2 / ACCURACY), root))
        found["conjugate_gradients"] = Bound(float(min(steps, n)), "upper", confidence)
    else:
        reasons["conjugate_gradients"] = "the condition number is not bounded from above: more damping would do it"
    return found


def descent_iterations(kappa: float) -> float:
    """Iterations of gradient descent with the best fixed step for an error `ACCURACY` times smaller."""
    return math.inf if math.isinf(kappa) else float(math.ceil(_rate(math.log(1 / ACCURACY), kappa)))


def _rate(distance: float, ratio: float) -> float:
    """distance / ln((ratio + 1)/(ratio − 1)), also where that is near 0."""
    return 1.0 if ratio <= 1 else max(distance / math.log1p(2 / (ratio - 1)), 1.0)


def _of_trace_and_norm(
    one: OnePass, norm: Bracket, half: float, confidence: float, pairs: Eigenpairs | None, reasons: dict[str, str]
) -> dict[str, Any]:
    """What comes of trace and Frobenius norm, their intervals and that of ‖H‖₂ taken together."""
    tolerance = Tolerance(1.0, 0.0, half)
    square = one.estimate("frobenius_norm", tolerance)
    trace = one.estimate("trace", tolerance)
    names = ("stable_rank", "participation_ratio", "bulk_mean", "bulk_spread", "flatness")
    if not math.isfinite(square.error) or not math.isfinite(trace.error):
        reasons |= dict.fromkeys(names, "there were no probes: ask for trace or Frobenius norm, or give more products")
        return {}
    least, most = max(square.value - square.error, norm.lower), square.value + square.error
    if square.value <= 0 or norm.lower <= 0:
        reasons |= dict.fromkeys(names, "H is zero to within rounding")
        return {}
    n, size = one.A.n, float(np.abs(one.krylov.ritz().values).max())
    stable = ((least / norm.upper) ** 2, min((most / norm.lower) ** 2, n))
    whole = abs(trace.value)
    shared = ((max(whole - trace.error, 0.0) / most) ** 2, min(((whole + trace.error) / least) ** 2, n))
    found: dict[str, Any] = {
        "stable_rank": Estimate.between((square.value / size) ** 2, *stable, confidence, one.hvps),
        "participation_ratio": Estimate.between((whole / square.value) ** 2, *shared, confidence, one.hvps),
    }
    k = 0 if pairs is None else len(pairs.values)
    found["bulk_count"] = n - k
    if k in (0, n):
        reasons |= dict.fromkeys(names[2:], "no eigenvalues were asked for" if k == 0 else "every eigenvalue is known")
        return found
    assert pairs is not None
    # Sums over the rest: what is taken off is known far better than the whole.
    values, errors = pairs.values, pairs.error
    mean, mean_error = (trace.value - values.sum()) / (n - k), (trace.error + errors.sum()) / (n - k)
    known_error = float((2 * np.abs(values) * errors + errors**2).sum())
    squares = max(square.value**2 - float((values**2).sum()), 0.0) / (n - k)
    up = (most**2 - square.value**2 + known_error) / (n - k)
    variance = max(squares - mean**2, 0.0)
    mean_high, mean_low = abs(mean) + mean_error, max(abs(mean) - mean_error, 0.0)
    found["bulk_mean"] = Estimate(float(mean), float(mean_error), confidence, True, one.hvps, "krylov")
    spread = math.sqrt(variance)
    ends = (
        math.sqrt(max(squares - up - mean_high**2, 0.0)),
        math.sqrt(squares + up - min(mean_low**2, squares + up)),
    )
    found["bulk_spread"] = Estimate.between(spread, *ends, confidence, one.hvps)
    found["flatness"] = Estimate.between(
        spread / size, ends[0] / norm.upper, ends[1] / norm.lower, confidence, one.hvps
    )
    return found


def _sums(
    one: OnePass, spaces: tuple[Krylov, ...], damping: float, definite: Definite, confidence: float,
    reasons: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Effective dimension and log-determinant, which need H + δI positive definite."""
    names = ("effective_dimension", "log_determinant")
    each = 1 - (1 - confidence) / 4  # they rest on the lower bound, trace, norm and a random vector
    low = bracket(one.krylov.ritz(), Exclusion.of(one.krylov), -1, each).lower
    if definite != "positive" or low + damping <= 0:
        needed = f"; a damping above {max(-low, 0.0):.3g} makes it so" if math.isfinite(low) else ""
        reasons |= dict.fromkeys(names, f"needs H + damping · I positive definite{needed}")
        return {}
    known = one.sums(each)

    def total(f: Function) -> Estimate:
        value, error = spectral_sum(spaces, f, low, each, known)
        return Estimate(value, error, confidence, math.isfinite(error), one.hvps, "slq")

    exact = Estimate(float(one.A.n), 0.0, confidence, True, one.hvps, "exact")
    return {
        "log_determinant": total(lambda x: np.log(x + damping)),
        "effective_dimension": total(lambda x: x / (x + damping)) if damping > 0 else exact,
    }


def _rank(density: Density, threshold: float, at_least: int) -> Estimate:
    small = density.count(-threshold, threshold)
    least, most = (density.n - end for end in reversed(small.interval))
    others = Estimate.between(density.n - small.value, least, most, small.confidence, small.hvps, small.method)
    return _within(others, at_least, density.n)


def _within(count: Estimate, least: float, most: float) -> Estimate:
    """The count, with bounds that are certain."""
    value = min(max(count.value, least), most)
    low, high = count.interval
    return Estimate.between(value, max(low, least), min(high, most), count.confidence, count.hvps, count.method)


def _negative_mass(density: Density, ritz: np.ndarray, noise: float, hvps: int) -> Estimate:
    """Σ |λ| over λ < 0, which is n ∫ F(x) dx up to 0, F being the distribution function."""
    low = density.support[0]
    certain = float(np.maximum(-ritz - noise, 0.0).sum())  # Ky Fan: the Ritz values' own sum is not larger
    if not math.isfinite(low):
        return Estimate.between(certain, certain, math.inf, density.confidence, hvps, "slq")
    starts = np.concatenate([[min(low, 0.0)], density.nodes[density.nodes < 0]])
    lengths = np.diff(np.concatenate([starts, [0.0]]))
    lower, upper = density.cdf_bounds(starts)
    least = max(density.n * float(lower @ lengths), certain)
    most = max(density.n * float(upper @ lengths), certain) + noise * density.n * float(upper[-1])
    value = max(density.n * float(density.weights @ np.maximum(-density.nodes, 0.0)), certain)
    return Estimate.between(value, least, most, density.confidence, hvps, "slq")
