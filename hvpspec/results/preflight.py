"""What is found and measured before a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from hvpspec.entries import Count, Size
from hvpspec.results.codec import LEFT_OUT, Stored, Within

Severity = Literal["fixed", "note", "refused"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

# What eval mode changes, by the kind of finding.
_IN_EVAL_MODE = {"dropout": "dropout is off", "batch_norm": "batch normalisation uses its running statistics"}

_BOUNDS_TO_CONTRADICT = 3.0  # how many times its bound the error of finite differences must be


def agree(difference: float, bound: float) -> bool:
    """Whether a product agrees with finite differences whose error is estimated to be at most `bound`."""
    return not difference > _BOUNDS_TO_CONTRADICT * bound


@dataclass(frozen=True)
class Finding:
    """Something in the model, the loss or the data that matters for second derivatives.

    Attributes
    ----------
    kind : str
        One word, for programs.
    found, done : str
        What was found and what is done about it, for people.
    severity : str
        "fixed" (dealt with, exactly), "note" (works, but the user should know) or "refused" (the results would be
        wrong).
    """

    kind: str
    found: str
    done: str
    severity: Severity = "fixed"

    def __str__(self) -> str:
        return f"{self.found} → {self.done}"


_Number = Annotated[float | None, Within("measured")]
_Size = Annotated[Size | None, Within("measured")]
_Count = Annotated[Count | None, Within("measured")]


@dataclass(frozen=True)
class Preflight(Stored):
    """Findings and measurements before a run; None for a measurement that was not made.

    Attributes
    ----------
    findings : tuple of Finding
        The most serious ones are "refused".
    loss : float or None
        Its value on the data.
    symmetry : float or None
        |xᵀHy − yᵀHx| / √(‖Hx‖ ‖Hy‖) for x, y with independent standard normal entries.
    repeatability : float or None
        Of one product made twice: ‖difference‖ / ‖Hx‖.
    difference, difference_bound : float or None
        Between a product on the first batch and finite differences of the gradient, relative to its length; and an
        estimate of the error of these differences.
    seconds : float or None
        Time of one product on all the data.
    memory : int or None
        Peak memory of one product, in bytes above what was held before.
    hvps : int
        Products spent on all this.
    expected_hvps, expected_seconds, expected_memory : int or float or None
        Estimated products, seconds and bytes of the whole run.
    most_hvps, most_seconds, most_memory : int or float or None
        The same where the spectrum needs the most products.
    ranks : int or None
        How many processes share the run; memory is that of each. None for one.
    """

    findings: tuple[Finding, ...] = ()
    loss: _Number = None
    symmetry: _Size = None
    repeatability: _Size = None
    difference: _Size = None
    difference_bound: _Size = None
    seconds: _Size = None
    memory: _Count = None
    hvps: Annotated[Count, Within("measured")] = 0
    expected_hvps: _Count = None
    expected_seconds: _Size = None
    expected_memory: _Count = None
    most_hvps: _Count = None
    most_seconds: _Size = None
    most_memory: _Count = None
    ranks: Annotated[Count | None, Within("measured"), LEFT_OUT] = None

    @property
    def refused(self) -> tuple[Finding, ...]:
        """The findings that make a run pointless."""
        return self.of("refused")

    def of(self, *severities: str) -> tuple[Finding, ...]:
        """The findings of these severities."""
        return tuple(finding for finding in self.findings if finding.severity in severities)

    @property
    def eval_mode(self) -> str | None:
        """What eval mode changes in this model, in one sentence; None where it changes nothing."""
        changes = [_IN_EVAL_MODE[finding.kind] for finding in self.findings if finding.kind in _IN_EVAL_MODE]
        return f"the model is measured in eval mode: {' and '.join(changes)}" if changes else None
