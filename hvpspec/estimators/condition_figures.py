"""How well conditioned H + δI is, from the basis, the probes and the density of a pass; no further HVP.

With H Q = Q T + F Cᵀ, the eigenvalues of T + δI interlace with those of H + δI (Cauchy): how many of them are negative,
and how large they are, are bounds for H + δI that hold for certain. So does σ_min of [T + δI; Cᵀ], the smallest ‖(H +
δI) x‖ / ‖x‖ over the basis, which is not below the smallest |λ + δ|. A bound from the other side cannot be proved by
any number of products, unless H + δI is definite: then the brackets of λ_max and λ_min give one, at their confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hvpspec.bounds.eigenvalues import Exclusion, bracket
from hvpspec.bounds.spectral_sums import Function, spectral_sum
from hvpspec.bounds.zero_rows import bracket_with_zero
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.krylov.lanczos import Krylov
from hvpspec.results.condition import Condition, Definite
from hvpspec.results.density import Density
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bound, Bracket, Estimate
from hvpspec.validation import Tolerance

ACCURACY = 1e-6  # the factor by which the iterations of the solvers shrink the error


@dataclass(frozen=True)
class _Extremes:
    """The ends of the spectrum. values: Ritz values. zero: what rounding adds to them.

    high, low: brackets of λ_max and λ_min, and norm: of ‖H‖₂, at the confidence of each of two that hold together.
    """

    values: np.ndarray
    zero: float
    high: Bracket
    low: Bracket
    norm: Bracket

    @property
    def size(self) -> float:
        """The largest magnitude of a Ritz value."""
        return float(np.abs(self.values).max())


def read_condition(
    shared: SharedPass,
    density: Density,
    *,
    confidence: float,
    damping: float = 0.0,
    rank_threshold: float | None = None,
    pairs: Eigenpairs | None = None,
    others: tuple[Krylov, ...] = (),
) -> Condition:
    """The conditioning of H + damping · I.

    It is that of the rows of H that are not zero, which basis and density are of. With a damping, H + damping · I as a
    whole can be regular: the zero rows then enter as eigenvalues of exactly `damping`.

    rank_threshold: absolute; by default n · 2ε · ‖H‖₂, as is usual for dense matrices, but at most √(2ε) ‖H‖₂, which is
    less where n is large, and at least the error of the products. pairs: the eigenpairs found; the
    bulk is all other eigenvalues. others: Krylov spaces from other random starts, for the sums over all eigenvalues.
    """
    krylov, n, eps = shared.krylov, shared.krylov.n, shared.A.eps
    ends = _extremes(krylov, confidence)
    values, zero = ends.values, ends.zero
    judged = _with_zero(ends) if krylov.zeros and damping > 0 else ends
    ritz, exclusion = krylov.ritz(), Exclusion.of(krylov)
    threshold = _threshold(shared, ends) if rank_threshold is None else float(rank_threshold)
    below, above = int((values < -2 * zero).sum()), int((values > 2 * zero).sum())
    beyond = int((np.abs(values) > threshold + zero).sum())
    nothing = Estimate(0.0, 0.0, confidence, True, shared.hvps, "exact")
    none_negative = ritz.floor == 0
    reasons: dict[str, str] = {}
    definite, kappa, nearest = _kappa(krylov, judged, damping, confidence)
    if math.isinf(kappa.upper):
        reasons["kappa"] = "only a lower bound: products alone cannot show that no eigenvalue lies closer to zero"
    return Condition(
        parameters=shared.A.n,
        zero_rows=krylov.zeros,
        damping=damping,
        confidence=confidence,
        zero=zero,
        largest=_whole(bracket(ritz, exclusion, 1, confidence), krylov, 1),
        smallest=_whole(bracket(ritz, exclusion, -1, confidence), krylov, -1),
        norm=ends.norm,
        negative=nothing if none_negative else _negative(density, zero, below, n - above),
        negative_at_least=below,
        negative_mass=nothing if none_negative else _negative_mass(density, values, zero, shared.hvps),
        rank=_rank(density, threshold, beyond) if ends.size > 0 else nothing,
        rank_at_least=beyond,
        rank_threshold=threshold,
        definite=definite,
        nearest_zero=nearest,
        nearest_range=_nearest_range(definite, judged, nearest, damping, confidence),
        kappa=kappa,
        digits_lost=Bracket(math.log10(kappa.lower), math.log10(kappa.upper), confidence),
        digits=-math.log10(2 * eps),
        finite_difference=Bound((2 * eps) ** (2 / 3) * kappa.lower, "rule", 0.0),
        hvps=shared.hvps,
        accuracy=ACCURACY,
        reasons=reasons,
        **_of_trace_and_norm(shared, ends, confidence, pairs, reasons),
        **_sums(shared, (krylov, *others), damping, definite, confidence, reasons),
        **_solvers(definite, kappa, judged.high, damping, n, confidence, reasons),
    )


def _threshold(shared: SharedPass, ends: _Extremes) -> float:
    unit = 2 * shared.A.unit_roundoff
    return max(min(unit * shared.A.n, math.sqrt(unit)) * ends.size, ends.zero)


def _extremes(krylov: Krylov, confidence: float) -> _Extremes:
    ritz, exclusion = krylov.ritz(), Exclusion.of(krylov)
    zero, size = float(ritz.noise.max()), float(np.abs(ritz.values).max())
    high, low = (bracket(ritz, exclusion, side, _each_of_two(confidence)) for side in (1, -1))
    norm = Bracket(max(size - zero, 0.0), max(abs(high.upper), abs(low.lower), size), confidence)
    return _Extremes(ritz.values, zero, high, low, norm)


def _with_zero(ends: _Extremes) -> _Extremes:
    """The ends of a spectrum that has the eigenvalue 0 besides."""
    low, high = bracket_with_zero(ends.low, -1), bracket_with_zero(ends.high, 1)
    return replace(ends, values=np.append(ends.values, 0.0), high=high, low=low)


def _whole(end: Bracket, krylov: Krylov, side: int) -> Bracket:
    """λ_max (side 1) or λ_min (side −1) of H, its zero rows included."""
    return bracket_with_zero(end, side) if krylov.zeros else end


def _each_of_two(confidence: float) -> float:
    """The confidence of each of two intervals that hold together with probability `confidence`."""
    return (1 + confidence) / 2


def _kappa(krylov: Krylov, ends: _Extremes, damping: float, confidence: float) -> tuple[Definite, Bracket, Bound]:
    """Whether H + δI is definite, its condition number, and an upper bound on the smallest |λ + δ|."""
    values, noise = ends.values, ends.zero
    nearest = float(np.linalg.svd(krylov.projection.shifted(damping), compute_uv=False)[-1]) + noise
    if krylov.zeros and damping > 0:
        nearest = min(nearest, damping)
    largest = max(float(np.abs(values + damping).max()) - noise, nearest)
    bottom, top = ends.low.lower + damping, ends.high.upper + damping
    definite: Definite = "unknown"
    if bottom > 0:
        definite = "positive"
    elif top < 0:
        definite = "negative"
    elif values.min() + damping < -noise and values.max() + damping > noise:
        definite = "indefinite"
    elif ends.low.lower == 0 and krylov.semidefinite:
        definite = "semidefinite"
    upper = math.inf
    if definite in ("positive", "negative"):
        upper = max(abs(bottom), abs(top)) / min(abs(bottom), abs(top))
    lower = largest / nearest if nearest > 0 else 1.0
    return definite, Bracket(min(lower, upper), upper, confidence), Bound(nearest, "upper")


def _nearest_range(definite: Definite, ends: _Extremes, nearest: Bound, damping: float, confidence: float) -> Bracket:
    """Of the smallest |λ + δ|; its lower end is 0 unless H + δI is definite."""
    distances = {"positive": ends.low.lower + damping, "negative": -ends.high.upper - damping}
    return Bracket(min(distances.get(definite, 0.0), nearest.value), nearest.value, confidence)


def _solvers(
    definite: Definite,
    kappa: Bracket,
    high: Bracket,
    damping: float,
    n: int,
    confidence: float,
    reasons: dict[str, str],
) -> dict[str, Any]:
    """The step of gradient descent, and the iterations that it and CG need to shrink the error to ACCURACY times it."""
    found: dict[str, Any] = {}
    if high.lower + damping > 0:
        found["step"] = Bracket(2 / (high.upper + damping), 2 / (high.lower + damping), confidence)
    else:
        reasons["step"] = "no positive curvature was found"
    if definite in ("indefinite", "negative"):
        shown = "negative definite" if definite == "negative" else "indefinite"
        reason = f"H + damping · I is {shown}: gradient descent and CG do not converge"
        reasons |= dict.fromkeys(("gradient_descent", "conjugate_gradients"), reason)
        return found
    ends = (descent_iterations(kappa.lower), descent_iterations(kappa.upper))
    found["gradient_descent"] = Bracket(*ends, confidence)
    if math.isfinite(kappa.upper):
        root = math.sqrt(kappa.upper)
        steps = math.ceil(_rate(math.log(2 / ACCURACY), root))
        found["conjugate_gradients"] = Bound(float(min(steps, n)), "upper", confidence)
    else:
        reasons["conjugate_gradients"] = "the condition number has no known upper bound: more damping would give one"
    return found


def descent_iterations(kappa: float) -> float:
    """Iterations of gradient descent, with the best fixed step, to shrink the error to ACCURACY times it."""
    return math.inf if math.isinf(kappa) else float(math.ceil(_rate(math.log(1 / ACCURACY), kappa)))


def _rate(distance: float, ratio: float) -> float:
    """distance / ln((ratio + 1)/(ratio − 1)), also if the logarithm is nearly 0."""
    return 1.0 if ratio <= 1 else max(distance / math.log1p(2 / (ratio - 1)), 1.0)


_PER_TRACE_AND_NORM = ("stable_rank", "participation_ratio", "bulk_mean", "bulk_spread", "flatness")


def _of_trace_and_norm(
    shared: SharedPass, ends: _Extremes, confidence: float, pairs: Eigenpairs | None, reasons: dict[str, str]
) -> dict[str, Any]:
    """What follows from trace and Frobenius norm, whose intervals and that of ‖H‖₂ hold together."""
    tolerance = Tolerance(1.0, 0.0, _each_of_two(confidence))
    square, trace = shared.estimate("frobenius_norm", tolerance), shared.estimate("trace", tolerance)
    norm, n = ends.norm, shared.krylov.n
    if not math.isfinite(square.error) or not math.isfinite(trace.error):
        reason = "there were no probes: ask for the trace or the Frobenius norm, or allow more products"
        reasons |= dict.fromkeys(_PER_TRACE_AND_NORM, reason)
        return {}
    if square.value <= 0 or norm.lower <= 0:
        reasons |= dict.fromkeys(_PER_TRACE_AND_NORM, "H is zero, up to rounding")
        return {}
    least, most, whole = max(square.value - square.error, norm.lower), square.value + square.error, abs(trace.value)
    stable = ((least / norm.upper) ** 2, min((most / norm.lower) ** 2, n))
    shares = ((max(whole - trace.error, 0.0) / most) ** 2, min(((whole + trace.error) / least) ** 2, n))
    k = 0 if pairs is None else len(pairs.values)
    found: dict[str, Any] = {
        "stable_rank": Estimate.between((square.value / ends.size) ** 2, *stable, confidence, shared.hvps),
        "participation_ratio": Estimate.between((whole / square.value) ** 2, *shares, confidence, shared.hvps),
        "bulk_count": shared.A.n - k,
    }
    if pairs is None or k in (0, shared.A.n):
        reason = "no eigenvalues were asked for" if k == 0 else "all eigenvalues are known"
        reasons |= dict.fromkeys(_PER_TRACE_AND_NORM[2:], reason)
        return found
    return found | _bulk(trace, square, most, ends, pairs, shared.A.n - k, confidence)


def _bulk(
    trace: Estimate, square: Estimate, most: float, ends: _Extremes, pairs: Eigenpairs, count: int, confidence: float
) -> dict[str, Any]:
    """Mean and spread of the `count` eigenvalues that are not among the pairs, whichever those are.

    They are differences of sums: what is subtracted is known far more accurately than the whole. most: the upper end of
    the Frobenius norm.
    """
    values, errors = pairs.values, pairs.error
    mean, mean_error = (trace.value - values.sum()) / count, (trace.error + errors.sum()) / count
    known_error = float((2 * np.abs(values) * errors + errors**2).sum())
    squares = max(square.value**2 - float((values**2).sum()), 0.0) / count
    up = (most**2 - square.value**2 + known_error) / count
    mean_high, mean_low = abs(mean) + mean_error, max(abs(mean) - mean_error, 0.0)
    spread = math.sqrt(max(squares - mean**2, 0.0))
    low, high = (
        math.sqrt(max(squares - up - mean_high**2, 0.0)),
        math.sqrt(squares + up - min(mean_low**2, squares + up)),
    )
    flat = (spread / ends.size, low / ends.norm.upper, high / ends.norm.lower)
    return {
        "bulk_mean": Estimate(float(mean), float(mean_error), confidence, True, trace.hvps, "krylov"),
        "bulk_spread": Estimate.between(spread, low, high, confidence, trace.hvps),
        "flatness": Estimate.between(*flat, confidence, trace.hvps),
    }


def _sums(
    shared: SharedPass, spaces: tuple[Krylov, ...], damping: float, definite: Definite, confidence: float,
    reasons: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Effective dimension and log-determinant, which need H + δI positive definite."""
    names = ("effective_dimension", "log_determinant")
    each = 1 - (1 - confidence) / 4  # of four that hold together: lower bound, trace, norm, and the random vector
    low = bracket(shared.krylov.ritz(), Exclusion.of(shared.krylov), -1, each).lower
    if definite != "positive" or low + damping <= 0:
        needed = f"; a damping above {max(0.0, -low):.3g} makes it so" if math.isfinite(low) else ""
        reasons |= dict.fromkeys(names, f"needs H + damping · I to be positive definite{needed}")
        return {}
    known = shared.sums(each)

    def total(f: Function, of_zeros: float = 0.0) -> Estimate:
        value, error = spectral_sum(spaces, f, low, each, known)
        return Estimate(value + of_zeros, error, confidence, math.isfinite(error), shared.hvps, "slq")

    zeros = shared.krylov.zeros
    exact = Estimate(float(shared.krylov.n), 0.0, confidence, True, shared.hvps, "exact")
    return {
        "log_determinant": total(
            lambda x: np.log(x + damping), zeros * math.log(damping) if zeros and damping > 0 else 0.0
        ),
        "effective_dimension": total(lambda x: x / (x + damping)) if damping > 0 else exact,
    }


def _rank(density: Density, threshold: float, at_least: int) -> Estimate:
    small = density.count(np.nextafter(-threshold, -math.inf), threshold)
    least, most = (density.n - end for end in reversed(small.interval))
    value = density.n * float(density.weights[np.abs(density.nodes) > _reach_to_zero(density, threshold)].sum())
    value = min(max(value, least), most)
    others = Estimate.between(value, least, most, small.confidence, small.hvps, small.method)
    return _within(others, at_least, density.n)


def _negative(density: Density, zero: float, least: int, most: int) -> Estimate:
    """The number of eigenvalues below −zero."""
    found = density.count(-math.inf, np.nextafter(-zero, -math.inf))
    low, high = found.interval
    value = density.n * float(density.weights[density.nodes < -_reach_to_zero(density, zero)].sum())
    value = min(max(value, low), high)
    return _within(Estimate.between(value, low, high, found.confidence, found.hvps, found.method), least, most)


def _reach_to_zero(density: Density, threshold: float) -> np.ndarray:
    """How small a node's magnitude may be for its eigenvalues to be taken for zero: what is so near may be.

    That is only for the estimate. The interval allows for either.
    """
    errors = 0.0 if density.node_errors is None else density.node_errors
    reach: np.ndarray = np.maximum(threshold, errors)
    return reach


def _within(count: Estimate, least: float, most: float) -> Estimate:
    """The count, limited by bounds that are certain; where these contradict its interval, they replace it."""
    value = min(max(count.value, least), most)
    low, high = max(count.interval[0], least), min(count.interval[1], most)
    if low > high:
        low, high = least, most
    return Estimate.between(value, low, high, count.confidence, count.hvps, count.method)


def _negative_mass(density: Density, ritz: np.ndarray, noise: float, hvps: int) -> Estimate:
    """Σ |λ| over λ < 0, which is n ∫ F(x) dx up to 0 for the distribution function F."""
    low = density.support[0]
    certain = float(np.maximum(-ritz - noise, 0.0).sum())  # not more than the true sum (Ky Fan)
    if not math.isfinite(low):
        return Estimate.between(certain, certain, math.inf, density.confidence, hvps, "slq")
    starts = np.concatenate([[min(low, 0.0)], density.nodes[density.nodes < 0]])
    lengths = np.diff(np.concatenate([starts, [0.0]]))
    lower, upper = density.cdf_bounds(starts)
    least = max(density.n * float(lower @ lengths), certain)
    moved = (
        0.0
        if density.node_errors is None
        else float(density.weights[density.exact] @ density.node_errors[density.exact])
    )
    most = max(density.n * (float(upper @ lengths) + moved), certain) + noise * density.n * float(upper[-1])
    value = max(density.n * float(density.weights @ np.maximum(-density.nodes, 0.0)), certain)
    return Estimate.between(value, least, most, density.confidence, hvps, "slq")
