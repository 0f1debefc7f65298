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
from typing import TypeVar

PRODUCTS_PER_RECOMPUTED = 4.0  # in time: float64 takes twice as long, and no engine has prepared for it
_RECOMPUTED = 2  # products that a run computes again, to measure rounding
_RESERVED_SHARE = 0.1  # of the time, at most, for these

Result = TypeVar("Result")
clock = time.monotonic  # one name, for tests

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)  # by `clock`
_interruptible: ContextVar[bool] = ContextVar("interruptible", default=False)


class OutOfTime(KeyboardInterrupt):
    """The time is up; a KeyboardInterrupt, which nobody takes for an ordinary error."""


@contextlib.contextmanager
def time_limit(seconds: float | None, began: float | None = None) -> Iterator[None]:
    """Allows that many seconds, and no more than a limit around this one. began: when they began to count."""
    own = math.inf if seconds is None else (clock() if began is None else began) + seconds
    token = _deadline.set(min(own, _deadline.get()))
    try:
        yield
    finally:
        _deadline.reset(token)


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
    token = _interruptible.set(True)
    try:
        yield
    finally:
        _interruptible.reset(token)


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """Sets the alarm for the end of the time. Without effect without a limit, outside the main thread, on systems that
    have no alarms, and where somebody else waits for one."""
    can = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not can or math.isinf(left := time_left()) or signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _ring(number: int, frame: FrameType | None) -> None:
    if _interruptible.get():
        raise OutOfTime


@dataclass
class Pace:
    """How long a product takes, and so how many more there is time for.

    expected: what the operator itself says of the seconds of so many products, NaN where it does not know yet. fastest:
    seconds of a product so far, as a first one may prepare something. reserved: seconds for what `recompute` does.
    """

    expected: Callable[[int], float] = lambda products: math.nan
    fastest: float = math.inf
    recomputes: bool = False
    allowed: float = field(default_factory=time_left)

    @property
    def seconds(self) -> float:
        """Of a product; 0 before the first."""
        known = self.expected(1)
        if math.isnan(known):
            known = self.fastest
        return known if math.isfinite(known) else 0.0

    def affordable(self) -> float:
        """Products that there is time for; infinite without a limit, and before it is known how long one takes."""
        left, each = time_left(), self.seconds
        if math.isinf(left) or left <= 0 or each <= 0:
            return math.inf if left > 0 else 0.0
        most = _RECOMPUTED * PRODUCTS_PER_RECOMPUTED * each if self.recomputes else 0.0
        return float(max((left - min(most, _RESERVED_SHARE * self.allowed)) // each, 0))

    def time(self, products: float, work: Callable[[], Result]) -> Result:
        """What `work` returns, which takes as long as so many products; OutOfTime is raised where it cannot be done."""
        check_time(products * self.seconds)
        start = clock()
        with interruptible():
            found = work()
        self.fastest = min(self.fastest, (clock() - start) / products)
        return found
