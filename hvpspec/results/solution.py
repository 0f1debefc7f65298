"""What `solve` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Solution:
    """x with (H + δI) x ≈ b, where δ is `damping`.

    Attributes
    ----------
    x : ndarray or Tensor, shape (n,)
        The solution, of the same kind as b.
    residual : float
        ‖b − (H + δI) x‖₂, computed with a product of its own at the end.
    relative_residual : float
        The residual divided by ‖b‖₂.
    converged : bool
        Whether the relative residual is within the tolerance asked for.
    iterations : int
        Iterations of `method`.
    hvps : int
        Matrix-vector products that it cost.
    method : {"cg", "minres"}
        The solver.
    damping : float
        δ.
    rounding : float
        The relative residual that rounding in the products leaves in this dtype.
    at_rounding : bool
        Whether the residual is about as small as that: more products would not help.

    Examples
    --------
    >>> import hvpspec, numpy as np
    >>> found = hvpspec.solve(np.diag([1.0, 2.0, 4.0]), np.ones(3), damping=1.0)
    >>> print(found.x.round(4), found.method, found.converged)
    [0.5    0.3333 0.2   ] cg True
    """

    x: Any = field(repr=False)
    residual: float
    relative_residual: float
    converged: bool
    iterations: int
    hvps: int
    method: str
    damping: float
    rounding: float = 0.0
    at_rounding: bool = False
