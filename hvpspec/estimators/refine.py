"""The eigenvalues nearest to zero, found on request, and how they sharpen the conditioning.

The search starts from the Krylov space: the smallest right singular vectors of [T + δI; Cᵀ] are the directions in which
‖(H + δI) x‖ is smallest there, and the products of H + δI with them are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hvpspec.estimators.condition_figures import descent_iterations
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.krylov.inverse_iteration import nearest, orthonormal
from hvpspec.krylov.lanczos import Krylov
from hvpspec.results.condition import Condition
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bound, Bracket

_RESERVED_GAUSSIANS = 1000  # of the seed, after those drawn so far, for other Krylov spaces


def refined(
    known: Condition, shared: SharedPass, *, k: int, budget: float, tol: float, seed: int, report: Callable[[], None]
) -> Condition:
    """The conditioning with the k eigenvalues nearest to −δ, as well as `budget` further products find them."""
    k = min(k, shared.krylov.n)
    zero = shared.krylov.zero
    pairs = _at_the_end(known, shared, tol) if k == 1 else None
    if pairs is None:
        pairs = nearest(
            shared.A, k, -known.damping, tol=tol, budget=budget, norm=known.norm.upper, seed=seed,
            drawn=shared.krylov.drawn + _RESERVED_GAUSSIANS, zero=zero,
            first=best_directions(shared.krylov, k, known.damping), report=report,
        )  # fmt: skip
    if pairs is None:
        reason = f"{budget:,.0f} products were not enough for one round; allow more"
        return replace(known, hvps=shared.hvps, reasons={**known.reasons, "refined": reason})
    # For a unit vector v, ‖(H + δI) v‖ is not below the smallest |λ + δ|.
    distance = float(np.min(np.hypot(pairs.values + known.damping, pairs.residuals))) + known.zero
    if distance < known.nearest_zero.value:
        sharper = known.nearest_zero.value / distance
        kappa = Bracket(min(known.kappa.lower * sharper, known.kappa.upper), known.kappa.upper, known.confidence)
        both = known.nearest_range
        rule, descent = known.finite_difference, known.gradient_descent
        known = replace(
            known,
            nearest_zero=Bound(distance, "upper"),
            nearest_range=None if both is None else Bracket(min(both.lower, distance), distance, known.confidence),
            kappa=kappa,
            digits_lost=Bracket(math.log10(kappa.lower), math.log10(kappa.upper), known.confidence),
            finite_difference=replace(rule, value=rule.value / known.kappa.lower * kappa.lower),
            gradient_descent=None if descent is None else replace(descent, lower=descent_iterations(kappa.lower)),
        )
    return replace(known, refined=pairs, hvps=shared.hvps)


def _at_the_end(known: Condition, shared: SharedPass, tol: float) -> Eigenpairs | None:
    """λ_min or λ_max, if H + δI is definite and its bracket is within the tolerance already; no product."""
    if known.definite not in ("positive", "negative"):
        return None
    ritz, last = shared.krylov.ritz(), -1 if known.definite == "negative" else 0
    value, residual = float(ritz.values[last]), float(ritz.residuals[last])
    ends = known.smallest if last == 0 else known.largest
    error = max(ends.upper - value, value - ends.lower)
    if error > tol * abs(value + known.damping):
        return None
    vector = shared.krylov.vectors(ritz.coefficients[:, [last]]).cpu().numpy()
    return Eigenpairs(np.array([value]), vector, np.array([residual]), np.array([error]), True, 0)


def best_directions(krylov: Krylov, k: int, damping: float) -> tuple[Tensor, Tensor] | None:
    """The k best directions of the Krylov space and (H + δI) times these, (n, k), float64; None if it is too small."""
    known = krylov.projection
    if k > len(known.T):
        return None
    shifted = known.shifted(damping)
    small = np.linalg.svd(shifted, full_matrices=False)[2][-k:].T
    images = krylov.basis.combine(shifted[: len(known.T)] @ small)
    images = images + krylov.frontier @ torch.from_numpy(known.coupling.T @ small).to(krylov.frontier)
    X, turn = orthonormal(krylov.basis.combine(small).double())
    return X, images.double() @ torch.from_numpy(np.linalg.inv(turn)).to(X.device)
