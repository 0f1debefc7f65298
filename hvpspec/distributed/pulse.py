"""Signs of life: a rank that works, or waits for others, changes a number in the store; one that sleeps does not.

A thread that only counted seconds would beat in a process that hangs. So it looks whether the process has computed
anything since the last beat, by its processor time.
"""

from __future__ import annotations

import contextlib
import threading
import time

from hvpspec.distributed.store import Store

_INTERVAL = 2.0  # seconds between beats
_WORKING = 0.01  # share of the interval, in processor time: less is no work


class Pulse:
    """Of this rank, from now on, and of the others as they are in the store."""

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self._rank = store, rank
        self._beats, self._last = 0, 0.0
        threading.Thread(target=self._watch, name="hvpspec-pulse", daemon=True).start()

    def beat(self) -> None:
        """This rank is alive: it waits for others, or it works."""
        if time.monotonic() - self._last >= _INTERVAL / 2:
            self._last, self._beats = time.monotonic(), self._beats + 1
            self._store.set(f"pulse/{self._rank}", str(self._beats))

    def of(self, rank: int) -> str:
        """What changes as long as that rank is alive."""
        key = f"pulse/{rank}"
        return self._store.get(key) if self._store.has(key) else ""

    def _watch(self) -> None:
        before = time.process_time()
        while True:
            time.sleep(_INTERVAL)
            now = time.process_time()
            if now - before >= _WORKING * _INTERVAL:
                with contextlib.suppress(Exception):  # the store may have gone with its process
                    self.beat()
            before = now
