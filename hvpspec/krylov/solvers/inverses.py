"""Preconditioners M ≈ (A + δI)⁻¹: what may be given as one, and what its products must fulfil.

CG and MINRES need M to be symmetric and positive definite. Of a function that can be seen only in its products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from hvpspec.distributed.shard import largest, part, whole
from hvpspec.errors import InputError
from hvpspec.krylov.by_folds import ASYMMETRY_LIMIT
from hvpspec.krylov.operator_view import DataOperator, Symmetric, as_symmetric
from hvpspec.krylov.solvers.iterate import Multiply
from hvpspec.krylov.solvers.shifted import BudgetSpent
from hvpspec.krylov.vectors import inner
from hvpspec.results.diagonal import Diagonal
from hvpspec.system.time_limit import OutOfTime

_ROUNDOFFS_OF_PRODUCT = 1e4  # in float32, of ‖M r‖: what M may be off by, as it may be computed in that precision
_NEEDED = "CG and MINRES need a symmetric positive definite M, an approximation of (A + damping · I)⁻¹"


def inverse(M: Any, A: Any, operator: Symmetric, damping: float, *, arrays: bool) -> Multiply | None:
    """M as a function of vectors (n, 1), in float64 on the operator's device, whose products are checked.

    A: the operator as it was given, whose parameters a preconditioner by names is in the order of. arrays: whether a
    function M takes and returns NumPy arrays.
    """
    if M is None:
        return None
    if isinstance(M, Diagonal):
        return _by_entries(_jacobi(M, operator.n, damping), operator)
    if isinstance(getattr(M, "scale", None), Mapping):
        return _by_entries(_of_optimizer(M, A), operator)
    if callable(M) and not isinstance(M, LinearOperator | DataOperator | Tensor):
        return Checked(_of_function(M, operator, arrays))
    return Checked(_of_operator(M, operator))


class Checked:
    """M with products that are compared with what symmetry and definiteness say of them.

    uᵀ(M v) and vᵀ(M u) are compared for the first vector and each other one.
    """

    def __init__(self, multiply: Multiply) -> None:
        self._multiply = multiply
        self._first: tuple[Tensor, Tensor] | None = None

    def __call__(self, r: Tensor) -> Tensor:
        try:
            z = self._multiply(r.clone())  # which it may use as its own
        except OutOfTime:  # of products that M makes itself
            raise BudgetSpent from None
        if not float(largest(torch.linalg.vector_norm(z, torch.inf))) < torch.inf:
            raise InputError("M returned a product with NaN or Inf entries; fix M first, or leave it out.")
        if self._first is None:
            self._first = r.clone(), z.clone()
        u, image = self._first
        sums = inner(torch.cat([r, z, u, image], 1), torch.cat([r, z, image], 1)).cpu().numpy()
        lengths = np.sqrt(np.maximum([sums[0, 0], sums[1, 1], 0.0, sums[3, 2]], 0.0))
        self._check(sums, float(lengths[0] * lengths[1]), float(lengths[0] * lengths[3]), len(r))
        return z

    @staticmethod
    def _check(sums: np.ndarray, along: float, across: float, n: int) -> None:
        """sums: rᵀr, rᵀz, … ; along, across: ‖r‖ ‖M r‖ and ‖r‖ ‖M u‖."""
        rounding = _ROUNDOFFS_OF_PRODUCT * torch.finfo(torch.float32).eps
        if sums[0, 0] > 0 and (along == 0 or sums[0, 1] < -rounding * along):
            raise InputError(f"M is not positive definite: rᵀMr is {sums[0, 1]:.3g} for a residual r. {_NEEDED}.")
        defect = abs(float(sums[0, 2] - sums[2, 1]))
        if defect > max(ASYMMETRY_LIMIT / n**0.25, rounding) * across:
            raise InputError(
                f"M is not symmetric: vᵀMu and uᵀMv differ by {defect / across:.1%} of ‖v‖ ‖Mu‖. {_NEEDED}."
            )


def _by_entries(diagonal: Tensor, operator: Symmetric) -> Multiply:
    if not bool(((diagonal > 0) & diagonal.isfinite()).all()):
        raise InputError(f"M has entries on its diagonal that are not positive and finite. {_NEEDED}.")
    own = part(diagonal.to(operator.device, torch.float64)[:, None])
    return lambda r: own * r


def _jacobi(found: Diagonal, n: int, damping: float) -> Tensor:
    """1 / |d + δ|, where an entry is taken to be as large as its standard error at least.

    Of an entry that is exactly 0 nothing is known, and the smallest M is taken.
    """
    if found.values is None or found.standard_errors is None:
        raise InputError(
            "M is a diagonal that was read from a file, which has no entries; compute it (hvpspec.diagonal)."
        )
    sizes = np.maximum(np.abs(found.values.astype(float) + damping), found.standard_errors)
    if len(sizes) != n:
        raise InputError(f"M is a diagonal of {len(sizes):,} entries, and A has {n:,} rows.")
    sizes[sizes == 0] = sizes.max(initial=0.0) or 1.0
    return torch.from_numpy(1 / sizes)


def _of_optimizer(M: Any, A: Any) -> Tensor:
    """D⁻¹ of an optimizer's preconditioner, in the order of the operator's parameters."""
    space: Any = getattr(A, "parameters", None)
    if not hasattr(space, "flatten"):
        raise InputError("M is a preconditioner by names of parameters; A must then be the matrix of a loss.")
    entries: Tensor = space.flatten({name: scale.double() ** 2 for name, scale in M.of(space.names).scale.items()})
    return entries


def _of_function(M: Callable[[Any], Any], operator: Symmetric, arrays: bool) -> Multiply:
    def multiply(r: Tensor) -> Tensor:
        v = whole(r)[:, 0]
        given = M(v.cpu().numpy() if arrays else v)
        try:
            product = torch.as_tensor(given).detach().to(r.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"M must return a vector of {operator.n:,} real numbers ({error}).") from error
        if product.shape != (operator.n,) or product.is_complex():
            raise InputError(
                f"M must return {operator.n:,} real numbers, shape ({operator.n},); got {tuple(product.shape)}."
            )
        return part(product.to(torch.float64, copy=True)[:, None])

    return multiply


def _of_operator(M: Any, operator: Symmetric) -> Multiply:
    try:
        view = as_symmetric(M)
    except InputError as error:
        raise InputError(f"M: {error}") from error
    if view.n != operator.n:
        raise InputError(f"M must have the shape of A, ({operator.n}, {operator.n}); got ({view.n}, {view.n}).")

    def multiply(r: Tensor) -> Tensor:
        v = r if view.shard else whole(r)
        try:
            product = (view @ v.to(view.device, view.dtype)).to(r.device, r.dtype)
        except InputError as error:
            raise InputError(f"M: {error}") from error
        return product if view.shard else part(product)

    return multiply
