"""A budget of seconds for all that is done inside a `with`: asked before each product and between batches.

The command line also sets an alarm, which ends what goes on when the time is up: a product, loading, compiling. It is
raised only where `interruptible` says that it may be: nowhere else would the figures be whole afterwards. Python raises
nothing before a call into a library returns, such as the backward pass of one batch, nor outside the main thread.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

from hvpspec.system.undoing import scoped

PRODUCTS_PER_RECOMPUTED = 4.0  # in time: float64 takes twice as long, and no engine has prepared for it
_RECOMPUTED = 2  # products that a run computes again, to measure rounding
_LEAST_SECONDS = 1e-3  # of an alarm: 0 would set none
_RESERVED_SHARE = 0.1  # of the time, at most, for these

Result = TypeVar("Result")
_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)  # by `clock`
_interruptible: ContextVar[bool] = ContextVar("interruptible", default=False)
_began: ContextVar[float | None] = ContextVar("began", default=None)


def clock() -> float:
    """Seconds by the clock that limits are measured with."""
    return time.monotonic()


class OutOfTime(KeyboardInterrupt):
    """The time is up; a KeyboardInterrupt, which nobody takes for an ordinary error."""


@contextlib.contextmanager
def time_limit(seconds: float | None, began: float | None = None, *, alarm: bool = False) -> Iterator[None]:
    """Allows that many seconds, and no more than a limit around this one.

    began: when they began to count. alarm: sets one for the end; without effect outside the main thread, on systems
    that have none, and where somebody else waits for one.
    """
    own = math.inf if seconds is None else (clock() if began is None else began) + seconds
    outer = min(own, _deadline.get())
    sets = alarm and math.isfinite(outer) and _can_ring()
    before = signal.getsignal(signal.SIGALRM) if sets else None
    try:
        with scoped(_deadline, outer):
            if sets:
                _set_alarm(_ring)
            yield
    finally:
        if sets:  # for what is left of a limit around this one
            _set_alarm(before)


def time_left() -> float:
    """Seconds; infinite without a limit."""
    end = _deadline.get()
    return math.inf if math.isinf(end) else end - clock()


def check_time(needed: float = 0.0) -> None:
    """Raises OutOfTime where less than the needed seconds are left, or none."""
    if (left := time_left()) <= 0 or left < needed:
        raise OutOfTime


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """An alarm may be raised meanwhile; where it went off before, OutOfTime is raised now."""
    check_time()
    with scoped(_interruptible, True):
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside of `interruptible`: no alarm is raised meanwhile; `check_time` says later that it went off."""
    with scoped(_interruptible, False):
        yield


def _can_ring() -> bool:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return False
    return signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, _ring)


def _set_alarm(handler: Any) -> None:
    """For the end of the time, or none where there is no limit."""
    signal.signal(signal.SIGALRM, handler)
    left = time_left()
    signal.setitimer(signal.ITIMER_REAL, max(left, _LEAST_SECONDS) if math.isfinite(left) else 0.0)


def _ring(number: int, frame: FrameType | None) -> None:
    if _interruptible.get():
        raise OutOfTime


@contextlib.contextmanager
def counting_from(began: float | None) -> Iterator[None]:
    """A command begins: its limit counts from here, or from `began`."""
    with scoped(_began, clock() if began is None else began):
        yield


def command_began() -> float:
    """When the command did, by `clock`; now outside of one."""
    began = _began.get()
    return clock() if began is None else began


@dataclass
class Pace:
    """How long a product takes, and so how many more there is time for.

    expected: what the operator itself says of the seconds of so many products, NaN where it does not know yet. fastest:
    seconds of a product so far, as a first one may prepare something. recomputes: whether products are computed again
    at the end, to measure rounding: time is kept for that. allowed: seconds for all of it. agreed: where several
    processes run side by side, makes of each one's number the one that all of them go by.
    """

    expected: Callable[[int], float] = lambda products: math.nan
    fastest: float = math.inf
    recomputes: bool = False
    allowed: float = field(default_factory=time_left)
    agreed: Callable[[float], float] | None = None

    @property
    def seconds(self) -> float:
        """Of a product; 0 before the first."""
        known = self.expected(1)
        if math.isnan(known):
            known = self.fastest
        return known if math.isfinite(known) else 0.0

    def affordable(self) -> float:
        """Products that there is time for; infinite without a limit, and before it is known how long one takes."""
        if math.isinf(time_left()):
            return math.inf
        return self._affordable() if self.agreed is None else float(self.agreed(self._affordable()))

    def _affordable(self) -> float:
        left, each = time_left(), self.seconds
        if left <= 0 or each <= 0:
            return math.inf if left > 0 else 0.0
        most = _RECOMPUTED * PRODUCTS_PER_RECOMPUTED * each if self.recomputes else 0.0
        return float(max((left - min(most, _RESERVED_SHARE * self.allowed)) // each, 0))

    def time(self, products: float, work: Callable[[], Result]) -> Result:
        """What `work` returns, which takes as long as so many products; OutOfTime is raised where it cannot be done."""
        needed, start = products * self.seconds, clock()
        if self.agreed is None:
            check_time(needed)
            with interruptible():
                found = work()
        else:  # of several processes, each interrupts its own part of the work, and tells the others
            if math.isfinite(time_left()) and self.agreed(time_left() - needed) <= 0:
                raise OutOfTime
            found = work()
        self.fastest = min(self.fastest, (clock() - start) / products)
        return found
