"""What the conditioning diagnostics return: every figure with its error, or as a bound, or None with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hvpspec.results.codec import decode, encode
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bound, Bracket, Estimate

Definite = Literal["positive", "negative", "indefinite", "unknown"]


@dataclass(frozen=True, eq=False)
class Condition:
    """How well conditioned H + δI is, δ = `damping`, and what that means. n = `parameters`.

    Of H itself, each an Estimate or a Bracket with its confidence:
    largest, smallest: λ_max, λ_min. norm: ‖H‖₂. negative: the number of eigenvalues below −`zero` (the rounding of the
    products), negative_mass: Σ |λ| over them; negative_at_least: so many there are for certain. stable_rank:
    ‖H‖_F²/‖H‖₂². participation_ratio: (tr H)²/‖H‖_F². rank: eigenvalues with |λ| > `rank_threshold`; `rank_at_least`:
    so many there are for certain. bulk_count: eigenvalues beyond the eigenpairs found; bulk_mean, bulk_spread: their
    mean and standard deviation; flatness: that spread relative to ‖H‖₂ (of a flat bulk it is small). Intervals are
    lopsided where one end is certain: see `Estimate.interval`.

    Of H + δI: definite: "positive" or "negative" (at `confidence`), "indefinite" (for certain), or "unknown".
    nearest_zero: an upper bound on the smallest |λ + δ|, for certain; nearest_range: both ends, the lower one being 0
    where H + δI is not shown to be definite. kappa: the condition number; its lower end is certain, the
    upper end is infinite where no bound can be had. effective_dimension: Σ λ/(λ + δ). log_determinant:
    log det(H + δI). Both need H + δI positive definite.

    What it means for H + δI: step: the largest stable step of gradient descent, 2/(λ_max + δ); its lower end is safe.
    gradient_descent: iterations to shrink the error by `accuracy` with the best fixed step, from the worst start.
    conjugate_gradients: an upper bound for CG, in exact arithmetic. digits_lost: log₁₀ κ, of `digits` that the dtype
    has. finite_difference: ‖E‖₂ beside the smallest |λ + δ|, E being the error of a Hessian by central differences of
    the gradient in this dtype, at the textbook step ε^⅓: about ε^⅔ κ (κ by its lower bound). An order of magnitude for
    a loss whose derivatives change over distances of about 1; from 1 on, such a Hessian says nothing of the eigenvalues
    nearest zero, signs included.

    refined: eigenvalues of H nearest −δ, where a refinement was asked for. reasons: why a figure is None, by its name.
    hvps: products it cost, those it shares with the other figures of a spectrum included.
    """

    parameters: int
    damping: float
    confidence: float
    zero: float
    largest: Bracket
    smallest: Bracket
    norm: Bracket
    negative: Estimate
    negative_at_least: int
    negative_mass: Estimate
    rank: Estimate
    rank_threshold: float
    definite: Definite
    nearest_zero: Bound
    kappa: Bracket
    digits_lost: Bracket
    digits: float
    finite_difference: Bound
    hvps: int
    accuracy: float = 1e-6
    stable_rank: Estimate | None = None
    participation_ratio: Estimate | None = None
    bulk_count: int = 0
    bulk_mean: Estimate | None = None
    bulk_spread: Estimate | None = None
    flatness: Estimate | None = None
    effective_dimension: Estimate | None = None
    log_determinant: Estimate | None = None
    step: Bracket | None = None
    gradient_descent: Bracket | None = None
    conjugate_gradients: Bound | None = None
    nearest_range: Bracket | None = None
    rank_at_least: int | None = None
    refined: Eigenpairs | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As spectrum.json has it: infinite and undefined numbers become None."""
        return encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Condition:
        """Reads what `to_dict` gives."""
        return decode(cls, data)
