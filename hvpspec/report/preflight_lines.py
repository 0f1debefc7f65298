"""A preflight in lines for the terminal."""

from __future__ import annotations

from hvpspec.memory import readable
from hvpspec.results.preflight import Preflight, agree
from hvpspec.report.notes import rounded

_MUCH = 1.2  # times what is likely: less is no news
_UNKIND = "the trace cancels or eigenvalues crowd"


def findings_lines(preflight: Preflight, *severities: str) -> list[str]:
    """A line a finding, those of these severities or all."""
    shown = preflight.of(*severities) if severities else preflight.findings
    if not shown and not severities:
        return ["nothing found that would go wrong"]
    return [f"{finding.severity:<7}  {finding}" for finding in shown]


def measured_lines(preflight: Preflight) -> list[str]:
    """What was measured, and what the whole run is foreseen to take."""
    lines = []
    if preflight.symmetry is not None and preflight.repeatability is not None:
        lines.append(
            f"symmetry: off by {preflight.symmetry:.1g}; the same product again: {preflight.repeatability:.1g}"
        )
    if preflight.difference is not None:
        bound = preflight.difference_bound or 0.0
        verb = "agree to" if agree(preflight.difference, bound) else "differ by"
        lines.append(
            f"finite differences of the gradient {verb} {preflight.difference:.1g} (they can be trusted to {bound:.1g})"
        )
    if preflight.seconds is not None:
        memory = "" if preflight.memory is None else f", {readable(preflight.memory)} above what is held"
        lines.append(f"one product: {rounded(preflight.seconds, 2)} s{memory}")
    if preflight.expected_hvps is not None:
        lines.append(f"the whole run: about {preflight.expected_hvps:,} HVPs{foreseen(preflight)}")
        lines += [worst] if (worst := at_most(preflight)) else []
    return lines


def foreseen(preflight: Preflight) -> str:
    """ ", about 5 s, 340 MiB in all", as far as known."""
    seconds = "" if preflight.expected_seconds is None else f", about {duration(preflight.expected_seconds)}"
    memory = "" if preflight.expected_memory is None else f", {readable(preflight.expected_memory)} in all"
    return seconds + memory


def at_most(preflight: Preflight) -> str:
    """ "up to 900 HVPs, 2 min, 1 GiB where …"; nothing where that is about the same."""
    hvps, most = preflight.expected_hvps, preflight.most_hvps
    if hvps is None or most is None or most <= _MUCH * hvps:
        return ""
    worst = [f"{most:,} HVPs"]
    if preflight.most_seconds is not None:
        worst.append(duration(preflight.most_seconds))
    if preflight.most_memory is not None:
        worst.append(readable(preflight.most_memory))
    return f"up to {', '.join(worst)} where {_UNKIND}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
