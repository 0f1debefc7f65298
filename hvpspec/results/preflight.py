"""What a preflight finds and measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

SEVERITIES = ("fixed", "note", "refused")

_IN_EVAL_MODE = {"dropout": "dropout is off", "batch_norm": "batch normalisation uses its running statistics"}

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
    loss: float | None = None
    symmetry: float | None = None
    repeatability: float | None = None
    difference: float | None = None
    difference_bound: float | None = None
    seconds: float | None = None
    memory: int | None = None
    hvps: int = 0
    expected_hvps: int | None = None
    expected_seconds: float | None = None
    expected_memory: int | None = None
    most_hvps: int | None = None
    most_seconds: float | None = None
    most_memory: int | None = None

    @property
    def refused(self) -> tuple[Finding, ...]:
        return self.of("refused")

    def of(self, *severities: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity in severities)

    @property
    def eval_mode(self) -> str | None:
        """What eval mode changes in this model, in one sentence; None where it changes nothing."""
        changes = [_IN_EVAL_MODE[finding.kind] for finding in self.findings if finding.kind in _IN_EVAL_MODE]
        return f"the model is measured in eval mode: {' and '.join(changes)}" if changes else None

    def to_dict(self) -> dict[str, Any]:
        figures = asdict(self)
        return {"findings": list(figures.pop("findings")), "measured": figures}

    @classmethod
    def from_dict(cls, figures: Mapping[str, Any]) -> Preflight:
        """Reads what `to_dict` gives, of other versions as well: a figure that is not known here is left out."""
        found: Iterable[Mapping[str, Any]] = figures.get("findings") or ()
        measured: Mapping[str, Any] = figures.get("measured") or {}
        known = {name: value for name, value in measured.items() if name in cls.__dataclass_fields__}
        return cls(tuple(Finding(**finding) for finding in found), **known)
