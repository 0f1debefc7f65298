"""The spectral density by stochastic Lanczos quadrature: each random vector samples the distribution of eigenvalues.

For a random unit vector v the measure Σ_i (u_iᵀv)² δ(λ_i) has the distribution of eigenvalues as its mean, and scatters
little when n is large: (u_iᵀv)² summed over a share p of the eigenvalues is a Beta variable of variance
2p(1 − p)/(n + 2). Lanczos from v gives its Gauss quadrature, and bounds on its distribution function. Eigenvalues that
are known one by one, and shown to have no further copies, are counted as one each. (Golub and Welsch 1969,
doi:10.1090/S0025-5718-69-99647-1; Chen, Trogdon, Ubaru 2021, arXiv:2105.06595: spend products on steps rather than on
vectors.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hvpspec.bounds.quadrature import quadrature_error, read_density
from hvpspec.estimators.shared_pass import OnePass
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.lanczos import Krylov
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.options import Place
from hvpspec.results.density import Density
from hvpspec.validation import Tolerance, check_budget, check_seed

_DEFAULT_BUDGET = 1000


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
    """The distribution of the eigenvalues of a symmetric operator (n × n), by stochastic Lanczos quadrature.

    A: HessianOperator, SciPy LinearOperator, sparse or dense array, or torch tensor.
    rtol: stop when the Wasserstein-1 distance to the true distribution is, with probability `confidence`, at most
        rtol times the width of the spectrum. Up to half of that is left to the quadrature, which more Lanczos steps
        mend, the rest to sampling, which more random vectors do.
    max_hvps: the budget; by default 1000, or n if that is less. Once it is spent, what there is comes back with
        `converged=False`.
    seed, basis_memory, basis_on: as for `hvpspec.eigsh`. callback: called with the Density after each step.

    A random vector meets all copies of an eigenvalue as one, so that no count of eigenvalues is exact here, unless the
    space has closed. (`spectrum` has probes that show where there are no copies, and counts those one by one.)

    Costs one HVP a step. Raises InputError for options out of range or an operator that is not symmetric.
    """
    tolerance, seed = Tolerance(rtol, 0.0, confidence), check_seed(seed)
    storage, operator = check_storage(basis_memory, basis_on), as_symmetric(A)
    budget = min(check_budget(max_hvps) or _DEFAULT_BUDGET, operator.n)
    done: list[Krylov] = []
    already, steps = operator.hvps, 0
    while True:
        one = OnePass(operator, seed=seed, storage=storage, probes=False, first_draw=len(done))
        while True:
            one.extend(1)
            spent, last = operator.hvps - already, one.krylov.m >= (steps or one.capacity)
            if not last and spent < budget and (steps or one.krylov.m % max(1, one.krylov.m // 20)):
                continue
            density = read_density([*done, one.krylov], confidence, spent)
            allowed = tolerance.rtol * (density.support[1] - density.support[0])
            density = replace(density, converged=density.error <= allowed or one.dimension == 0)
            if density.converged or spent >= budget:
                return density
            if callback is not None:
                callback(density)
            if last or (not steps and _steps_suffice(density, allowed, one, budget)):
                break
        steps = one.krylov.m  # enough for the other random vectors, too
        one.krylov.basis.release()  # the small matrices are all that is needed of it now
        done.append(one.krylov)


def _steps_suffice(density: Density, allowed: float, one: OnePass, budget: int) -> bool:
    """Whether other random vectors help more than further steps, and cost less than going on to the whole space."""
    quadrature = quadrature_error(density)
    if quadrature > allowed / 2:
        return False
    vectors = ((density.error - quadrature) / (allowed - quadrature)) ** 2 if allowed > quadrature else math.inf
    # Where few eigenvalues dominate, the error falls more slowly than by √vectors.
    cheaper = math.isfinite(vectors) and 2 * math.ceil(vectors) * one.krylov.m < one.A.n
    return cheaper or one.A.n > min(one.capacity, budget)
