"""What ranks tell one another through the store that every process group has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from hvpspec.errors import LostRank


class Store:
    """Texts by keys. Raises LostRank where the process that keeps them has gone."""

    def __init__(self, store: Any) -> None:
        """store: of torch.distributed."""
        self._store = store

    def has(self, *keys: str) -> bool:
        """Whether all of the keys have been set."""
        with _there():
            return bool(self._store.check(list(keys)))

    def get(self, key: str) -> str:
        """What a key has been set to."""
        with _there():
            return bytes(self._store.get(key)).decode()

    def set(self, key: str, words: str) -> None:
        with _there():
            self._store.set(key, words)

    def remove(self, key: str) -> None:
        with _there():
            self._store.delete_key(key)


@contextlib.contextmanager
def _there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostRank(None, str(error)) from None
