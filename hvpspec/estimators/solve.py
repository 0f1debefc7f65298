"""(H + δI) x = b by SciPy's CG or MINRES, with the known eigenvectors in the preconditioner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg, minres
from torch import Tensor

from hvpspec.bounds.eigenvalues import Exclusion, bracket
from hvpspec.errors import InputError
from hvpspec.estimators.shared_pass import SharedPass
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.inverse_iteration import BudgetSpent, ShiftedProducts
from hvpspec.krylov.operator_view import Symmetric, as_symmetric
from hvpspec.options import DEFAULT_MAX_HVPS
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.solution import Solution
from hvpspec.results.spectrum import Spectrum
from hvpspec.validation import check_budget, check_choice, check_damping

Method = Literal["auto", "cg", "minres"]

_DEFAULT_RTOL = 1e-6
_CONFIDENCE_OF_DEFINITE = 0.99  # with which a few Lanczos steps must show that CG may be used
_MAX_HVPS_FOR_DEFINITE = 12
_MAX_RUNS = 6  # of the solver, each on the residual that the last one left
_STALLED_RATIO = 0.9  # of the residuals after and before a further run: above this, there is no more progress
_ROUNDOFFS_OF_RESIDUAL = 8  # of ‖A + δI‖ ‖x‖: what rounding in the products leaves of a residual in any case
_LARGEST_ROUNDING = 1e-3  # of ‖b‖: if rounding leaves more than this, the system is not solved
_NEAR_ROUNDING = 10  # times what rounding leaves: a residual below this is at the level of rounding
_ITERATIONS_PER_CHECK = 20  # after which the true residual is computed
_LEAST_CHANGE = 0.1  # of the residual: if the last iterations cannot have changed it by more, the solver is stopped


def solve(
    A: Any,
    b: Any,
    *,
    damping: float = 0.0,
    pairs: Eigenpairs | Spectrum | None = None,
    rtol: float | None = None,
    max_hvps: int | None = None,
    method: Method = "auto",
) -> Solution:
    """Solve (A + damping · I) x = b, and report the true residual.

    Parameters
    ----------
    A : HessianOperator, LinearOperator, sparse or dense array, or torch tensor, shape (n, n)
        The symmetric operator.
    b : array or tensor, shape (n,)
        The right-hand side; x has the same type.
    damping : float, default 0
        δ ≥ 0.
    pairs : Eigenpairs or Spectrum, optional
        Known eigenpairs of A. They are solved for directly and deflated from the rest, where they would need the most
        iterations. As they are used only in a preconditioner, they need not be accurate.
    rtol : float, optional
        ``‖b − (A + δI) x‖ / ‖b‖`` to reach; by default 1e-6, or what rounding in this dtype allows: a few times
        ``ε ‖A + δI‖ ‖x‖``. At that level the solver stops in any case (`at_rounding` in the result).
    max_hvps : int, optional
        Budget of products; by default 1000. When it is spent, the current x is returned with ``converged=False``.
    method : {"auto", "cg", "minres"}, default "auto"
        "cg" needs A + δI to be positive definite, "minres" does not. "auto" uses CG if A + δI is shown to be positive
        definite: by the brackets of `pairs`, or, without these and with damping, by a few Lanczos steps.

    Returns
    -------
    Solution
        ``x``, with the residual computed from a product of its own instead of the solver's recurrence.

    Raises
    ------
    InputError
        For options out of range, an operator that is not symmetric, or a `b` that is not n finite real numbers.

    Notes
    -----
    Costs one HVP for each iteration and for each residual that is computed. Sources: doi:10.6028/jres.049.044 (CG),
    doi:10.1137/0712047 (MINRES), doi:10.1137/S1064827502411006 (spectral preconditioning).

    Examples
    --------
    >>> import numpy as np
    >>> import hvpspec
    >>> found = hvpspec.solve(np.diag([4.0, 2.0, 1.0]), np.array([4.0, 4.0, 4.0]))
    >>> found.x.round(6)
    array([1., 2., 4.])
    >>> found.converged
    True
    """
    operator = as_symmetric(A)
    damping, budget = check_damping(damping), check_budget(max_hvps) or DEFAULT_MAX_HVPS
    check_choice("method", method, Method)
    if rtol is not None and not (isinstance(rtol, Real) and not isinstance(rtol, bool) and 0 < rtol < 1):
        raise InputError(f"rtol must lie between 0 and 1; got {rtol!r}.")
    tolerance = float(rtol) if rtol is not None else _DEFAULT_RTOL
    right = _right_hand_side(b, operator.n)
    found = pairs.eigenpairs if isinstance(pairs, Spectrum) else pairs
    already = operator.hvps
    if method == "auto":
        steps = min(_MAX_HVPS_FOR_DEFINITE, budget // 4)
        method = "cg" if _definite(operator, found, damping, steps) else "minres"
    size = float(np.linalg.norm(right))
    if size == 0:
        return Solution(_like(b, right), 0.0, 0.0, True, 0, 0, method, damping)
    product = ShiftedProducts(operator, -damping, budget - (operator.hvps - already))
    state = _State(product, right, np.zeros_like(right), right, size)
    _iterate(state, method, tolerance * size, *_deflation(found, damping, right))
    relative, rounding = state.residual / size, state.rounding() / size
    # A given rtol must be reached; the default one is reduced to what the dtype allows.
    reached = relative <= tolerance or (rtol is None and relative <= rounding <= _LARGEST_ROUNDING)
    at_rounding = relative <= _NEAR_ROUNDING * rounding and rounding <= _LARGEST_ROUNDING
    return Solution(
        x=_like(b, state.x),
        residual=state.residual,
        relative_residual=relative,
        converged=reached,
        iterations=state.iterations,
        hvps=operator.hvps - already,
        method=method,
        damping=damping,
        rounding=rounding,
        at_rounding=at_rounding,
    )


@dataclass
class _State:
    """The best x so far; rest: b − (A + δI) x, of length `residual`."""

    product: ShiftedProducts
    right: np.ndarray
    x: np.ndarray
    rest: np.ndarray
    residual: float
    iterations: int = 0

    def improve(self, candidate: np.ndarray) -> float:
        """Takes the candidate if its residual is smaller; returns the ratio of the new residual to the old one."""
        rest = self.right - self.product(candidate)
        ratio = float(np.linalg.norm(rest)) / self.residual
        if ratio < 1:
            self.x, self.rest, self.residual = candidate, rest, ratio * self.residual
        return ratio

    def rounding(self) -> float:
        """What rounding leaves of the residual."""
        return _ROUNDOFFS_OF_RESIDUAL * self.product.A.eps * self.product.norm * float(np.linalg.norm(self.x))


def _iterate(state: _State, method: Method, target: float, M: LinearOperator | None, first: np.ndarray) -> None:
    """Runs the solver on what is left until the residual is at the target or at rounding, or the budget is spent."""
    try:
        if first.any():
            state.improve(first)
        for run in range(_MAX_RUNS):
            if state.residual <= max(target, state.rounding()):
                return
            # MINRES compares its residual with ‖A‖ ‖x‖ instead of ‖b‖: each further run asks for more.
            aim = 0.5 * target / state.residual * (1.0 if method == "cg" else 0.01 ** (1 + run))
            aim, enough = max(aim, state.product.A.eps), max(0.5 * target, state.rounding())
            step, iterations = _corrected(method, state.product, state.rest, M, aim, enough)
            state.iterations += iterations
            if not np.isfinite(step).all() or not step.any():
                return
            if state.improve(state.x + step) > _STALLED_RATIO and run > 0:
                return
    except BudgetSpent:
        pass


def _definite(operator: Symmetric, pairs: Eigenpairs | None, damping: float, steps: int) -> bool:
    """Whether A + δI is shown to be positive definite, by the brackets of the pairs or by a few Lanczos steps.

    Steps are made only with damping, without which a Hessian is rarely definite.
    """
    if pairs is not None and pairs.smallest is not None:
        return pairs.smallest.lower + damping > 0
    if damping == 0:
        return False
    space = SharedPass(operator, seed=0, storage=check_storage(None, "device"), probes=False)
    while space.hvps < steps and space.krylov.m < operator.n:
        space.extend(1)
        low = bracket(space.krylov.ritz(), Exclusion.of(space.krylov), -1, _CONFIDENCE_OF_DEFINITE)
        if low.upper + damping <= 0 or low.lower + damping > 0:
            return low.lower + damping > 0
    return False


class _Finished(Exception):
    """The residual is small enough, or no longer decreases."""


def _corrected(
    method: Method, product: ShiftedProducts, rest: np.ndarray, M: LinearOperator | None, rtol: float, enough: float
) -> tuple[np.ndarray, int]:
    """The solver's correction for a residual, and its iterations; one product is left for the residual after it.

    The residuals in the solvers' recurrences continue to decrease after rounding has stopped the true one. So that is
    computed from time to time. The solver is stopped when x has moved too little to have changed it much.
    """
    latest, iterations = np.zeros_like(rest), 0
    checked = latest

    def keep(step: np.ndarray) -> None:
        nonlocal latest, iterations, checked
        latest, iterations = step.copy(), iterations + 1
        if iterations % _ITERATIONS_PER_CHECK == 0:
            left = float(np.linalg.norm(rest - product(latest)))
            moved = product.norm * float(np.linalg.norm(latest - checked))
            checked = latest
            if left <= enough or moved <= _LEAST_CHANGE * left:
                raise _Finished

    solver: Any = cg if method == "cg" else minres
    whole = product.budget
    product.budget = whole - 1
    try:
        latest = solver(product.operator(), rest, rtol=min(rtol, 0.5), maxiter=20 * len(rest), M=M, callback=keep)[0]
    except (BudgetSpent, _Finished):
        pass
    finally:
        product.budget = whole
    return latest, iterations


def _right_hand_side(b: Any, n: int) -> np.ndarray:
    try:
        right = b.detach().cpu().numpy() if isinstance(b, Tensor) else np.asarray(b)
    except (TypeError, ValueError) as error:
        raise InputError(f"b must be an array or tensor of {n:,} real numbers ({error}).") from error
    if right.shape != (n,) or right.dtype.kind not in "fiub":
        raise InputError(f"b must hold {n:,} real numbers, shape ({n},); got {right.dtype} of shape {right.shape}.")
    right = right.astype(np.float64)
    if not np.isfinite(right).all():
        raise InputError("b has NaN or Inf entries.")
    return right


def _like(b: Any, x: np.ndarray) -> Any:
    if not isinstance(b, Tensor):
        return x
    return torch.from_numpy(x).to(b.device, b.dtype if b.is_floating_point() else torch.float64)


def _deflation(pairs: Eigenpairs | None, damping: float, right: np.ndarray) -> tuple[LinearOperator | None, np.ndarray]:
    """A positive definite preconditioner that maps the known eigenvalues to the size of the others, and a first x."""
    nothing = np.zeros_like(right)
    if pairs is None or pairs.vectors is None:
        return None, nothing
    shifted = pairs.values + damping
    sound = np.abs(shifted) > 10 * pairs.error + 1e-300
    if not sound.any():
        return None, nothing
    U, shifted = np.asarray(pairs.vectors, dtype=np.float64)[:, sound], shifted[sound]
    rest = float(np.abs(shifted).min())
    scale = rest / np.abs(shifted) - 1

    def apply(v: np.ndarray) -> np.ndarray:
        v = v.reshape(-1)
        scaled: np.ndarray = v + U @ (scale * (U.T @ v))
        return scaled

    n = len(right)
    M = LinearOperator((n, n), matvec=apply, dtype=np.float64)
    first = U @ ((U.T @ right) / shifted)
    return M, first if np.isfinite(first).all() and not math.isinf(float(np.abs(first).max())) else nothing
