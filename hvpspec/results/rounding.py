"""What rounding in an operator's products adds to the errors, as measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from hvpspec.results.codec import Stored

Method = Literal["float64", "other rounding"]


@dataclass(frozen=True)
class Rounding(Stored):
    """The rounding error of the products, as products computed again in another way show it.

    Attributes
    ----------
    error : float
        Bound on the error of a product with a unit vector, estimated from Ritz vectors. Every error bar includes it.
    relative : float
        The same, relative to the norm of the matrix.
    method : {"float64", "other rounding"}
        How the products were computed again: in float64, or, where that does not fit or is not possible, in the same
        precision with parameters and vectors that are rounded otherwise.
    products : int
        How many, beyond the HVPs of the run.
    """

    error: float
    relative: float
    method: Method
    products: int

    json_order: ClassVar = ("error", "relative", "method", "products")
