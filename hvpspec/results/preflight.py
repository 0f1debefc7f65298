"""What a preflight finds and measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from hvpspec.results.codec import Within, decode, encode

SEVERITIES = ("fixed", "note", "refused")


_AGREES = 1e-2  # kinks (ReLU, max) make differences rough


def agree(difference: float, bound: float) -> bool:
    """Whether a product agrees with finite differences that are thought to be off by no more than `bound`."""
    return difference <= max(_AGREES, 10 * bound)


@dataclass(frozen=True)
class Finding:
    """`kind`: one word for scripts. `found` and `done`: for people. `severity`: "fixed" (exactly), "note" (works, but
    should be known) or "refused" (figures would be wrong)."""

    kind: str
    found: str
    done: str
    severity: str = "fixed"

    def __str__(self) -> str:
        return f"{self.found} → {self.done}"


_Number = Annotated[float | None, Within("measured")]
_Count = Annotated[int | None, Within("measured")]


@dataclass(frozen=True)
class Preflight:
    """Findings, and measurements by name; None for those that were not made.

    loss: value on the data. symmetry: |xᵀHy − yᵀHx| / √(|Hx| |Hy|) for x, y of independent standard normal entries.
    repeatability: of one product made twice, |difference| / |Hx|. difference, difference_bound: of a product on the
    first batch and finite differences, relative to its length, and what that should be below. seconds, memory: one
    product's, on all the data; bytes above what was held. hvps: products spent on all this. expected_hvps,
    expected_seconds, expected_memory: the whole run's, as foreseen; most_hvps, most_seconds, most_memory: what it may
    come to, where the spectrum is unkind.
    """

    findings: tuple[Finding, ...] = ()
    loss: _Number = None
    symmetry: _Number = None
    repeatability: _Number = None
    difference: _Number = None
    difference_bound: _Number = None
    seconds: _Number = None
    memory: _Count = None
    hvps: Annotated[int, Within("measured")] = 0
    expected_hvps: _Count = None
    expected_seconds: _Number = None
    expected_memory: _Count = None
    most_hvps: _Count = None
    most_seconds: _Number = None
    most_memory: _Count = None

    @property
    def refused(self) -> tuple[Finding, ...]:
        return self.of("refused")

    def of(self, *severities: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity in severities)

    def to_dict(self) -> dict[str, Any]:
        """As spectrum.json and check.json have it."""
        return encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preflight:
        """Reads what `to_dict` gives, of other versions as well: what is not known here is left out."""
        return decode(cls, data)
