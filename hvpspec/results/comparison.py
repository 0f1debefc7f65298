"""Runs set side by side: values with their errors on either side, and the differences between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from scipy import stats

from hvpspec.results.codec import Key, encode
from hvpspec.results.spectrum import Spectrum

SCHEMA = "hvpspec/compare/1"


@dataclass(frozen=True, eq=False)
class Run:
    """One spectrum.json. label: its folder, or as much of its path as tells it from the others."""

    label: str
    path: str
    document: dict[str, Any]
    spectrum: Spectrum

    json_order: ClassVar = ("label", "path")


@dataclass(frozen=True)
class Difference:
    """`other` minus `first`, of one quantity of run `run`. error: the combined one at `confidence`, not widened.
    limit: what the difference must exceed to be significant."""

    quantity: Annotated[str, Key("figure")]
    run: str
    first: Value
    other: Value
    difference: float
    error: float
    limit: float

    json_order: ClassVar = ("quantity", "run", "first", "other", "difference", "error", "limit", "significant")

    @property
    def significant(self) -> bool:
        return abs(self.difference) > self.limit

    def to_dict(self) -> dict[str, Any]:
        """As compare.json has it."""
        return encode(self)


@dataclass(frozen=True, eq=False)
class Comparison:
    """confidence: with which all that is said to be significant together is so. warnings: why it may mean little.
    shared: whether some runs may have had the first one's random vectors."""

    runs: tuple[Run, ...]
    differences: tuple[Difference, ...]
    confidence: float
    warnings: tuple[str, ...]
    shared: bool = False

    json_order: ClassVar = ("schema", "confidence", "compared", "runs", "differences", "warnings")

    @property
    def schema(self) -> str:
        """The name of the format of compare.json."""
        return SCHEMA

    @property
    def compared(self) -> int:
        """How many differences were looked at."""
        return len(self.differences)

    def to_dict(self) -> dict[str, Any]:
        """As compare.json has it."""
        return encode(self)


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

    json_order: ClassVar = ("value", "error", "confidence")

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
