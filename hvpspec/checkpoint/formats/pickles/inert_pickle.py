"""Reads pickles as data: each class that they name becomes an inert record, so that nothing in them is ever called."""

from __future__ import annotations

import io
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from hvpspec.checkpoint.formats.limits import Budget
from hvpspec.checkpoint.formats.pickles.rebuilding import Rebuilding
from hvpspec.checkpoint.formats.pickles.safe_pickle import SafeUnpickler
from hvpspec.checkpoint.formats.pickles.storages import Refused


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


_BYTES_OF_A_CLASS = 2048


class InertUnpickler(SafeUnpickler):
    """Makes a record of whatever a pickle names, besides plain values and dtypes."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.named: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except Refused as refused:
            self._budget.take(_BYTES_OF_A_CLASS)
            self.named.append(refused.wanted)
            return self.allow(refused.wanted, type("Record", (Record,), {"module": module, "name": name}))


_PLAIN = ("torch.Size", "collections.OrderedDict")


def inert(file: IO[bytes] | mmap.mmap, storage: Callable[[Any], Any] | None, budget: Budget) -> InertUnpickler:
    """Reads a pickle from a file as `read_inert` does."""
    functions = Rebuilding(budget).functions
    return InertUnpickler(file, storage, {name: functions[name] for name in _PLAIN}, budget)


def read_inert(
    content: bytes, path: Path, storage: Callable[[Any], Any] | None = None, budget: Budget | None = None
) -> Any:
    """The object that a pickle holds, of plain Python values, dtypes and `Record`s.

    path: for messages. storage: turns a persistent id, with which torch names the memory of a tensor, into an object.
    budget: by default for a file of this size. Malformed pickles raise exceptions of many types.
    """
    return inert(io.BytesIO(content), storage, budget or Budget(path, len(content))).load()


def inert_names(content: bytes, path: Path) -> list[str]:
    """The full names of all classes and functions that a pickle names, besides dtypes and the like."""
    reader = inert(io.BytesIO(content), lambda _: None, Budget(path, len(content)))
    reader.load()
    return reader.named
