"""Signs of life: a rank that works, or waits for others, changes a number in the store; one that sleeps does not.

A thread that only counted seconds would beat in a process that hangs. So it looks whether the process has computed
anything since the last beat, by its processor time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

_INTERVAL = 2.0  # seconds between beats
_WORKING = 0.01  # share of the interval, in processor time: less is no work


class Pulse:
    """Of this rank, and of the others as they are in the store."""

    def __init__(self, store: Any, rank: int) -> None:
        """store: of torch.distributed."""
        self._store, self._rank = store, rank
        self._beats, self._last = 0, 0.0
        self._working = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """This rank is alive: it waits for others."""
        if time.monotonic() - self._last >= _INTERVAL:
            self._last, self._beats = time.monotonic(), self._beats + 1
            self._store.set(f"pulse/{self._rank}", str(self._beats))

    def of(self, rank: int) -> bytes:
        """What changes as long as that rank is alive."""
        key = f"pulse/{rank}"
        return bytes(self._store.get(key)) if self._store.check([key]) else b""

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Beats meanwhile as long as the process computes."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="hvpspec-pulse", daemon=True)
            self._thread.start()
        self._working.set()
        try:
            yield
        finally:
            self._working.clear()

    def _watch(self) -> None:
        before = time.process_time()
        while True:
            self._working.wait()
            time.sleep(_INTERVAL)
            now = time.process_time()
            if now - before >= _WORKING * _INTERVAL and self._working.is_set():
                with contextlib.suppress(Exception):  # the store may have gone with its process
                    self.beat()
            before = now
