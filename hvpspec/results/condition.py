"""What the conditioning diagnostics return: each quantity with its error, or as a bound, or None with a reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hvpspec.entries import Count, Share, Size
from hvpspec.results.codec import Stored
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bound, Bracket, Estimate
from hvpspec.wording import counted

Definite = Literal["positive", "negative", "semidefinite", "indefinite", "unknown"]


@dataclass(frozen=True, eq=False, repr=False)
class Condition(Stored):
    """How well conditioned H + δI is, where δ is `damping`, and what follows from it.

    An Estimate or a Bracket holds at its own confidence. Intervals are lopsided where one end is certain: see
    `Estimate.interval`. A quantity that cannot be determined is None, and `reasons` says why.

    Attributes
    ----------
    parameters : int
        n: H is n × n.
    damping : float
        δ.
    confidence : float
        That of the intervals, between 0 and 1.
    zero : float
        The rounding error of the products: an eigenvalue counts as negative where it is below −`zero`.
    largest, smallest : Bracket
        Of λ_max and λ_min of H.
    norm : Bracket
        Of ‖H‖₂.
    negative : Estimate
        The number of negative eigenvalues of H.
    negative_at_least : int
        A lower bound on that number which is certain.
    negative_mass : Estimate
        Σ |λ| over the negative eigenvalues of H.
    rank : Estimate
        The numerical rank: the number of eigenvalues with |λ| > `rank_threshold`.
    rank_threshold : float
        In the unit of the eigenvalues.
    definite : {"positive", "negative", "semidefinite", "indefinite", "unknown"}
        Of H + δI: "positive" and "negative" hold at `confidence`, "indefinite" for certain. "semidefinite": no
        eigenvalue is negative, as is known of the matrix beforehand, and some may be zero.
    nearest_zero : Bound
        An upper bound on the smallest |λ + δ|, which is certain.
    kappa : Bracket
        The condition number of H + δI. Its lower end is certain; the upper end is infinite where none is known.
    digits_lost : Bracket
        log₁₀ κ: decimal digits that solving a linear system with H + δI loses.
    digits : float
        Decimal digits that the dtype has.
    finite_difference : Bound
        A rule of thumb: the error ‖E‖₂ of a Hessian made by central differences of the gradient in this dtype, at the
        textbook step ε^⅓, relative to the smallest |λ + δ|; about ε^⅔ κ, with the lower bound on κ. It is an order of
        magnitude for a loss whose derivatives change over distances of about 1. From 1 on, such a Hessian says nothing
        about the eigenvalues nearest zero, not even their signs.
    hvps : int
        Matrix-vector products that it cost, those shared with the other quantities of a spectrum included.
    accuracy : float
        By how much the iterations counted in `gradient_descent` and `conjugate_gradients` shrink the error.
    stable_rank : Estimate or None
        ‖H‖_F²/‖H‖₂².
    participation_ratio : Estimate or None
        (tr H)²/‖H‖_F².
    bulk_count : int
        Number of eigenvalues of H besides the eigenpairs found: the bulk.
    bulk_mean, bulk_spread : Estimate or None
        Mean and standard deviation of the bulk.
    flatness : Estimate or None
        `bulk_spread` relative to ‖H‖₂; small where the bulk is flat.
    effective_dimension : Estimate or None
        Σ λ/(λ + δ); needs H + δI positive definite.
    log_determinant : Estimate or None
        log det(H + δI); needs H + δI positive definite.
    step : Bracket or None
        The largest stable step of gradient descent on H + δI, 2/(λ_max + δ). A step up to the lower end is safe.
    gradient_descent : Bracket or None
        Iterations with the best fixed step, from the worst start.
    conjugate_gradients : Bound or None
        An upper bound on the iterations of CG in exact arithmetic.
    nearest_range : Bracket or None
        Of the smallest |λ + δ|; the lower end is 0 where H + δI is not shown to be definite.
    rank_at_least : int or None
        A lower bound on the numerical rank which is certain.
    refined : Eigenpairs or None
        The eigenvalues of H nearest to −δ, where a refinement was asked for.
    zero_rows : int
        Rows of H that are exactly zero, such as those of embeddings that no batch uses or of dead units: as many
        eigenvalues of 0. Rank, `kappa`, `nearest_zero` and `definite` are of the other rows; with a damping, for which
        H + δI as a whole can be regular, the zero rows enter as eigenvalues of exactly δ.
    reasons : dict of str to str
        Why a quantity is None, by its name.

    Examples
    --------
    >>> import hvpspec, numpy as np
    >>> found = hvpspec.condition(np.diag([8.0, 4.0, 2.0]))
    >>> print(found.kappa, found.definite)
    4 … 4 (0.95) positive
    >>> round(found.lambda_max.value, 9), round(found.stable_rank.value, 9)
    (8.0, 1.3125)
    """

    parameters: Count
    damping: Size
    confidence: Share
    zero: Size
    largest: Bracket
    smallest: Bracket
    norm: Bracket
    negative: Estimate
    negative_at_least: Count
    negative_mass: Estimate
    rank: Estimate
    rank_threshold: Size
    definite: Definite
    nearest_zero: Bound
    kappa: Bracket
    digits_lost: Bracket
    digits: float
    finite_difference: Bound
    hvps: Count
    accuracy: Size = 1e-6
    stable_rank: Estimate | None = None
    participation_ratio: Estimate | None = None
    bulk_count: Count = 0
    bulk_mean: Estimate | None = None
    bulk_spread: Estimate | None = None
    flatness: Estimate | None = None
    effective_dimension: Estimate | None = None
    log_determinant: Estimate | None = None
    step: Bracket | None = None
    gradient_descent: Bracket | None = None
    conjugate_gradients: Bound | None = None
    nearest_range: Bracket | None = None
    rank_at_least: Count | None = None
    refined: Eigenpairs | None = None
    zero_rows: Count = 0
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def lambda_max(self) -> Bracket:
        """λ_max of H: another name of `largest`."""
        return self.largest

    @property
    def lambda_min(self) -> Bracket:
        """λ_min of H: another name of `smallest`."""
        return self.smallest

    @property
    def definiteness(self) -> str:
        """`definite` in words: "positive definite", "positive semidefinite", "not shown to be definite", …"""
        if self.definite == "unknown":
            return "not shown to be definite"
        if self.definite == "semidefinite":
            return "positive semidefinite"
        return self.definite if self.definite == "indefinite" else f"{self.definite} definite"

    def __repr__(self) -> str:
        matrix = f"H + {self.damping:g} I" if self.damping else "H"
        lines = [f"<Condition of {matrix}, n = {self.parameters:,}: {self.definiteness}, {counted(self.hvps, 'HVP')}"]
        for name in _SHOWN:
            if (quantity := getattr(self, name)) is not None:
                lines.append(f"  {name:<19} {quantity}")
        return "\n".join(lines) + ">"


_SHOWN = (
    "kappa", "nearest_zero", "lambda_max", "lambda_min", "negative", "rank", "stable_rank", "effective_dimension",
    "log_determinant", "step",
)  # fmt: skip
