"""Eigenpairs with their residuals, errors and brackets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hvpspec.results.codec import LEFT_OUT, Column, NonFinite, decode, encode
from hvpspec.results.estimate import Bracket


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

    values: Annotated[NDArray[np.float64], Column("eigenvalues", "value")]
    vectors: NDArray[np.floating[Any]] | None = field(repr=False)
    residuals: Annotated[NDArray[np.float64], Column("eigenvalues", "residual"), NonFinite(math.inf)]
    error: Annotated[NDArray[np.float64], Column("eigenvalues", "error"), NonFinite(math.inf)]
    converged: bool
    hvps: int
    verified: bool = False
    largest: Bracket | None = None
    smallest: Bracket | None = None
    data_error: Annotated[NDArray[np.float64] | None, Column("eigenvalues", "data_error"), LEFT_OUT] = None

    json_order: ClassVar = (
        "values", "error", "residuals", "data_error", "converged", "hvps", "verified", "largest", "smallest",
    )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As spectrum.json has it, without the vectors: infinite and undefined numbers become None."""
        return encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Eigenpairs:
        """Reads what `to_dict` gives."""
        return decode(cls, data)
