"""(H + δI) x = b by CG or MINRES, with the known eigenvectors in the preconditioner."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hvpspec.bounds.eigenvalues import Exclusion, bracket
from hvpspec.distributed.shard import largest, over_ranks, part, whole
from hvpspec.errors import InputError
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.operator_view import Symmetric, as_symmetric
from hvpspec.krylov.solvers.conjugate_gradients import cg
from hvpspec.krylov.solvers.iterate import Iterate, Multiply, length
from hvpspec.krylov.solvers.minimal_residuals import minres
from hvpspec.krylov.solvers.shifted import BudgetSpent, ShiftedProducts
from hvpspec.krylov.vectors import inner
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
_SHARE_OF_ROUNDING = 0.03  # what the recurrence's residual may be of it: less, and products are spent on noise
_LARGEST_STEP = 0.5  # of the residual: each run of the solver reduces it by half at least
_MAX_ITERATIONS = 20  # of a run, in units of n
_KERNEL_TO_AIM = 0.01  # where A + δI maps a residual to so little of the aim, it is taken to lie in the kernel
_LEAST_EXPONENT = -1022  # of a power of 2 that float64 holds with all its digits
_ROUNDOFFS_OF_PRECONDITIONER = 32  # its smallest eigenvalue must be larger, or rounding could make it indefinite


@over_ranks
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
    right, unit = _right_hand_side(b, operator)
    found = pairs.eigenpairs if isinstance(pairs, Spectrum) else pairs
    already = operator.hvps
    if method == "auto":
        steps = min(_MAX_HVPS_FOR_DEFINITE, budget // 4)
        method = "cg" if _definite(operator, found, damping, steps) else "minres"
    size = length(right)
    if size == 0:
        return Solution(_like(b, right, unit), 0.0, 0.0, True, 0, 0, method, damping)
    product = ShiftedProducts(operator, -damping, budget - (operator.hvps - already))
    state = _State(product, right, torch.zeros_like(right), right, size)
    _iterate(state, method, tolerance * size, *_deflation(found, damping, right))
    relative, rounding = state.residual / size, state.rounding() / size
    # A given rtol must be reached; the default one is reduced to what the dtype allows.
    reached = relative <= tolerance or (rtol is None and relative <= rounding <= _LARGEST_ROUNDING)
    at_rounding = relative <= _NEAR_ROUNDING * rounding and rounding <= _LARGEST_ROUNDING
    return Solution(
        x=_like(b, state.x, unit),
        residual=state.residual * unit,
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
    """The best x so far; rest: b − (A + δI) x, of length `residual`. Vectors (n, 1), in float64."""

    product: ShiftedProducts
    right: Tensor
    x: Tensor
    rest: Tensor
    residual: float
    iterations: int = 0

    def improve(self, candidate: Tensor) -> float:
        """Takes the candidate if its residual is smaller; returns the ratio of the new residual to the old one."""
        rest = self.right - self.product(candidate)
        ratio = length(rest) / self.residual
        if ratio < 1:
            self.x, self.rest, self.residual = candidate, rest, ratio * self.residual
        return ratio

    def rounding(self, x: Tensor | None = None) -> float:
        """What rounding leaves of the residual, of this x or another one."""
        return _ROUNDOFFS_OF_RESIDUAL * self.product.A.eps * self.product.norm * length(self.x if x is None else x)


def _iterate(state: _State, method: Method, target: float, M: Multiply | None, first: Tensor | None) -> None:
    """Runs the solver on what is left until the residual is at the target or at rounding, or the budget is spent."""
    solver = partial(cg if method == "cg" else minres, state.product, M=M)
    try:
        if first is not None:
            state.improve(first)
        for run in range(_MAX_RUNS):
            if state.residual <= max(target, state.rounding()):
                return
            aim = max(0.5 * target / state.residual, state.product.A.eps)
            kernel = max(aim * _KERNEL_TO_AIM ** (1 + run), state.product.A.eps)  # each run doubts it more
            step, iterations = _corrected(solver(state.rest), state, aim, kernel, max(0.5 * target, state.rounding()))
            state.iterations += iterations
            if not 0 < length(step) < math.inf:
                return
            if state.improve(state.x + step) > _STALLED_RATIO and run > 0:
                return
    except BudgetSpent:
        pass


def _definite(operator: Symmetric, pairs: Eigenpairs | None, damping: float, steps: int) -> bool:
    """Whether A + δI is shown to be positive definite, by the brackets of the pairs or by a few Lanczos steps.

    Steps are made only with damping, without which a Hessian is rarely definite; and not where A is semidefinite.
    """
    if operator.semidefinite and damping > 0:
        return True
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


def _corrected(
    iterates: Iterator[Iterate], state: _State, aim: float, kernel: float, enough: float
) -> tuple[Tensor, int]:
    """The solver's correction for the residual, and its iterations; one product is left for the residual after it.

    aim: of the residual, relative to the one before. kernel: of ‖(A + δI) r‖, relative to ‖A + δI‖ ‖r‖, below which r
    is taken to lie in the kernel. enough: of the true residual.

    The residuals in the solvers' recurrences continue to decrease after rounding has stopped the true one. So that is
    computed from time to time. The solver is stopped when x has moved too little to have changed it much.
    """
    product, rest = state.product, state.rest
    aim, iterations = min(aim, _LARGEST_STEP) * state.residual, 0
    step = checked = torch.zeros_like(rest)
    try:
        with product.keeping(1):
            for now in islice(iterates, _MAX_ITERATIONS * len(rest)):
                step, iterations = now.x, iterations + 1
                if now.image <= kernel * now.norm or now.residual <= max(
                    aim, _SHARE_OF_ROUNDING * state.rounding(step)
                ):
                    break
                if iterations % _ITERATIONS_PER_CHECK == 0:
                    left, moved = length(rest - product(step)), product.norm * length(step - checked)
                    checked = step.clone()
                    if left <= enough or moved <= _LEAST_CHANGE * left:
                        break
    except BudgetSpent:
        pass
    return step, iterations


def _right_hand_side(b: Any, operator: Symmetric) -> tuple[Tensor, float]:
    """b in units of a power of 2 in which no entry is above 1, and the unit: (n, 1), float64, on the operator's device.

    So the squares of vectors are within the range of float32.
    """
    n = operator.n
    try:
        right = b.detach() if isinstance(b, Tensor) else np.asarray(b)
        if not isinstance(right, Tensor) and right.dtype.kind in "fiub":
            right = torch.from_numpy(right.astype(np.float64))
    except (TypeError, ValueError) as error:
        raise InputError(f"b must be an array or tensor of {n:,} real numbers ({error}).") from error
    if not isinstance(right, Tensor) or right.is_complex() or right.shape != (n,) or right.layout != torch.strided:
        shape, dtype = tuple(np.shape(right)), str(right.dtype).removeprefix("torch.")
        raise InputError(f"b must hold {n:,} real numbers, shape ({n},); got {dtype} of shape {shape}.")
    right = part(right.to(operator.device, torch.float64)[:, None])
    if not math.isfinite(size := float(largest(torch.linalg.vector_norm(right, math.inf)))):
        raise InputError("b has NaN or Inf entries.")
    _, exponent = math.frexp(size)
    unit = 2.0 ** min(max(exponent, _LEAST_EXPONENT), -_LEAST_EXPONENT)
    return right / unit, unit


def _like(b: Any, x: Tensor, unit: float) -> Any:
    """x (n, 1) in those units, as a vector of the same kind as b."""
    x = whole(x)[:, 0] * unit
    if not isinstance(b, Tensor):
        return x.cpu().numpy()
    return x.to(b.device, b.dtype if b.is_floating_point() else torch.float64)


def _deflation(pairs: Eigenpairs | None, damping: float, right: Tensor) -> tuple[Multiply | None, Tensor | None]:
    """A positive definite preconditioner that maps the known eigenvalues to the size of the others, and a first x."""
    if pairs is None or pairs.vectors is None:
        return None, None
    shifted = pairs.values + damping
    sound = np.abs(shifted) > 10 * pairs.error + 1e-300
    if not sound.any():
        return None, None
    U, sizes = torch.as_tensor(pairs.vectors[:, sound]).to(right), np.abs(shifted[sound])
    defect = float((inner(U, U) - torch.eye(len(sizes)).to(right)).norm())
    least = defect + _ROUNDOFFS_OF_PRECONDITIONER * torch.finfo(right.dtype).eps
    change = _column(np.maximum(sizes.min() / sizes, least) - 1, right)
    first = U @ (inner(U, right) / _column(shifted[sound], right))
    return lambda v: v + U @ (change * inner(U, v)), first if math.isfinite(length(first)) else None


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)[:, None]
