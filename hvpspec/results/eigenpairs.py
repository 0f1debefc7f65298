"""Eigenpairs with their residuals, errors and brackets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hvpspec.results.estimate import Bracket, finite

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Approximate eigenpairs.

    values: shape (k,), float64. vectors: shape (n, k), unit columns in the operator's dtype; None while under way or
    when read from a file. residuals: shape (k,), ‖A v − θ v‖₂. error: shape (k,); an eigenvalue lies within `error` of
    each value: ‖r‖²/gap where the value is shown to be isolated, the residual ‖r‖ elsewhere, and in both cases what
    rounding in the products adds. converged: whether every residual is within the tolerance asked for. hvps: products
    it cost. verified: whether the residuals were measured with products of their own. largest, smallest: brackets of
    λ_max and λ_min over the whole spectrum, whatever was asked for. data_error: shape (k,), the standard error of each
    value as an estimate for the population that the data are a sample of; None where there are too few batches.
    """

    values: np.ndarray
    vectors: np.ndarray | None = field(repr=False)
    residuals: np.ndarray
    error: np.ndarray
    converged: bool
    hvps: int
    verified: bool = False
    largest: Bracket | None = None
    smallest: Bracket | None = None
    data_error: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the vectors."""
        columns = {"value": self.values, "error": self.error, "residual": self.residuals}
        if self.data_error is not None:
            columns["data_error"] = self.data_error
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return {
            "eigenvalues": [dict(zip(columns, map(finite, row), strict=True)) for row in rows],
            "converged": self.converged,
            "hvps": self.hvps,
            "verified": self.verified,
            "largest": None if self.largest is None else self.largest.to_dict(),
            "smallest": None if self.smallest is None else self.smallest.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Eigenpairs:
        def column(key: str, missing: float) -> np.ndarray:
            entries = [row.get(key) for row in data["eigenvalues"]]
            return np.array([missing if entry is None else entry for entry in entries], float)

        def bracket(key: str) -> Bracket | None:
            return None if data.get(key) is None else Bracket.from_dict(data[key])

        spread = column("data_error", math.nan)
        return cls(
            values=column("value", math.nan),
            vectors=None,
            residuals=column("residual", math.inf),
            error=column("error", math.inf),
            converged=data["converged"],
            hvps=data["hvps"],
            verified=data.get("verified", False),
            largest=bracket("largest"),
            smallest=bracket("smallest"),
            data_error=None if np.isnan(spread).all() else spread,
        )
