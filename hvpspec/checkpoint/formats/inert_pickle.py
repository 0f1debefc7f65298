"""Pickles read as data: whatever class they name becomes an inert record, so that nothing of theirs is ever called."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch


class Record:
    """Stands for an object: the class it names, what it was made with, and its state."""

    module: str = ""
    name: str = ""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.arguments = arguments
        self.state: Any = keywords

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __hash__(self) -> int:  # records serve as keys before their state is known
        return id(self)

    def get(self, name: str) -> Any:
        """An entry of the state, None when it has none. (No __getitem__: a pickle could iterate over it for ever.)"""
        return self.state.get(name) if isinstance(self.state, dict) else None

    def is_a(self, name: str) -> bool:
        return self.name == name


class _Unpickler(pickle._Unpickler):
    """In Python, because the C one allots a memo as long as the largest index that a file makes up."""

    def __init__(self, content: bytes, storage: Callable[[Any], Any] | None) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._storage = storage
        self._records: dict[tuple[str, str], type[Record]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        key = (module, name)
        if key not in self._records:
            self._records[key] = type("Record", (Record,), {"module": module, "name": name})
        return self._records[key]

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("extension codes are not read")

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise pickle.UnpicklingError("a persistent id is not expected here")
        return self._storage(pid)


def read_inert(content: bytes, storage: Callable[[Any], Any] | None = None) -> Any:
    """The object that a pickle holds, of plain Python values, dtypes and `Record`s.

    storage: turns a persistent id (torch's way to name a tensor's memory) into an object.
    Malformed pickles raise exceptions of many kinds.
    """
    return _Unpickler(content, storage).load()
