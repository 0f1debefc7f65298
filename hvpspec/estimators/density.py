"""The spectral density by stochastic Lanczos quadrature: each random vector samples the distribution of eigenvalues.

For a random unit vector v, the measure Σ_i (u_iᵀv)² δ(λ_i) has the distribution of eigenvalues as its mean, and varies
little if n is large: the sum of (u_iᵀv)² over a share p of the eigenvalues is a Beta variable of variance
2p(1 − p)/(n + 2). Lanczos from v gives its Gauss quadrature, and bounds on its distribution function. Eigenvalues that
are known one by one, and shown to have no further copies, are counted as one each. (Golub and Welsch 1969,
doi:10.1090/S0025-5718-69-99647-1; Chen, Trogdon, Ubaru 2021, arXiv:2105.06595: spend products on steps rather than on
vectors.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from hvpspec.bounds.quadrature import quadrature_error, read_density
from hvpspec.bounds.zero_rows import density_with_zeros
from hvpspec.distributed.shard import over_ranks
from hvpspec.estimators.eigsh import Wanted, converged
from hvpspec.estimators.passes.extend_or_probe import SettlingZero
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.lanczos import Krylov
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.options import DEFAULT_MAX_HVPS, LEAST_HVPS_TO_CHECK, Place
from hvpspec.results.density import Density
from hvpspec.results.estimate import Rounding
from hvpspec.validation import Tolerance, check_budget, check_seed

_MARGIN_OF_VECTORS = 1.5  # on the products that more random vectors are expected to take
_CHECKS_PER_BASIS = 20  # the density is computed after each growth of the basis by one part in this many


@over_ranks
def spectral_density(
    A: Any,
    *,
    rtol: float = 0.02,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    basis_memory: int | str | None = None,
    basis_on: Place = "device",
    callback: Callable[[Density], None] | None = None,
) -> Density:
    """Estimate the distribution of the eigenvalues of a symmetric operator, by stochastic Lanczos quadrature.

    Parameters
    ----------
    A : HessianOperator, LinearOperator, sparse or dense array, or torch tensor, shape (n, n)
        The symmetric operator.
    seed, basis_memory, basis_on
        As for `hvpspec.eigsh`.
    rtol : float, default 0.02
        Stop when the Wasserstein-1 distance to the true distribution is, with probability `confidence`, at most `rtol`
        times the range of the Ritz values. Part of this is left to the quadrature error, which more Lanczos steps
        reduce, and the rest to the sampling error, which more random vectors reduce.
    confidence : float, default 0.95
        Of the error and of the counts of eigenvalues.
    max_hvps : int, optional
        Budget of products; by default 1000, or n if that is less. When it is spent, the current density is returned
        with ``converged=False``.
    callback : callable, optional
        Called with the current `Density` as it improves.

    Returns
    -------
    Density
        Weights on nodes, with bounds on the distribution function; ``count(a, b)`` estimates a number of eigenvalues.

    Raises
    ------
    InputError
        For options out of range, or an operator that is not symmetric.

    Notes
    -----
    Costs one HVP a step. A random vector has one component in the eigenspace of a multiple eigenvalue, however many
    copies there are, so that no count is exact here unless the Krylov space becomes invariant. (`spectrum` has probes
    that show where there are no copies, and counts those eigenvalues one by shared.) Sources:
    doi:10.1090/S0025-5718-69-99647-1, arXiv:2105.06595.

    Examples
    --------
    >>> import numpy as np
    >>> import hvpspec
    >>> density = hvpspec.spectral_density(np.diag([1.0, 2.0, 3.0, 4.0]))
    >>> density.count(1.5, 3.5).value
    2.0
    """
    tolerance, seed = Tolerance(rtol, 0.0, confidence), check_seed(seed)
    storage, operator = check_storage(basis_memory, basis_on), as_symmetric(A)
    budget = min(check_budget(max_hvps) or DEFAULT_MAX_HVPS, operator.n)
    done: list[Krylov] = []
    already, steps = operator.hvps, 0
    rounding: Rounding | None = None
    kept = 0 if operator.explicit or (max_hvps or math.inf) <= LEAST_HVPS_TO_CHECK else 1
    if max_hvps is not None:
        budget = min(budget, max_hvps - kept)
    while True:
        shared = SharedPass(operator, seed=seed, storage=storage, probes=False, first_draw=len(done))
        shared.rounding = rounding
        while True:
            shared.extend(1)
            spent, last = operator.hvps - already, shared.krylov.m >= (steps or shared.capacity)
            due = not steps and shared.krylov.m % max(1, shared.krylov.m // _CHECKS_PER_BASIS) == 0
            if not (last or due or spent >= budget):
                continue
            density = read_density([*done, shared.krylov], confidence, spent)
            allowed = tolerance.rtol * ritz_range([*done, shared.krylov])
            density = replace(density, converged=density.error <= allowed or shared.dimension == 0)
            if density.converged or spent >= budget:
                return _checked(density, [*done, shared.krylov], shared, kept)
            if callback is not None:
                callback(density)
            if last or (not steps and _steps_suffice(density, allowed, shared, budget)):
                break
        steps = shared.krylov.m  # enough for the other random vectors as well
        shared.check(budget - spent)
        rounding = shared.rounding  # measured once
        shared.krylov.basis.release()  # from now on, only the small matrices are needed
        done.append(shared.krylov)


def ritz_range(spaces: list[Krylov]) -> float:
    """From the smallest to the largest Ritz value: the scale of tolerances.

    Bounds on the spectrum are no such scale: the less is known, the farther apart they are.
    """
    values = [krylov.ritz().values for krylov in spaces]
    return float(max(found[-1] for found in values) - min(found[0] for found in values))


def _checked(density: Density, spaces: list[Krylov], shared: SharedPass, kept: int) -> Density:
    """With what a check of the products adds to the error."""
    before, spent = shared.krylov.eps, shared.hvps
    shared.check(kept)
    spent = density.hvps + shared.hvps - spent
    if shared.krylov.eps == before:
        return replace(density, hvps=spent)
    return replace(read_density(spaces, density.confidence, spent), converged=density.converged)


def _steps_suffice(density: Density, allowed: float, shared: SharedPass, budget: int) -> bool:
    """Whether more random vectors help more than further steps, and cost less than a basis of the whole space.

    With an error q of m steps, which is about c/m, and one of s/√N of N vectors, the fewest products N m reach the
    error allowed, a² = q² + s²/N, where q² is a third of a².
    """
    squared = density.quadrature_distance**2
    if squared > allowed**2 / 3:
        return False
    vectors = (density.error**2 - squared) / (allowed**2 - squared) if allowed > 0 else math.inf
    # Where few eigenvalues dominate, the error decreases more slowly than by 1/√vectors.
    cheaper = math.isfinite(vectors) and _MARGIN_OF_VECTORS * math.ceil(vectors) * shared.krylov.m < shared.A.n
    return cheaper or shared.A.n > min(shared.capacity, budget)


class SharedDensity:
    """The density that the basis of a shared pass gives as it grows.

    rest: of the rows that are not zero, as it was last read. sums: whether probes say what tr H and tr H² are.
    """

    def __init__(self, shared: SharedPass, tolerance: Tolerance, *, sums: bool) -> None:
        self._shared, self._tolerance, self._sums = shared, tolerance, sums
        self.rest: Density | None = None
        self._steps = 0  # of the basis when it was read

    @property
    def grown(self) -> bool:
        """Whether the basis has grown since."""
        return self._shared.krylov.m != self._steps

    def read(self, converged: bool) -> Density:
        """With the rows that are zero; `rest` is known from now on."""
        shared, confidence = self._shared, self._tolerance.confidence
        self._steps = shared.krylov.m
        sums = shared.sums(confidence) if self._sums else None
        found = read_density([shared.krylov], confidence, shared.hvps, sums)
        self.rest = replace(found, converged=converged)
        return density_with_zeros(self.rest, shared.krylov.zeros)

    def found(self, left: Callable[[], float], pairs: Wanted | None) -> Iterator[Density]:
        """The density after each step, until it is as fine as the tolerance asks, or no product is left.

        pairs: the eigenpairs that have been found, where there are any.
        """
        shared = self._shared
        while shared.krylov.m == 0 and left() > 0:
            shared.extend(int(min(shared.block, left())))
        if shared.krylov.m == 0:
            return
        to_zero = SettlingZero()
        while True:
            self.read(False)
            assert self.rest is not None
            width = ritz_range([shared.krylov])
            fine = quadrature_error(self.rest) <= 2 * self._tolerance.rtol * width or shared.dimension == 0
            self.rest = replace(self.rest, converged=fine)
            yield density_with_zeros(self.rest, shared.krylov.zeros)
            # After a restart or with a second start vector, the quadrature remains that of the first space. If the
            # space has become invariant meanwhile, it must show again that it has all copies of the eigenvalues found.
            done = fine and (pairs is None or converged(shared.krylov, pairs))
            done &= not to_zero.worth_a_step(shared.krylov, done)
            if done or left() <= 0 or not shared.can_extend or shared.krylov.undisturbed is not None:
                return
            shared.extend(int(min(shared.block, left())))
