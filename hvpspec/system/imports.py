"""Imports of large packages, by a process that was started for one command."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """No garbage is collected while torch is imported, and what is there then is never looked at again.

    A million objects that stay are made meanwhile, over which collections would go again and again, at the end of the
    process too: together a quarter of the time that it takes to import torch and to end.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
