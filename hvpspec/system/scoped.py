"""A context variable that has another value for a while, and the one of before after it, whatever is raised and when.

An alarm or Ctrl-C may be raised between any two calls: what is undone is in a `try` before it is done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def scoped(variable: ContextVar[T], value: T) -> Iterator[None]:
    before = variable.get()
    try:
        variable.set(value)
        yield
    finally:
        variable.set(before)
