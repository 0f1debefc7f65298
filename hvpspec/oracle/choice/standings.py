"""What the ranks of a run tell one another of their engines, and the step that all of them take next.

Ranks have measured different times. If each went by its own, one would record while another one waits for it. So they
tell one another what they have measured, and the slowest one counts, for which all wait in every product. One process
is a single rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from hvpspec.options import Engine
from hvpspec.oracle.choice.prices import Costs, Prices, compiling_pays


@dataclass(frozen=True)
class Standing:
    """Of one rank, before a product. Numbers that it does not know are 0.

    follows: whether it computes in the form that an earlier run had. form: of the recorded engine; None by double
    backward. failed: why no other engine works there. made: products so far. remaining: those still expected.
    seconds: of one by the engine in use. spent: of all. graphs, nodes, recording: see `Prices`. operations: of the
    recordings.
    """

    follows: bool = False
    form: str | None = None
    failed: str = ""
    made: int = 0
    remaining: int = 0
    seconds: float = 0.0
    spent: float = 0.0
    graphs: float = 0.0
    nodes: int = 0
    recording: float = 0.0
    operations: int = 0


@dataclass(frozen=True)
class Step:
    """do: what to change. reason: why. seconds: that it may take; None for as long as it takes."""

    do: Literal["nothing", "fall back", "record", "compile"]
    reason: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Of a change on one rank. failed: why it does not work there. before, after: seconds of a product."""

    failed: str = ""
    before: float = 0.0
    after: float = 0.0


def next_step(name: Engine, said: Sequence[Standing], costs: Costs | None) -> Step:
    """The same on all ranks, as it depends on nothing but what they have said."""
    if failed := _first(each.failed for each in said):
        return Step("fall back", failed)
    if name != "auto":
        return Step("record")
    if not said:
        return Step("nothing")
    slowest = _slowest(said)
    if all(each.form is None for each in said):
        if not all(each.made for each in said):
            return Step("nothing")
        prices = Prices(
            product=slowest.seconds, graphs=slowest.graphs, recording=slowest.recording, nodes=slowest.nodes,
            costs=costs,
        )  # fmt: skip
        seconds = prices.time_to_try(slowest.remaining, slowest.spent) if prices.records(slowest.remaining) else 0.0
        return Step("record", seconds=seconds) if seconds else Step("nothing")
    if any(each.form is None for each in said):
        return Step("fall back", "another rank has no other engine")
    pays = costs is not None and compiling_pays(
        costs, slowest.remaining, slowest.seconds, slowest.graphs, slowest.operations
    )
    return Step("compile") if pays else Step("nothing")


def why_not(outcomes: Sequence[Outcome]) -> str:
    """Why a change does not work on some rank; empty where it does on all."""
    return _first(each.failed for each in outcomes)


def is_slower(outcomes: Sequence[Outcome], after: float, ratio: float = 1.0) -> bool:
    """Whether a product takes longer than before a change, by more than a ratio; the slowest ranks count."""
    return bool(outcomes) and after > ratio * max(each.before for each in outcomes)


def slowest_after(outcomes: Sequence[Outcome]) -> float:
    """Seconds of a product after a change, on the rank that takes the longest."""
    return max((each.after for each in outcomes), default=0.0)


def _first(reasons: Iterable[str]) -> str:
    return next(filter(None, reasons), "")


def _slowest(said: Sequence[Standing]) -> Standing:
    """With the largest of the ranks' numbers."""
    names = ("made", "remaining", "seconds", "spent", "graphs", "nodes", "recording", "operations")
    return Standing(**{name: max(getattr(each, name) for each in said) for name in names})
