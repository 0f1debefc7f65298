"""Several runs compared: values with their errors on either side, and the differences between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from scipy import stats

from hvpspec.options import PILOT_PROBES
from hvpspec.results.codec import Key, encode
from hvpspec.results.spectrum import Spectrum

SCHEMA = "hvpspec/compare/1"


@dataclass(frozen=True, eq=False)
class Run:
    """One spectrum.json.

    label: its folder, or as much of its path as distinguishes it from the others.
    """

    label: str
    path: str
    document: dict[str, Any] = field(repr=False)
    spectrum: Spectrum

    json_order: ClassVar = ("label", "path")


@dataclass(frozen=True)
class Difference:
    """`other` minus `first`: one quantity of the run labelled `run`, compared with the first run.

    error: the combined error at the confidence of the comparison, not widened for the number of differences. limit:
    what the difference must exceed to be significant.
    """

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
        """Whether it is more than its errors, widened for the number of differences, explain."""
        return abs(self.difference) > self.limit

    def to_dict(self) -> dict[str, Any]:
        """As compare.json has it."""
        return encode(self)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs, and how each of them differs from the first.

    confidence: the probability that all differences called significant are real. warnings: why the comparison may mean
    little. shared: whether some runs may have used the same random vectors as the first.
    """

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


# Of Student's t, which widens intervals: no interval is taken from fewer probes, and more probes would widen less.
_LEAST_DEGREES_OF_FREEDOM = PILOT_PROBES - 1


@dataclass(frozen=True)
class Value:
    """One quantity of one run.

    error: infinite where unknown; the longer side where the two differ. confidence: None where the error is certain.
    least, most: bounds that are certain. text: how a table shows it. ends: of a bracket, its two ends when the
    probability of a miss is smaller than at `confidence` by the factor given.
    """

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
        """How far the true value may be above or below, at that confidence, or at its own where that is higher."""
        if self.ends is not None:
            assert self.confidence is not None
            low, high = self.ends(max((1 - self.confidence) / (1 - confidence), 1.0))
            return max(high - self.value if upwards else self.value - low, 0.0)
        certain = self.most - self.value if upwards else self.value - self.least
        return min(self._half(confidence), certain)

    def _half(self, confidence: float) -> float:
        """The error at that confidence. It never shrinks, since how the interval was made is not known here."""
        if self.confidence is None or not 0 < self.confidence < confidence:
            return self.error
        wide, narrow = (
            float(stats.t.ppf((1 + chance) / 2, _LEAST_DEGREES_OF_FREEDOM)) for chance in (confidence, self.confidence)
        )
        return self.error * wide / narrow
