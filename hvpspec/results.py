"""What the estimators return: frozen dataclasses that know their error and turn into plain dictionaries."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A number with its error bar.

    value ± error holds the true figure with probability `confidence`; `error` is infinite when too few products were
    made to tell. converged: whether the tolerance asked for was reached. hvps: products it cost. method: how it was
    found; "exact" (a product with each unit vector) leaves no error but rounding.
    """

    value: float
    error: float
    confidence: float
    converged: bool
    hvps: int
    method: str = "hutchinson"

    def __str__(self) -> str:
        return f"{self.value:.6g} ± {self.error:.2g} ({self.confidence:.4g})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an error that is not known (infinite) becomes None."""
        return {
            "value": _finite(self.value),
            "error": _finite(self.error),
            "confidence": self.confidence,
            "converged": self.converged,
            "hvps": self.hvps,
            "method": self.method,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Estimate:
        value, error = data["value"], data["error"]
        return cls(
            value=math.nan if value is None else value,
            error=math.inf if error is None else error,
            confidence=data["confidence"],
            converged=data["converged"],
            hvps=data["hvps"],
            method=data["method"],
        )


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Approximate eigenpairs.

    values: shape (k,), float64. vectors: shape (n, k), unit columns in the operator's dtype; None while under way or
    when read from a file. residuals: shape (k,), ‖A v − θ v‖₂. error: shape (k,); an eigenvalue lies within `error` of
    each value (the residual, and what rounding in the products adds). converged: whether every residual is within the
    tolerance asked for. hvps: products it cost.
    """

    values: np.ndarray
    vectors: np.ndarray | None = field(repr=False)
    residuals: np.ndarray
    error: np.ndarray
    converged: bool
    hvps: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the vectors."""
        rows = zip(self.values.tolist(), self.error.tolist(), self.residuals.tolist(), strict=True)
        return {
            "eigenvalues": [
                {"value": value, "error": _finite(error), "residual": _finite(residual)}
                for value, error, residual in rows
            ],
            "converged": self.converged,
            "hvps": self.hvps,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Eigenpairs:
        def column(key: str) -> np.ndarray:
            return np.array([math.inf if row[key] is None else row[key] for row in data["eigenvalues"]], float)

        return cls(column("value"), None, column("residual"), column("error"), data["converged"], data["hvps"])


@dataclass(frozen=True, eq=False)
class Spectrum:
    """All figures of one operator.

    parameters: n. eigenpairs: largest magnitude first. complete: False while under way or after an interruption; a
    figure not reached by then is None. hvps, seconds: what it cost in all.
    """

    parameters: int
    eigenpairs: Eigenpairs | None
    trace: Estimate | None
    frobenius_norm: Estimate | None
    hvps: int
    seconds: float
    complete: bool

    @property
    def converged(self) -> bool:
        """Whether every figure is there and within its tolerance."""
        figures = (self.eigenpairs, self.trace, self.frobenius_norm)
        return self.complete and all(figure is not None and figure.converged for figure in figures)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the figures as spectrum.json has them."""
        pairs = {"eigenvalues": [], "converged": False, "hvps": 0}
        if self.eigenpairs is not None:
            pairs = self.eigenpairs.to_dict()
        return {
            "complete": self.complete,
            "converged": self.converged,
            "parameters": self.parameters,
            "eigenvalues": pairs["eigenvalues"],
            "eigenvalues_converged": pairs["converged"],
            "eigenvalues_hvps": pairs["hvps"],
            "trace": None if self.trace is None else self.trace.to_dict(),
            "frobenius_norm": None if self.frobenius_norm is None else self.frobenius_norm.to_dict(),
            "hvps": self.hvps,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Spectrum:
        """Reads what `to_dict` gives, and spectrum.json."""
        pairs = None
        if data["eigenvalues"]:
            pairs = Eigenpairs.from_dict(
                {
                    "eigenvalues": data["eigenvalues"],
                    "converged": data["eigenvalues_converged"],
                    "hvps": data["eigenvalues_hvps"],
                }
            )
        return cls(
            parameters=data["parameters"],
            eigenpairs=pairs,
            trace=None if data["trace"] is None else Estimate.from_dict(data["trace"]),
            frobenius_norm=None if data["frobenius_norm"] is None else Estimate.from_dict(data["frobenius_norm"]),
            hvps=data["hvps"],
            seconds=data["seconds"],
            complete=data["complete"],
        )


@dataclass(frozen=True)
class Progress:
    """What a callback is told while `spectrum` works.

    stage: what is being estimated. hvps: products made so far. expected: products made by the end of this stage, as
    far as can be foreseen (None: not yet). spectrum: what is known so far.
    """

    stage: str
    hvps: int
    expected: int | None
    spectrum: Spectrum


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
