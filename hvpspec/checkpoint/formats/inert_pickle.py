"""Reads pickles as data: each class that they name becomes an inert record, so that nothing in them is ever called."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch


class Record:
    """Stands for an object: its class, the arguments that it was made with, and its state."""

    module: str = ""
    name: str = ""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.arguments = arguments
        self.state: Any = keywords

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __hash__(self) -> int:  # records are used as keys before their state is known
        return id(self)

    def get(self, name: str) -> Any:
        """An entry of the state, or None. (Without __getitem__, through which a pickle could iterate for ever.)"""
        return self.state.get(name) if isinstance(self.state, dict) else None

    def is_a(self, name: str) -> bool:
        """Whether the class has that name."""
        return self.name == name


class _Unpickler(pickle._Unpickler):
    """pickle's Python version. The one in C allocates a memo as long as the largest index in a file, true or false."""

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
        raise pickle.UnpicklingError("extension codes are not supported")

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise pickle.UnpicklingError("a persistent id is not expected here")
        return self._storage(pid)


def read_inert(content: bytes, storage: Callable[[Any], Any] | None = None) -> Any:
    """The object that a pickle holds, of plain Python values, dtypes and `Record`s.

    storage: turns a persistent id, with which torch names the memory of a tensor, into an object.
    Malformed pickles raise exceptions of many types.
    """
    return _Unpickler(content, storage).load()
