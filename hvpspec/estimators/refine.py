"""What the eigenvalues nearest to zero, found on request, change in the conditioning figures.

The Krylov space knows a good deal of them: the smallest right singular vectors of [T + δI; Cᵀ] are the directions in
which ‖(H + δI) x‖ is least there, and (H + δI) times these follows without a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from hvpspec.estimators.condition_figures import descent_iterations
from hvpspec.estimators.shared_pass import OnePass
from hvpspec.krylov.inverse_iteration import nearest
from hvpspec.results.condition import Condition
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bound, Bracket

_DRAWS = 1000  # Gaussians of a seed that are left to other spaces


def refined(
    known: Condition, one: OnePass, *, k: int, budget: float, tol: float, seed: int, report: Callable[[], None]
) -> Condition:
    """The figures with the k eigenvalues nearest to −δ, as far as `budget` further products find them."""
    k = min(k, one.A.n)
    pairs = _at_the_end(known, one, tol) if k == 1 else None
    if pairs is None:
        pairs = nearest(
            one.A, k, -known.damping, tol=tol, budget=budget, norm=known.norm.upper, seed=seed,
            drawn=one.krylov.drawn + _DRAWS, first=_first(one, k, known.damping), report=lambda made: report(),
        )  # fmt: skip
    if pairs is None:
        reasons = {**known.reasons, "refined": f"{budget:,.0f} products did not finish a round; give more"}
        return replace(known, hvps=one.hvps, reasons=reasons)
    # ‖(H + δI) v‖ for a unit vector v is not below the smallest |λ + δ|.
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
    return replace(known, refined=pairs, hvps=one.hvps)


def _at_the_end(known: Condition, one: OnePass, tol: float) -> Eigenpairs | None:
    """λ_min or λ_max, where H + δI is definite and the bracket of that is within the tolerance already."""
    if known.definite not in ("positive", "negative"):
        return None
    ritz, last = one.krylov.ritz(), -1 if known.definite == "negative" else 0
    value, residual = float(ritz.values[last]), float(ritz.residuals[last])
    ends = known.smallest if last == 0 else known.largest
    error = max(ends.upper - value, value - ends.lower)
    if error > tol * abs(value + known.damping):
        return None
    vector = one.krylov.vectors(ritz.coefficients[:, [last]]).cpu().numpy()
    return Eigenpairs(np.array([value]), vector, np.array([residual]), np.array([error]), True, 0)


def _first(one: OnePass, k: int, damping: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The k best directions of the Krylov space, (n, k), and (H + δI) times these."""
    krylov = one.krylov
    known = krylov.projection
    if k > len(known.T):
        return None
    shifted = known.shifted(damping)
    small = np.linalg.svd(shifted, full_matrices=False)[2][-k:].T
    images = krylov.basis.combine(shifted[: len(known.T)] @ small)
    images = images + krylov.frontier @ torch.from_numpy(known.coupling.T @ small).to(krylov.frontier)
    X, turn = np.linalg.qr(krylov.basis.combine(small).double().cpu().numpy())
    return X, np.linalg.solve(turn.T, images.double().cpu().numpy().T).T
