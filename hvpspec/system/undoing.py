"""Undoing what was changed for a while, whatever is raised and when.

Python raises an alarm or Ctrl-C between any two calls that it makes, also while a `finally` puts things back. A user's
model would stay in float64 then, or at parameters that were moved. So what puts things back is prepared before anything
is changed, as a `map` of functions that are not written in Python, and `run_all` is one call.

`contextlib.ExitStack` is written in Python, and drops all that is left when it is interrupted: use nested `with`s.
"""

from __future__ import annotations

import contextlib
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

run_all: Callable[[Iterable[object]], None] = deque[object](maxlen=0).extend
"""Makes all calls of a `map`, and keeps no results."""

set_entry: Callable[[Any, str, Any], None] = operator.setitem
"""`entries[name] = value` as a function."""


@contextlib.contextmanager
def scoped(variable: ContextVar[T], value: T) -> Iterator[None]:
    """A context variable has another value meanwhile."""
    before = variable.get()
    try:
        variable.set(value)
        yield
    finally:
        variable.set(before)
