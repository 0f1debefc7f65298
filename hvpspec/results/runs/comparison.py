"""Runs compared: values with their errors on either side, and the differences between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from scipy import special

from hvpspec.options import PILOT_PROBES
from hvpspec.results.codec import Key, encode
from hvpspec.results.record import Record
from hvpspec.results.spectrum import Spectrum

SCHEMA = "hvpspec/compare/1"


@dataclass(frozen=True, eq=False)
class Run:
    """One spectrum.json.

    label: its folder, or as much of its path as distinguishes it from the others.
    """

    label: str
    path: str
    record: Record = field(repr=False)

    json_order: ClassVar = ("label", "path")

    @property
    def spectrum(self) -> Spectrum:
        """What the run has found."""
        return self.record.spectrum


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
    """Several runs, each compared with the first.

    confidence: the probability that all differences called significant are real. warnings: why the runs may not be
    comparable. shared: whether some runs may have used the same random vectors as the first.
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


_DEGREES_OF_FREEDOM = PILOT_PROBES - 1  # of Student's t: intervals from more probes would be widened less


@dataclass(frozen=True)
class Value:
    """A quantity of one run.

    error: infinite where it is not known; the longer side where the two differ. confidence: None where the error holds
    for certain. least, most: bounds on the value that are certain. text: how a table shows it. ends: for a bracket, its
    two ends where the probability of a miss is to be that many times smaller than at `confidence`. about: the key of
    its explanation.
    """

    value: float
    error: float
    confidence: float | None
    least: float = -math.inf
    most: float = math.inf
    text: str = ""
    ends: Callable[[float], tuple[float, float]] | None = field(default=None, compare=False)
    about: str = ""

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
        """How far above or below the true value may lie, at that confidence or, where that is higher, at its own."""
        if self.ends is not None:
            assert self.confidence is not None
            low, high = self.ends(max((1 - self.confidence) / (1 - confidence), 1.0))
            return max(high - self.value if upwards else self.value - low, 0.0)
        certain = self.most - self.value if upwards else self.value - self.least
        return min(self._half(confidence), certain)

    def _half(self, confidence: float) -> float:
        """Half the width of the interval, widened to that confidence; never narrowed."""
        if self.confidence is None or not 0 < self.confidence < confidence:
            return self.error
        chances = (1 + np.array([confidence, self.confidence])) / 2
        wide, narrow = special.stdtrit(_DEGREES_OF_FREEDOM, chances)
        return self.error * float(wide) / float(narrow)
