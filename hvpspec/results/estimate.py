"""A number with its error bar, and bounds: what the other results are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from hvpspec.entries import AtLeast, Count, NonFinite, Share, Size
from hvpspec.results.codec import LEFT_OUT, Stored

Recomputed = Literal["float64", "other rounding"]


@dataclass(frozen=True)
class Estimate(Stored):
    """A number with its error bar.

    Attributes
    ----------
    value : float
        The estimate.
    error : float
        Half-width of the interval ``value ± error``, which holds the true value with probability `confidence`.
        Infinite where too few products were made to tell.
    confidence : float
        Between 0 and 1.
    converged : bool
        Whether the tolerance asked for was reached.
    hvps : int
        Matrix-vector products that it cost.
    method : str
        How it was found. "exact" (the Krylov basis spans the whole space) leaves no error but rounding.
    relative_to : str
        What a relative tolerance was taken of: "value", or "frobenius_norm" for a trace that is smaller than the norm.
    data_error : float or None
        One standard error of the value as an estimate for the population that the data are a sample of, from its
        spread over batches; None where that is not known. It does not shrink with more products, and `error` does not
        include it.
    lower, upper : float or None
        Ends of the interval where it is lopsided (`error` is the longer side then); see `interval`.

    Examples
    --------
    >>> import hvpspec
    >>> found = hvpspec.trace([[2.0, 1.0], [1.0, 3.0]])
    >>> found.value, found.method
    (5.0, 'exact')
    >>> print(hvpspec.Estimate(5.0, 0.25, confidence=0.95, converged=True, hvps=40))
    5 ± 0.25 (0.95)
    """

    value: Annotated[float, NonFinite(math.nan)]
    error: Annotated[float, NonFinite(math.inf), AtLeast(0)]
    confidence: Share
    converged: bool
    hvps: Count
    method: str = "hutchinson"
    relative_to: str = "value"
    data_error: Size | None = None
    lower: Annotated[float | None, NonFinite(-math.inf), LEFT_OUT] = None
    upper: Annotated[float | None, NonFinite(math.inf), LEFT_OUT] = None

    @classmethod
    def between(
        cls, value: float, lower: float, upper: float, confidence: float, hvps: int, method: str = "krylov"
    ) -> Estimate:
        """An estimate whose interval is lopsided.

        Parameters
        ----------
        value : float
            The estimate.
        lower, upper : float
            Ends of the interval; they are moved outwards to `value` where they leave it out.
        confidence : float
            Probability that the interval holds the true value.
        hvps : int
            Matrix-vector products that it cost.
        method : str
            How it was found.

        Returns
        -------
        Estimate
            Its `error` is the longer side; converged where that is finite.

        Examples
        --------
        >>> found = Estimate.between(3.0, 2.5, 4.0, confidence=0.95, hvps=10)
        >>> found.error, found.interval
        (1.0, (2.5, 4.0))
        """
        value, lower, upper = float(value), float(min(lower, value)), float(max(upper, value))
        error = max(value - lower, upper - value)
        return cls(value, error, confidence, math.isfinite(error), hvps, method, lower=lower, upper=upper)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true value lies with probability `confidence`; never wider than ``value ± error``."""
        low = self.value - self.error if self.lower is None else self.lower
        return low, self.value + self.error if self.upper is None else self.upper

    def contradiction(self) -> tuple[str, str] | None:
        """See `hvpspec.results.codec`."""
        low, high = self.interval
        if low > self.value or self.value > high:
            return "value", f"expected a number from {low:g} to {high:g}, the ends of its interval; got {self.value:g}"
        return None

    def __str__(self) -> str:
        return f"{self.value:.6g} ± {self.error:.2g} ({self.confidence:.4g})"


@dataclass(frozen=True)
class Bracket(Stored):
    """Bounds that hold together with probability ≥ `confidence`.

    Attributes
    ----------
    lower, upper : float
        The bounds; infinite where there is none.
    confidence : float
        Between 0 and 1.

    Examples
    --------
    >>> import hvpspec
    >>> found = hvpspec.Bracket(2.0, 3.0, confidence=0.95)
    >>> found.value, found.error
    (2.5, 0.5)
    >>> print(found)
    2 … 3 (0.95)
    """

    lower: Annotated[float, NonFinite(-math.inf)]
    upper: Annotated[float, NonFinite(math.inf)]
    confidence: Share

    def contradiction(self) -> tuple[str, str] | None:
        """See `hvpspec.results.codec`."""
        if self.lower > self.upper:
            return "lower", f"expected a number ≤ {self.upper:g}, the upper bound; got {self.lower:g}"
        return None

    @property
    def value(self) -> float:
        """The midpoint; the finite end where the other one is infinite, and NaN where both are."""
        if math.isinf(self.lower) or math.isinf(self.upper):
            return next((end for end in (self.lower, self.upper) if math.isfinite(end)), math.nan)
        return self.lower + (self.upper - self.lower) / 2

    @property
    def error(self) -> float:
        """The half-width; infinite where an end is."""
        return (self.upper - self.lower) / 2

    def __str__(self) -> str:
        return f"{self.lower:.6g} … {self.upper:.6g} ({self.confidence:.4g})"


def finite(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Bound(Stored):
    """A number that the true value is not below (kind "lower") or not above (kind "upper").

    Attributes
    ----------
    value : float
        The bound; infinite where there is none.
    kind : {"lower", "upper", "rule"}
        "rule" is a rule of thumb, which gives an order of magnitude and bounds nothing (confidence 0).
    confidence : float
        The probability that it holds; 1 where nothing was left to chance.

    Examples
    --------
    >>> import hvpspec
    >>> print(hvpspec.Bound(0.25, "upper"))
    ≤ 0.25 (1)
    """

    value: Annotated[float, NonFinite(math.inf)]
    kind: Literal["lower", "upper", "rule"]
    confidence: Share = 1.0

    def __str__(self) -> str:
        sign = {"lower": "≥", "upper": "≤", "rule": "~"}[self.kind]
        return f"{sign} {self.value:.6g} ({self.confidence:.4g})"


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

    error: Size
    relative: Size
    method: Recomputed
    products: Count

    json_order: ClassVar = ("error", "relative", "method", "products")
