"""Runs set side by side: values with their errors on either side, and the differences between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from hvpspec.results.estimate import finite
from hvpspec.results.spectrum import Spectrum

SCHEMA = "hvpspec/compare/1"


@dataclass(frozen=True, eq=False)
class Run:
    """One spectrum.json. label: its folder, or as much of its path as tells it from the others."""

    label: str
    path: str
    document: dict[str, Any]
    spectrum: Spectrum


@dataclass(frozen=True)
class Difference:
    """`other` minus `first`, of one figure of run `run`. error: the combined one at `confidence`, not widened.
    limit: what the difference must exceed to be significant."""

    figure: str
    run: str
    first: Value
    other: Value
    difference: float
    error: float
    limit: float

    @property
    def significant(self) -> bool:
        return abs(self.difference) > self.limit

    def to_dict(self) -> dict[str, Any]:
        return {
            "figure": self.figure,
            "run": self.run,
            "first": _plain(self.first),
            "other": _plain(self.other),
            "difference": self.difference,
            "error": finite(self.error),
            "limit": finite(self.limit),
            "significant": self.significant,
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """confidence: with which all that is said to be significant together is so. warnings: why it may mean little.
    shared: whether some runs may have had the first one's random vectors."""

    runs: tuple[Run, ...]
    differences: tuple[Difference, ...]
    confidence: float
    warnings: tuple[str, ...]
    shared: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "confidence": self.confidence,
            "compared": len(self.differences),
            "runs": [{"label": run.label, "path": run.path} for run in self.runs],
            "differences": [difference.to_dict() for difference in self.differences],
            "warnings": list(self.warnings),
        }


def _plain(value: Value) -> dict[str, Any]:
    return {"value": value.value, "error": finite(value.error), "confidence": value.confidence}


_FREEDOM = 7


@dataclass(frozen=True)
class Value:
    """A figure of one run. confidence: None where the error holds for certain. error: infinite when unknown; the longer
    side where the two differ. least, most: what it lies between for certain. text: how a table shows it.

    ends: of a bracket, its two ends when the probability of a miss is so many times smaller than at `confidence`."""

    value: float
    error: float
    confidence: float | None
    least: float = -math.inf
    most: float = math.inf
    text: str = ""
    ends: Callable[[float], tuple[float, float]] | None = field(default=None, compare=False)

    @property
    def whole(self) -> bool:
        """Whether it is a count."""
        return math.isfinite(self.least)

    @property
    def sampled(self) -> bool:
        """Whether its error is that of a mean over random vectors."""
        return self.confidence is not None and self.ends is None and not self.whole

    def side(self, upwards: bool, confidence: float) -> float:
        """How far the true figure may lie above or below, at that confidence, or at its own where that is more."""
        if self.ends is not None:
            assert self.confidence is not None
            low, high = self.ends(max((1 - self.confidence) / (1 - confidence), 1.0))
            return max(high - self.value if upwards else self.value - low, 0.0)
        certain = self.most - self.value if upwards else self.value - self.least
        return min(self._half(confidence), certain)

    def _half(self, confidence: float) -> float:
        """It is never made smaller: how the interval was made is not known here."""
        if self.confidence is None or not 0 < self.confidence < confidence:
            return self.error
        wide, narrow = (float(stats.t.ppf((1 + chance) / 2, _FREEDOM)) for chance in (confidence, self.confidence))
        return self.error * wide / narrow
