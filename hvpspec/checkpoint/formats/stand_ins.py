"""What a pickle may name beside tensors without anyone's leave: for each, something inert that stands for it.

Training checkpoints hold NumPy's numbers, a random generator's state, a defaultdict, the arguments of a command line.
None of it is a weight. It is read by code that is here, so that a file never reaches NumPy's own unpickling, which is
C and takes objects, nor any class's constructor.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from hvpspec.checkpoint.formats.inert_pickle import Record


class DType:
    """numpy.dtype: of plain numbers, else None."""

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
    """numpy.ndarray. `values`: None unless they are plain numbers."""

    def __init__(self) -> None:
        self.values: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, content = state
        known = dtype.known if isinstance(dtype, DType) else None
        self.values = None
        if known is not None and isinstance(content, bytes | bytearray):
            self.values = np.frombuffer(content, known).reshape(shape, order="F" if by_columns else "C")


def _array(*_: Any) -> Array:
    """numpy's _reconstruct, which makes an empty array for __setstate__ to fill."""
    return Array()


def _scalar(dtype: Any = None, content: Any = None, *_: Any) -> Any:
    """A NumPy number as Python's; None for what is no number."""
    known = dtype.known if isinstance(dtype, DType) else None
    if known is None or not isinstance(content, bytes) or len(content) != known.itemsize:
        return None
    return np.frombuffer(content, known)[0].item()


def _dict(*_: Any) -> dict[Any, Any]:
    return {}


def _list(*_: Any) -> list[Any]:
    return []


def _no_bytes(*_: Any) -> bytes:
    """`bytes()`, as an empty array has it; never bytes(n), which would allot them."""
    return b""


def stand_in(module: str, name: str) -> type[Record]:
    """A class of inert records with the name of another."""
    return type(name, (_Container,), {"module": module, "name": name})


class _Container(Record):
    """A record that takes entries, in case that it stands for a list or a dict, and forgets them."""

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
"""By the full name that a pickle has."""
