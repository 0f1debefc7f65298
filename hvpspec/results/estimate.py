"""A number with its error bar, and bounds: what the other results are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from hvpspec.results.codec import LEFT_OUT, NonFinite, decode, encode


@dataclass(frozen=True)
class Estimate:
    """A number with its error bar.

    value ± error holds the true figure with probability `confidence`; `error` is infinite when too few products were
    made to tell. converged: whether the tolerance asked for was reached. hvps: products it cost. method: how it was
    found; "exact" (the basis spans the whole space) leaves no error but rounding. relative_to: what a relative
    tolerance was taken of: the figure itself, or the Frobenius norm for a trace that is smaller. data_error: the
    standard error as an estimate for the population that the data are a sample of; None where that is not known.
    lower, upper: the ends of the interval where it is lopsided (`error` is the longer side then): see `interval`.
    """

    value: Annotated[float, NonFinite(math.nan)]
    error: Annotated[float, NonFinite(math.inf)]
    confidence: float
    converged: bool
    hvps: int
    method: str = "hutchinson"
    relative_to: str = "value"
    data_error: float | None = None
    lower: Annotated[float | None, NonFinite(-math.inf), LEFT_OUT] = None
    upper: Annotated[float | None, NonFinite(math.inf), LEFT_OUT] = None

    @classmethod
    def between(
        cls, value: float, lower: float, upper: float, confidence: float, hvps: int, method: str = "krylov"
    ) -> Estimate:
        """With a lopsided interval."""
        value, lower, upper = float(value), float(min(lower, value)), float(max(upper, value))
        error = max(value - lower, upper - value)
        return cls(value, error, confidence, math.isfinite(error), hvps, method, lower=lower, upper=upper)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true figure lies with probability `confidence`: never wider than value ± error."""
        low = self.value - self.error if self.lower is None else self.lower
        return low, self.value + self.error if self.upper is None else self.upper

    def __str__(self) -> str:
        return f"{self.value:.6g} ± {self.error:.2g} ({self.confidence:.4g})"

    def to_dict(self) -> dict[str, Any]:
        """As spectrum.json has it: infinite and undefined numbers become None."""
        return encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Estimate:
        """Reads what `to_dict` gives."""
        return decode(cls, data)


@dataclass(frozen=True)
class Bracket:
    """Bounds that hold together with probability ≥ `confidence`."""

    lower: Annotated[float, NonFinite(-math.inf)]
    upper: Annotated[float, NonFinite(math.inf)]
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """As spectrum.json has it: infinite and undefined numbers become None."""
        return encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Bracket:
        """Reads what `to_dict` gives."""
        return decode(cls, data)


def finite(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Bound:
    """A number that the true figure is not below (kind "lower") or not above ("upper").

    confidence: the probability that it holds; 1 where nothing was left to chance. kind "rule": a rule of thumb, which
    gives the order of magnitude and bounds nothing (confidence 0).
    """

    value: Annotated[float, NonFinite(math.inf)]
    kind: Literal["lower", "upper", "rule"]
    confidence: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """As spectrum.json has it: infinite and undefined numbers become None."""
        return encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Bound:
        """Reads what `to_dict` gives."""
        return decode(cls, data)
