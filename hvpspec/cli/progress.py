"""How far a run is, in a line: products made and expected, seconds a product, and the time at which it ends."""

from __future__ import annotations

import math
from collections import deque
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from hvpspec.system.time_limit import clock, time_left

if TYPE_CHECKING:
    from hvpspec.results.spectrum import Progress

_STEPS_MEASURED = 12  # the last ones, over which seconds a product are measured: engines change, and a journal is fast


def wall_clock() -> datetime:
    """The time of day."""
    return datetime.now()


class Outlook:
    """What the steps so far say of those to come. A step with fewer products than the one before begins another run."""

    def __init__(self) -> None:
        self._expected: int | None = None
        self._steps: deque[tuple[float, int]] = deque(maxlen=_STEPS_MEASURED)  # when, and products made by then

    def follow(self, step: Progress) -> None:
        """Takes note of a step."""
        if self._steps and step.hvps < self._steps[-1][1]:
            self._steps.clear()
            self._expected = None
        if not self._steps or step.hvps > self._steps[-1][1]:
            self._steps.append((clock(), step.hvps))
        self._expected = step.expected or self._expected

    @property
    def expected(self) -> int | None:
        """Products of the whole run; None where that is not known, or is no more than were made."""
        return self._expected if self._expected and self._expected >= self._made else None

    @property
    def _made(self) -> int:
        return self._steps[-1][1] if self._steps else 0

    @property
    def seconds_each(self) -> float:
        """Of a product; NaN before the second step."""
        if len(self._steps) < 2:
            return math.nan
        (then, few), (now, many) = self._steps[0], self._steps[-1]
        return (now - then) / (many - few)

    @property
    def left(self) -> float:
        """Seconds until the end; NaN where that is not known."""
        if self.expected is None:
            return math.nan
        return min((self.expected - self._made) * self.seconds_each, max(time_left(), 0.0))

    @property
    def count(self) -> str:
        """ "34/66"."""
        return str(self._made) if self.expected is None else f"{self._made}/{self.expected}"

    @property
    def pace(self) -> str:
        """ "1.2 s each"; nothing before that is known."""
        from hvpspec.report.numbers import rounded

        return "" if math.isnan(self.seconds_each) else f"{rounded(self.seconds_each, 2)} s each"

    @property
    def end(self) -> str:
        """ "ends about 14:32", with the date where that is another day; nothing where it is not known."""
        if math.isnan(self.left):
            return ""
        now = wall_clock()
        end = now + timedelta(seconds=self.left)
        return f"ends about {end:%H:%M}" if end.date() == now.date() else f"ends about {end:%Y-%m-%d %H:%M}"

    def line(self, step: Progress) -> str:
        """All of it, with what is known so far."""
        of = f"{self._made:,} HVPs" if self.expected is None else f"{self._made:,} of about {self.expected:,} HVPs"
        known = [step.stage, *([estimate] if (estimate := current_estimate(step)) else [])]
        return f"{', '.join(filter(None, [of, self.pace, self.end]))} ({', '.join(known)})"


def current_estimate(step: Progress) -> str:
    """The trace where it is known, or else λ1."""
    from hvpspec.report.numbers import with_error

    known = step.spectrum
    if known.trace is not None:
        value, error = with_error(known.trace.value, known.trace.error)
        return f"trace {value} ± {error}"
    if known.eigenpairs is not None:
        value, error = with_error(float(known.eigenpairs.values[0]), float(known.eigenpairs.error[0]))
        return f"λ1 {value} ± {error}"
    return ""
