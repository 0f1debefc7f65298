"""What `solve` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Solution:
    """x with (H + δI) x ≈ b, where δ is `damping`.

    Of m right-hand sides, b of shape (n, m), the numbers `residual`, `relative_residual`, `iterations`, `rounding`,
    `at_rounding`, `reached` and `error` are arrays of shape (m,).

    Attributes
    ----------
    x : ndarray, Tensor, or tensors of parameters
        The solution, of the same kind and shape as b.
    residual : float
        ‖b − (H + δI) x‖₂, computed with a product of its own at the end.
    relative_residual : float
        The residual divided by ‖b‖₂.
    converged : bool
        Whether the relative residual is within the tolerance asked for; of several right-hand sides, each of them.
    iterations : int
        Iterations of `method`.
    hvps : int
        Matrix-vector products that it cost, for all right-hand sides together.
    method : {"cg", "minres"}
        The solver.
    damping : float
        δ.
    rounding : float
        The relative residual that rounding in the products leaves in this dtype.
    at_rounding : bool
        Whether the residual is about as small as that: more products would not help.
    reached : bool
        Whether the relative residual of this right-hand side is within the tolerance.
    error : float
        ‖x − (H + δI)⁻¹ b‖₂ is at most this: the residual and what rounding adds, divided by a lower bound on the
        eigenvalues of H + δI. Infinite where these are not shown to be positive, by `pairs`, damping of a semidefinite
        matrix or a few Lanczos steps.

    Examples
    --------
    >>> import hvpspec, numpy as np
    >>> found = hvpspec.solve(np.diag([1.0, 2.0, 4.0]), np.ones(3), damping=1.0)
    >>> print(found.x.round(4), found.method, found.converged)
    [0.5    0.3333 0.2   ] cg True
    """

    x: Any = field(repr=False)
    residual: Any
    relative_residual: Any
    converged: bool
    iterations: Any
    hvps: int
    method: str
    damping: float
    rounding: Any = 0.0
    at_rounding: Any = False
    reached: Any = True
    error: Any = math.inf
