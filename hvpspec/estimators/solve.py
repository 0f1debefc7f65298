"""(H + δI) x = b through SciPy's CG or MINRES, with the known eigenvectors in the preconditioner."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg, minres
from torch import Tensor

from hvpspec.bounds.eigenvalues import Exclusion, bracket
from hvpspec.errors import InputError
from hvpspec.estimators.shared_pass import OnePass
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.inverse_iteration import Counted, Spent
from hvpspec.krylov.operator_view import Symmetric, as_symmetric
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.solution import Solution
from hvpspec.results.spectrum import Spectrum
from hvpspec.validation import check_budget, check_damping

_METHODS = ("auto", "cg", "minres")
_DEFAULT_BUDGET = 1000
_DEFAULT_RTOL = 1e-6
_SURE = 0.99
_RUNS = 6
_STALLED = 0.9  # of the residual is left after a further run: it gets no better
_ROUNDED = 4  # times ε ‖A + δI‖ ‖x‖: what rounding in the products leaves of a residual, whatever is done
_SOUND = 1e-3  # of ‖b‖: rounding that leaves more than that has not solved anything
_LOOK = 20  # iterations after which the residual is made anew
_STEPS = 12  # the most products that are spent on showing that CG will do


def solve(
    A: Any,
    b: Any,
    *,
    damping: float = 0.0,
    pairs: Eigenpairs | Spectrum | None = None,
    rtol: float | None = None,
    max_hvps: int | None = None,
    method: str = "auto",
) -> Solution:
    """Solves (A + damping · I) x = b; the residual that comes with x is computed anew, not the solver's own.

    A: HessianOperator, SciPy LinearOperator, sparse or dense array, or torch tensor, of shape (n, n).
    b: array or tensor of shape (n,); x is of the same kind.
    pairs: eigenpairs of A (or a spectrum that has them): they are solved for at once, and taken out of the rest, where
        they would cost the most iterations. Rough ones do no harm: they enter a preconditioner only.
    rtol: ‖b − (A + δI) x‖ / ‖b‖ to reach; by default 10⁻⁶, or what rounding in this dtype allows: a few times
        ε ‖A + δI‖ ‖x‖. At that level it stops in any case, and says so (`at_rounding` in the result).
    max_hvps: budget of products, by default 1000; what there is by then comes back with `converged=False`.
    method: "cg" needs A + δI positive definite; "minres" does not; "auto" takes CG where the brackets of `pairs`, or
        without those a few Lanczos steps when there is a damping, show it definite, else MINRES.

    Costs one HVP an iteration, and one for each residual computed anew. Raises InputError for unusable input.
    (Hestenes and Stiefel 1952, doi:10.6028/jres.049.044; Paige and Saunders 1975, doi:10.1137/0712047; spectral
    preconditioning: Carpentieri, Duff and Giraud 2003, doi:10.1137/S1064827502411006.)
    """
    operator = as_symmetric(A)
    damping, budget = check_damping(damping), check_budget(max_hvps) or _DEFAULT_BUDGET
    if method not in _METHODS:
        raise InputError(f"method must be one of {', '.join(_METHODS)}; got {method!r}.")
    if rtol is not None and not (isinstance(rtol, Real) and not isinstance(rtol, bool) and 0 < rtol < 1):
        raise InputError(f"rtol must lie between 0 and 1; got {rtol!r}.")
    tolerance = float(rtol) if rtol is not None else _DEFAULT_RTOL
    right = _right_hand_side(b, operator.n)
    found = pairs.eigenpairs if isinstance(pairs, Spectrum) else pairs
    already = operator.hvps
    if method == "auto":
        method = "cg" if _definite(operator, found, damping, min(_STEPS, budget // 4)) else "minres"
    size = float(np.linalg.norm(right))
    if size == 0:
        return Solution(_like(b, right), 0.0, 0.0, True, 0, 0, method, damping)
    product = Counted(operator, -damping, budget - (operator.hvps - already))
    M, first = _deflation(found, damping, right)
    x, rest, remainder, iterations = np.zeros_like(right), right, size, 0

    def better(candidate: np.ndarray) -> float:
        """Takes the candidate if its residual is smaller; the share of the residual that is left."""
        nonlocal x, rest, remainder
        now = right - product(candidate)
        share = float(np.linalg.norm(now)) / remainder
        if share < 1:
            x, rest, remainder = candidate, now, share * remainder
        return share

    def floor() -> float:
        """What rounding leaves of the residual."""
        return _ROUNDED * 2 * operator.eps * product.norm * float(np.linalg.norm(x))

    try:
        if first.any():
            better(first)
        for run in range(_RUNS):
            if remainder <= max(tolerance * size, floor()):
                break
            # MINRES measures its residual by ‖A‖ ‖x‖, not by ‖b‖: what was too rough is done again, more finely.
            aim = 0.5 * tolerance * size / remainder * (1.0 if method == "cg" else 0.01 ** (1 + run))
            aim, enough = max(aim, operator.eps), max(0.5 * tolerance * size, floor())
            step, steps = _corrected(method, product, rest, M, aim, enough)
            iterations += steps
            if not np.isfinite(step).all() or not step.any() or (better(x + step) > _STALLED and run > 0):
                break
    except Spent:
        pass
    relative, rounding = remainder / size, floor() / size
    # A rtol that was asked for has to be met; the default one is what this dtype allows.
    reached = relative <= tolerance or (rtol is None and relative <= rounding <= _SOUND)
    at_rounding = relative <= 10 * rounding and rounding <= _SOUND
    made = operator.hvps - already
    return Solution(_like(b, x), remainder, relative, reached, iterations, made, method, damping, rounding, at_rounding)


def _definite(operator: Symmetric, pairs: Eigenpairs | None, damping: float, steps: int) -> bool:
    """Whether A + δI is shown to be positive definite: by the brackets there are, or by a few Lanczos steps, which are
    spent where there is a damping that may do it."""
    if pairs is not None and pairs.smallest is not None:
        return pairs.smallest.lower + damping > 0
    if damping == 0:
        return False
    one = OnePass(operator, seed=0, storage=check_storage(None, "device"), probes=False)
    while one.hvps < steps and one.krylov.m < operator.n:
        one.extend(1)
        low = bracket(one.krylov.ritz(), Exclusion.of(one.krylov), -1, _SURE)
        if low.upper + damping <= 0 or low.lower + damping > 0:
            return low.lower + damping > 0
    return False


class _Enough(Exception):
    """The residual is small enough, or moves no more."""


def _corrected(
    method: str, product: Counted, rest: np.ndarray, M: LinearOperator | None, rtol: float, enough: float
) -> tuple[np.ndarray, int]:
    """What the solver makes of a residual, and in how many iterations; one product is left for another residual.

    The solvers' own residuals go on falling when rounding has long stopped the true one. That is looked at now and
    then, and is at its end where x has moved so little that it cannot have changed much.
    """
    latest, iterations = np.zeros_like(rest), 0
    seen = latest

    def keep(step: np.ndarray) -> None:
        nonlocal latest, iterations, seen
        latest, iterations = step.copy(), iterations + 1
        if iterations % _LOOK == 0:
            left = float(np.linalg.norm(rest - product(latest)))
            moved = product.norm * float(np.linalg.norm(latest - seen))
            seen = latest
            if left <= enough or moved <= 0.1 * left:
                raise _Enough

    solver: Any = cg if method == "cg" else minres
    whole = product.budget
    product.budget = whole - 1
    try:
        latest = solver(product.operator(), rest, rtol=min(rtol, 0.5), maxiter=20 * len(rest), M=M, callback=keep)[0]
    except (Spent, _Enough):
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
    """A positive definite preconditioner that gives known eigenvalues the size of the rest, and a first x."""
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
        return v + U @ (scale * (U.T @ v))

    n = len(right)
    M = LinearOperator((n, n), matvec=apply, dtype=np.float64)
    first = U @ ((U.T @ right) / shifted)
    return M, first if np.isfinite(first).all() and not math.isinf(float(np.abs(first).max())) else nothing
