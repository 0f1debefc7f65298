"""(H + δI) x = b by CG or MINRES, for one or more b, with the known eigenvectors in the preconditioner."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import partial
from itertools import repeat
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hvpspec.bounds.eigenvalues import Exclusion, bracket
from hvpspec.distributed.shard import over_ranks
from hvpspec.errors import InputError
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.operator_view import Symmetric, as_symmetric, within_time
from hvpspec.krylov.solvers.column import Column
from hvpspec.krylov.solvers.conjugate_gradients import cg
from hvpspec.krylov.solvers.inverses import inverse
from hvpspec.krylov.solvers.iterate import Multiply, length
from hvpspec.krylov.solvers.minimal_residuals import minres
from hvpspec.krylov.solvers.right_hand_sides import Columns, columns_of, start_of
from hvpspec.krylov.solvers.shifted import ShiftedProducts
from hvpspec.krylov.solvers.together import together
from hvpspec.krylov.vectors import inner
from hvpspec.options import DEFAULT_MAX_HVPS
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.solution import Solution
from hvpspec.results.spectrum import Spectrum
from hvpspec.system.time_limit import OutOfTime
from hvpspec.system.time_limit import time_limit as allowed_time
from hvpspec.validation import check_budget, check_choice, check_damping, check_duration

Method = Literal["auto", "cg", "minres"]

_DEFAULT_RTOL = 1e-6
_CONFIDENCE_OF_DEFINITE = 0.99  # with which a few Lanczos steps must show that CG may be used
_MAX_HVPS_FOR_DEFINITE = 12
_LARGEST_ROUNDING = 1e-3  # of ‖b‖: if rounding leaves more than this, the system is not solved
_NEAR_ROUNDING = 10  # times what rounding leaves: a residual below this is at the level of rounding
_ROUNDOFFS_OF_PRECONDITIONER = 32  # its smallest eigenvalue must be larger, or rounding could make it indefinite


@over_ranks
def solve(
    A: Any,
    b: Any,
    *,
    damping: float = 0.0,
    pairs: Eigenpairs | Spectrum | None = None,
    x0: Any = None,
    M: Any = None,
    rtol: float | None = None,
    max_hvps: int | None = None,
    time_limit: float | str | None = None,
    method: Method = "auto",
) -> Solution:
    """Solve (A + damping · I) x = b for one or more right-hand sides, and report the true residuals.

    Parameters
    ----------
    A : HessianOperator, LinearOperator, sparse or dense array, or torch tensor, shape (n, n)
        The symmetric operator.
    b : array or tensor, shape (n,) or (n, m), or tensors of parameters
        The right-hand side, or m of them; x has the same form. Where A has parameters, also a dict {name: tensor} or a
        sequence of tensors such as gradients, each shaped like its parameter.
    damping : float, default 0
        δ ≥ 0.
    pairs : Eigenpairs or Spectrum, optional
        Known eigenpairs of A. They are solved for directly and deflated from the rest, where they would need the most
        iterations. As they are used only in a preconditioner, they need not be accurate.
    x0 : like b, optional
        A guess to start from; by default 0. It costs a product for each right-hand side.
    M : LinearOperator, matrix, function, Preconditioner or Diagonal, optional
        A symmetric positive definite approximation of (A + δI)⁻¹: anything that A may be; a function that maps a vector
        (n,) in float64, of the kind that b is of, to M times it; what `hvpspec.adam_preconditioner` returns, for the
        D⁻¹ of the optimizer; or what `hvpspec.diagonal` returns, for 1/\\|d + δ\\|.
    rtol : float, optional
        ``‖b − (A + δI) x‖ / ‖b‖`` to reach; by default 1e-6, or what rounding in this dtype allows: a few times
        ``ε ‖A + δI‖ ‖x‖``. At that level the solver stops in any case (`at_rounding` in the result).
    max_hvps : int, optional
        Budget of products, for all right-hand sides together; by default 1000 for each. When it is spent, the current x
        is returned with ``converged=False``.
    time_limit : float or str, optional
        Budget of time, in seconds or as ``"30s"``, with the same effect.
    method : {"auto", "cg", "minres"}, default "auto"
        "cg" needs A + δI to be positive definite, "minres" does not. "auto" uses CG if A + δI is shown to be positive
        definite: by the brackets of `pairs`, or, without these and with damping, by a few Lanczos steps.

    Returns
    -------
    Solution
        ``x``, with the residual computed from a product of its own instead of the solver's recurrence. Of several
        right-hand sides, each has a residual, an error and a number of iterations.

    Raises
    ------
    InputError
        For options out of range, an operator that is not symmetric, a `b` that is not finite real numbers, or an `M`
        whose products show that it is not symmetric and positive definite.

    Notes
    -----
    Costs one HVP for each iteration and for each residual that is computed. Several right-hand sides take as many
    products as they would one by one, but these are made together, ``A @ X`` with a column for each that is not solved
    yet. Sources: doi:10.6028/jres.049.044 (CG), doi:10.1137/0712047 (MINRES), doi:10.1137/S1064827502411006 (spectral
    preconditioning).

    Examples
    --------
    >>> import numpy as np
    >>> import hvpspec
    >>> found = hvpspec.solve(np.diag([4.0, 2.0, 1.0]), np.array([4.0, 4.0, 4.0]))
    >>> found.x.round(6)
    array([1., 2., 4.])
    >>> found.converged
    True
    >>> several = hvpspec.solve(np.diag([4.0, 2.0, 1.0]), np.eye(3)[:, :2])
    >>> several.x.round(6).T
    array([[0.25, 0.  , 0.  ],
           [0.  , 0.5 , 0.  ]])
    """
    damping, budget = check_damping(damping), check_budget(max_hvps)
    check_choice("method", method, Method)
    if rtol is not None and not (isinstance(rtol, Real) and not isinstance(rtol, bool) and 0 < rtol < 1):
        raise InputError(f"rtol must lie between 0 and 1; got {rtol!r}.")
    tolerance = float(rtol) if rtol is not None else _DEFAULT_RTOL
    seconds, known = (
        check_duration("time_limit", time_limit),
        pairs.eigenpairs if isinstance(pairs, Spectrum) else pairs,
    )
    with allowed_time(seconds):
        operator, pace = within_time(as_symmetric(A))
        right, already = columns_of(b, A, operator), operator.hvps
        starts = start_of(x0, right, A, operator)
        given = inverse(M, A, operator, damping, arrays=right.arrays)
        budget = DEFAULT_MAX_HVPS * len(right.units) if budget is None else budget
        steps = min(_MAX_HVPS_FOR_DEFINITE, budget // 4) if method == "auto" else 0
        least = _least_eigenvalue(operator, known, damping, steps)
        if method == "auto":
            method = "cg" if least > 0 else "minres"
        product = ShiftedProducts(operator, -damping, budget - (operator.hvps - already), pace.affordable)
        inverted, first = _deflation(known, damping, right.values, given)
        solver = partial(cg if method == "cg" else minres, M=inverted)
        columns = [
            Column(product, each[:, None].clone(), solver, tolerance, start, first)
            for each, start in zip(right.values.T, starts or repeat(None, len(right.units)), strict=True)
        ]
        together(product, [column.solve() for column in columns])
    return _solution(columns, right, operator.hvps - already, method, damping, least, rtol)


def _solution(
    columns: Sequence[Column], right: Columns, hvps: int, method: str, damping: float, least: float, rtol: float | None
) -> Solution:
    """least: what no eigenvalue of A + δI is below."""
    sizes, units = np.array([length(column.right) for column in columns]), np.array(right.units)
    residual = np.array([column.residual for column in columns])
    left = np.array([column.rounding() for column in columns])
    with np.errstate(invalid="ignore"):
        relative, rounding = (np.where(sizes > 0, each / sizes, 0.0) for each in (residual, left))
    # A given rtol must be reached; the default one is reduced to what the dtype allows.
    reached = relative <= (_DEFAULT_RTOL if rtol is None else rtol)
    if rtol is None:
        reached |= (relative <= rounding) & (rounding <= _LARGEST_ROUNDING)
    at_rounding = (relative <= _NEAR_ROUNDING * rounding) & (rounding <= _LARGEST_ROUNDING) & (sizes > 0)
    error = (residual + left) / least if least > 0 else np.where(sizes > 0, math.inf, 0.0)

    def of(values: np.ndarray) -> Any:
        return values[0].item() if right.single else values

    return Solution(
        x=right.restored([column.x for column in columns]),
        residual=of(residual * units),
        relative_residual=of(relative),
        converged=bool(reached.all()),
        iterations=of(np.array([column.iterations for column in columns])),
        hvps=hvps,
        method=method,
        damping=damping,
        rounding=of(rounding),
        at_rounding=of(at_rounding),
        reached=of(reached),
        error=of(error * units),
    )


def _least_eigenvalue(operator: Symmetric, pairs: Eigenpairs | None, damping: float, steps: int) -> float:
    """What no eigenvalue of A + δI is below, as the pairs show or a few Lanczos steps; −inf where nothing is shown.

    Steps are made only with damping, without which a Hessian is rarely definite; and not where A is semidefinite.
    """
    shown = damping if operator.semidefinite and damping > 0 else -math.inf
    if pairs is not None and pairs.smallest is not None:
        return max(shown, pairs.smallest.lower + damping)
    if damping == 0 or shown > 0 or steps < 1:
        return shown
    space = SharedPass(operator, seed=0, storage=check_storage(None, "device"), probes=False)
    low = -math.inf
    with contextlib.suppress(OutOfTime):
        while space.hvps < steps and space.krylov.m < operator.n:
            space.extend(1)
            ends = bracket(space.krylov.ritz(), Exclusion.of(space.krylov), -1, _CONFIDENCE_OF_DEFINITE)
            low = ends.lower + damping
            if ends.upper + damping <= 0 or low > 0:
                break
    return low


def _deflation(
    pairs: Eigenpairs | None, damping: float, right: Tensor, M: Multiply | None
) -> tuple[Multiply | None, Multiply | None]:
    """A positive definite preconditioner that maps the known eigenvalues to the size of the others, and a first x.

    The latter is that of a residual. M: a preconditioner for the others.
    """
    if pairs is None or pairs.vectors is None:
        return M, None
    shifted = pairs.values + damping
    sound = np.abs(shifted) > 10 * pairs.error + 1e-300
    if not sound.any():
        return M, None
    U, sizes = torch.as_tensor(pairs.vectors[:, sound]).to(right), np.abs(shifted[sound])
    defect = float((inner(U, U) - torch.eye(len(sizes)).to(right)).norm())
    least = defect + _ROUNDOFFS_OF_PRECONDITIONER * torch.finfo(right.dtype).eps
    change = _column(np.maximum(sizes.min() / sizes, least) - 1, right)
    divisors, inverses = _column(shifted[sound], right), _column(1 / sizes, right)

    def outside(v: Tensor) -> Tensor:
        return v - U @ inner(U, v)

    def first(rest: Tensor) -> Tensor:
        return U @ (inner(U, rest) / divisors)

    if M is None:
        return lambda v: v + U @ (change * inner(U, v)), first
    return lambda v: outside(M(outside(v))) + U @ (inverses * inner(U, v)), first


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)[:, None]
