"""Signals that ask a run to stop: Ctrl-C, SIGTERM (kill, batch systems) and SIGHUP (the terminal has gone).

They are raised as one exception wherever the run is, so that what is known can be saved. Meanwhile `holding` keeps
them from being raised: what is being written is finished. Signals that the parent process ignores (nohup, a job in the
background) stay ignored, and handlers of others stay in place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_SECONDS_TO_UNWIND = 2.0  # before a further signal is raised as well: the first one must get to where it is handled
_SECONDS_UNHEARD = 2.0  # that a signal may wait for a call into a library to return


class Stopped(KeyboardInterrupt):
    """A signal has asked this process to stop; a KeyboardInterrupt, which nobody takes for an ordinary error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class _State:
    """What has come so far. Only the main thread changes it: Python runs handlers there."""

    number: int | None = None  # of the first signal
    raised: float = 0.0  # when one was last raised, by time.monotonic
    holding: int = 0  # how many `holding` contexts are open
    watched: bool = False  # whether `when_unheard` is
    heard: threading.Event = field(default_factory=threading.Event)  # Python code has run since the signal came


_state = _State()


def stopped_by(stop: KeyboardInterrupt) -> str:
    """What to say of it: "interrupted", or "stopped by SIGTERM"."""
    number = getattr(stop, "number", signal.SIGINT)
    return "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


def exit_status(stop: KeyboardInterrupt) -> int:
    """As shells have it: 128 and the number of the signal."""
    return 128 + int(getattr(stop, "number", signal.SIGINT))


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raises Stopped for these signals meanwhile. Without effect outside the main thread, and within another one."""
    default = (signal.SIG_DFL, signal.default_int_handler)
    found: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
        found = {number: kept for number in numbers if (kept := signal.getsignal(number)) in default}
    if found:
        _state.number, _state.raised, _state.holding = None, 0.0, 0
        _state.heard.clear()
    try:
        for number in found:
            signal.signal(number, _handle)
        yield
    finally:
        for number, kept in found.items():
            signal.signal(number, kept)


def _handle(number: int, frame: FrameType | None) -> None:
    _state.heard.set()
    if _state.number is None:
        _state.number = number
    elif time.monotonic() < _state.raised + _SECONDS_TO_UNWIND:
        return
    if not _state.holding:
        _state.raised = time.monotonic()
        raise Stopped(number)


@contextlib.contextmanager
def holding() -> Iterator[None]:
    """Signals are noted and not raised meanwhile; see `check_stops`."""
    _state.holding += 1
    try:
        yield
    finally:
        _state.holding -= 1


def asked() -> Stopped | None:
    """The first signal that has come, whatever has become of its exception."""
    return None if _state.number is None else Stopped(_state.number)


def check_stops() -> None:
    """Raises Stopped for a signal that has come while it was held, or whose exception somebody's code has swallowed."""
    if _state.number is not None and not _state.holding and threading.current_thread() is threading.main_thread():
        _state.raised = time.monotonic()
        raise Stopped(_state.number)


@contextlib.contextmanager
def when_unheard(act: Callable[[Stopped], None]) -> Iterator[None]:
    """Calls `act` in a thread of its own when a signal has come but cannot be raised, as a library's call goes on.

    A batch system kills what has not ended a while after SIGTERM; Python raises nothing before the call returns.
    """
    if signal.getsignal(signal.SIGTERM) is not _handle and signal.getsignal(signal.SIGINT) is not _handle:
        yield
        return
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    before, _state.watched = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False), True

    def watch() -> None:
        while number := os.read(ours, 1):
            if signal.getsignal(number[0]) is _handle and not _state.heard.wait(_SECONDS_UNHEARD):
                act(Stopped(number[0]))

    thread = threading.Thread(target=watch, name="hvpspec-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        _state.watched = False
        os.close(theirs)
        thread.join()
        os.close(ours)


def _as_usual() -> None:
    """In a child that is forked meanwhile, such as a worker of a pool, which SIGTERM has to end."""
    with contextlib.suppress(ValueError):
        for number in (getattr(signal, name) for name in _NAMES):
            if signal.getsignal(number) is _handle:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if _state.watched:
            signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_as_usual)
