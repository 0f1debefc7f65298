"""What `solve` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Solution:
    """x with (H + δI) x ≈ b, δ = `damping`.

    residual: ‖b − (H + δI) x‖₂, computed anew; relative_residual: that beside ‖b‖₂. converged: whether it is within the
    tolerance asked for. iterations: of `method`, "cg" or "minres". hvps: products it cost. rounding: the relative
    residual that rounding in the products leaves in this dtype; at_rounding: whether the residual is down at about that
    (more products would not help).
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
