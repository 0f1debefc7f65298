"""A number with its error bar, and bounds: what the other results are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal


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

    value: float
    error: float
    confidence: float
    converged: bool
    hvps: int
    method: str = "hutchinson"
    relative_to: str = "value"
    data_error: float | None = None
    lower: float | None = None
    upper: float | None = None

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
        """JSON-ready; an error that is not known (infinite) becomes None."""
        return {
            "value": finite(self.value),
            "error": finite(self.error),
            "confidence": self.confidence,
            "converged": self.converged,
            "hvps": self.hvps,
            "method": self.method,
            "relative_to": self.relative_to,
            "data_error": None if self.data_error is None else finite(self.data_error),
            **{name: finite(end) for name in ("lower", "upper") if (end := getattr(self, name)) is not None},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Estimate:
        value, error = data["value"], data["error"]
        ends = {name: data[name] for name in ("lower", "upper") if name in data}
        infinite = {"lower": -math.inf, "upper": math.inf}
        return cls(
            value=math.nan if value is None else value,
            error=math.inf if error is None else error,
            confidence=data["confidence"],
            converged=data["converged"],
            hvps=data["hvps"],
            method=data["method"],
            relative_to=data.get("relative_to", "value"),
            data_error=data.get("data_error"),
            **{name: infinite[name] if end is None else end for name, end in ends.items()},
        )


@dataclass(frozen=True)
class Bracket:
    """Bounds that hold together with probability ≥ `confidence`."""

    lower: float
    upper: float
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        return {"lower": finite(self.lower), "upper": finite(self.upper), "confidence": self.confidence}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Bracket:
        lower, upper = data["lower"], data["upper"]
        return cls(-math.inf if lower is None else lower, math.inf if upper is None else upper, data["confidence"])


def finite(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Bound:
    """A number that the true figure is not below (kind "lower") or not above ("upper").

    confidence: the probability that it holds; 1 where nothing was left to chance. kind "rule": a rule of thumb, which
    gives the order of magnitude and bounds nothing (confidence 0).
    """

    value: float
    kind: Literal["lower", "upper", "rule"]
    confidence: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        return {"value": finite(self.value), "kind": self.kind, "confidence": self.confidence}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Bound:
        value = math.inf if data["value"] is None else data["value"]
        return cls(value, data["kind"], data["confidence"])
