"""What a pickle may hold besides tensors without permission: for each such class, an inert stand-in.

Training checkpoints hold NumPy numbers, the state of a random generator, a defaultdict, the arguments of a command
line. None of these are weights. They are read by the code below, so that a file never reaches NumPy's own unpickling,
which is written in C and accepts objects, or the constructor of a class.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from hvpspec.checkpoint.formats.pickles.inert_pickle import Record


class DType:
    """Stands for numpy.dtype. `known` is None unless it is of plain numbers."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self._code, self._order = code, "="

    def __setstate__(self, state: Any) -> None:
        self._order = state[1]

    @property
    def known(self) -> np.dtype[Any] | None:
        if not (isinstance(self._order, str) and isinstance(self._code, str)):
            return None
        written = self._order + self._code
        return np.dtype(written) if re.fullmatch(r"[<>=|][biufc](1|2|4|8|16)", written) else None


class Array:
    """Stands for numpy.ndarray. `values` is None unless it holds plain numbers."""

    def __init__(self) -> None:
        self.values: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, content = state
        known = dtype.known if isinstance(dtype, DType) else None
        self.values = None
        if known is not None and isinstance(content, bytes | bytearray):
            self.values = np.frombuffer(content, known).reshape(shape, order="F" if by_columns else "C")


def _array(*_: Any) -> Array:
    """Stands for NumPy's _reconstruct, which makes an empty array for __setstate__ to fill."""
    return Array()


def _scalar(dtype: Any = None, content: Any = None, *_: Any) -> Any:
    """A NumPy number as a Python number; None where it is not a number."""
    known = dtype.known if isinstance(dtype, DType) else None
    if known is None or not isinstance(content, bytes) or len(content) != known.itemsize:
        return None
    return np.frombuffer(content, known)[0].item()


def _dict(*_: Any) -> dict[Any, Any]:
    return {}


def _list(*_: Any) -> list[Any]:
    return []


def _no_bytes(*_: Any) -> bytes:
    """Stands for `bytes()`, as in an empty array; never calls bytes(n), which would allocate memory."""
    return b""


def stand_in(module: str, name: str) -> type[Record]:
    """A class of inert records with the name of another class."""
    return type(name, (_Container,), {"module": module, "name": name})


class _Container(Record):
    """A record that accepts entries, in case that it stands for a list or a dict, and discards them."""

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...


_NUMPY = {"multiarray.scalar": _scalar, "multiarray._reconstruct": _array}
_RECORDS = (
    *(("builtins", name) for name in ("bool", "dict", "float", "int", "list", "str", "tuple")),  # of a defaultdict
    ("argparse", "Namespace"),
    ("types", "SimpleNamespace"),
    *(("pathlib", name) for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(("pathlib._local", name) for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
)

STAND_INS: dict[str, Any] = {
    **{f"numpy.{core}.{name}": what for core in ("core", "_core") for name, what in _NUMPY.items()},
    "numpy.dtype": DType,
    "numpy.ndarray": Array,
    "collections.defaultdict": _dict,
    "collections.deque": _list,
    "builtins.bytes": _no_bytes,
    **{f"{module}.{name}": stand_in(module, name) for module, name in _RECORDS},
}
"""By the full name that a pickle gives."""
