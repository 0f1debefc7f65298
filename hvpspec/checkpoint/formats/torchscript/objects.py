"""The objects of a TorchScript archive: read as data, compared with what the program declares, and written again.

torch takes the type of each value, and the place of each tensor in its memory, from the file without a check.
"""

from __future__ import annotations

import ast
import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvpspec.checkpoint.formats.archive import Archive
from hvpspec.checkpoint.formats.pickles.inert_pickle import Record, read_inert
from hvpspec.checkpoint.formats.pickles.storages import Storage, StorageKind, check_strided, stored, strided
from hvpspec.checkpoint.formats.torchscript.program import NotSafe, ScriptClass

_JIT = "torch.jit._pickle"
_LISTS = {"build_intlist": "int", "build_doublelist": "float", "build_boollist": "bool", "build_tensorlist": "Tensor"}
_STORAGES = {
    torch.uint8: "Byte", torch.int8: "Char", torch.int16: "Short", torch.int32: "Int", torch.int64: "Long",
    torch.float16: "Half", torch.float32: "Float", torch.float64: "Double", torch.bool: "Bool",
    torch.bfloat16: "BFloat16", torch.complex64: "ComplexFloat", torch.complex128: "ComplexDouble",
}  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """The memory of tensors, by the name of the member that holds it."""

    key: str
    dtype: torch.dtype
    count: int


def read_objects(archive: Archive, name: str, folder: str) -> Any:
    """What one of the pickles of an archive holds. Its tensors lie in members in `folder`."""

    def memory(pid: Any) -> Memory:
        _, kind, key, _, count = pid
        if not isinstance(kind, StorageKind) or kind.dtype not in _STORAGES or not isinstance(key, str):
            raise ValueError("a tensor's memory is named in an unknown way")
        member = f"{folder}/{key}"
        held = archive.size(member) if member in archive.names else 0
        if type(count) is not int or held != count * kind.dtype.itemsize:
            raise ValueError("a tensor has less data than declared, or more")
        return Memory(key, kind.dtype, count)

    return read_inert(archive.read(name), archive.path, memory, archive.budget)


class Tensors:
    """Makes the tensors that records describe. Those that share memory in the file share it here."""

    def __init__(self, archive: Archive, folder: str) -> None:
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Storage] = {}

    def __call__(self, record: Record) -> Tensor:
        memory, offset, size, stride = record.arguments[:4]
        if memory.key not in self._storages:
            self._storages[memory.key] = stored(
                self._archive, f"{self._folder}/{memory.key}", memory.dtype, memory.count
            )
        return strided(self._storages[memory.key], offset, size, stride, self._archive.budget)


def is_tensor(value: Any) -> bool:
    """Whether a record describes a tensor with memory in the file."""
    known = isinstance(value, Record) and f"{value.module}.{value.name}" == "torch._utils._rebuild_tensor_v2"
    return known and isinstance(value.arguments[0], Memory)


# --- types ------------------------------------------------------------------------------------------------------------


class TypeCheck:
    """Compares values with declared types. Raises NotSafe where they differ, or where a type is not known."""

    def __init__(self, classes: Mapping[str, ScriptClass], archive: Archive) -> None:
        self._classes, self._archive = classes, archive
        self._done: dict[tuple[int, str], Any] = {}  # values are kept, so that no other one gets the same id
        self._constants: dict[int, Any] = {}

    def __call__(self, value: Any, kind: ast.expr) -> None:
        key = (id(value), ast.unparse(kind))
        if key not in self._done:
            self._done[key] = value
            if not self._is(value, kind):
                raise NotSafe(f"declares a value of type {key[1]:.80} and holds another one in its place")

    def top(self, value: Any) -> None:
        """The whole object, of whatever class of the file it is."""
        if not isinstance(value, Record) or f"{value.module}.{value.name}" not in self._classes:
            raise NotSafe("holds something other than a module")
        self(value, ast.parse(f"{value.module}.{value.name}", mode="eval").body)

    def constants(self, value: Any) -> None:
        """Constants of the program: tensors and plain values."""
        if isinstance(value, tuple | list):
            for part in value if id(value) not in self._constants else ():
                self.constants(part)
            self._constants[id(value)] = value
        elif is_tensor(value):
            self._tensor(value)
        elif not isinstance(value, int | float | str | None):
            raise NotSafe("has constants of an unknown kind")

    def _is(self, value: Any, kind: ast.expr) -> bool:
        if isinstance(kind, ast.Subscript) and isinstance(kind.value, ast.Name):
            parts = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
            return self._is_generic(value, kind.value.id, kind, parts)
        if isinstance(kind, ast.Attribute):
            return self._is_object(value, ast.unparse(kind))
        name = kind.id if isinstance(kind, ast.Name) else "NoneType"
        if name == "Tensor":
            return is_tensor(value) and self._tensor(value)
        if name == "Device":
            return isinstance(value, Record) and f"{value.module}.{value.name}" == "torch.device" and _one_text(value)
        plain = {"int": int, "float": float, "bool": bool, "str": str, "NoneType": type(None)}
        return type(value) is plain.get(name) and (type(value) is not int or -(2**63) <= value < 2**63)

    def _is_generic(self, value: Any, name: str, kind: ast.expr, parts: list[ast.expr]) -> bool:
        if name in ("Optional", "Union"):
            return (name == "Optional" and value is None) or any(self._fits(value, part) for part in parts)
        if name == "Tuple":
            return isinstance(value, tuple) and len(value) == len(parts) and all(map(self._fits, value, parts))
        value = self._untagged(value, kind) if isinstance(value, Record) and value.module == _JIT else None
        if name == "List":
            return type(value) is list and all(self._fits(part, parts[0]) for part in value)
        return name == "Dict" and type(value) is dict and len(parts) == 2 and all(
            self._fits(key, parts[0]) and self._fits(entry, parts[1]) for key, entry in value.items()
        )  # fmt: skip

    def _untagged(self, record: Record, kind: ast.expr) -> Any:
        """The list or dict in a record that also names its type."""
        if record.is_a("restore_type_tag") and len(record.arguments) == 2:
            value, tag = record.arguments
            return value if isinstance(tag, str) and _same_type(tag, kind) else None
        tag = _LISTS.get(record.name, "")
        return record.arguments[0] if len(record.arguments) == 1 and _same_type(f"List[{tag}]", kind) else None

    def _fits(self, value: Any, kind: ast.expr) -> bool:
        try:
            self(value, kind)
        except NotSafe:
            self._done.pop((id(value), ast.unparse(kind)), None)
            return False
        return True

    def _is_object(self, value: Any, name: str) -> bool:
        declared = self._classes.get(name)
        if declared is None or not declared.is_module or not isinstance(value, Record):
            return False
        state = value.state
        if f"{value.module}.{value.name}" != name or not isinstance(state, dict) or hasattr(value, "arguments"):
            return False
        if state.keys() != declared.attributes.keys():
            return False
        for attribute, kind in declared.attributes.items():
            self(state[attribute], kind)
        return True

    def _tensor(self, record: Record) -> bool:
        memory, offset, size, stride, requires_grad, hooks = record.arguments[:6]
        check_strided(memory.count, memory.dtype, offset, size, stride, self._archive.budget)
        return (
            isinstance(requires_grad, bool)
            and isinstance(hooks, OrderedDict)
            and not hooks
            and not any(record.arguments[6:])
        )


def _one_text(record: Record) -> bool:
    arguments: tuple[Any, ...] = getattr(record, "arguments", ())
    return len(arguments) == 1 and isinstance(arguments[0], str)


def _same_type(tag: str, kind: ast.expr) -> bool:
    try:
        return ast.dump(ast.parse(tag, mode="eval").body) == ast.dump(kind)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


# --- writing ----------------------------------------------------------------------------------------------------------


class Writer:
    """Writes objects as a pickle of the few kinds of instructions that torch's reader of TorchScript knows."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._memo: dict[int, tuple[int, Any]] = {}  # by id, for what is in several places; with it, to keep the id

    def __call__(self, value: Any) -> bytes:
        self._out.write(pickle.PROTO + b"\x02")
        self._value(value)
        return self._out.getvalue() + pickle.STOP

    def _value(self, value: Any) -> None:
        write = self._out.write
        if value is None or isinstance(value, bool):
            write({None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value])
        elif isinstance(value, int):
            if -(2**31) <= value < 2**31:
                write(pickle.BININT + struct.pack("<i", value))
            else:
                write(pickle.LONG1 + b"\x08" + struct.pack("<q", value))
        elif isinstance(value, float):
            write(pickle.BINFLOAT + struct.pack(">d", value))
        elif isinstance(value, str):
            content = value.encode()
            write(pickle.BINUNICODE + struct.pack("<I", len(content)) + content)
        elif id(value) in self._memo:
            write(pickle.LONG_BINGET + struct.pack("<I", self._memo[id(value)][0]))
        else:
            self._compound(value)
            self._memo[id(value)] = (len(self._memo), value)
            write(pickle.LONG_BINPUT + struct.pack("<I", self._memo[id(value)][0]))

    def _compound(self, value: Any) -> None:
        write = self._out.write
        if isinstance(value, tuple):
            self._tuple(value)
        elif isinstance(value, list):
            write(pickle.EMPTY_LIST + pickle.MARK)
            self._values(value)
            write(pickle.APPENDS)
        elif isinstance(value, OrderedDict):  # always empty
            write(pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE)
        elif isinstance(value, dict):
            write(pickle.EMPTY_DICT + pickle.MARK)
            self._values(part for entry in value.items() for part in entry)
            write(pickle.SETITEMS)
        elif isinstance(value, Memory):
            write(pickle.MARK)
            self._value("storage")
            write(pickle.GLOBAL + f"torch\n{_STORAGES[value.dtype]}Storage\n".encode())
            self._values((value.key, "cpu", value.count))
            write(pickle.TUPLE + pickle.BINPERSID)
        elif isinstance(value, Record):
            self._record(value)
        else:
            raise NotSafe("holds values of an unknown kind")

    def _record(self, value: Record) -> None:
        self._out.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        if hasattr(value, "arguments"):
            self._tuple(value.arguments[:6])
            self._out.write(pickle.REDUCE)
        else:
            self._out.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
            self._value(value.state)
            self._out.write(pickle.BUILD)

    def _tuple(self, values: tuple[Any, ...]) -> None:
        self._out.write(pickle.MARK)
        self._values(values)
        self._out.write(pickle.TUPLE)

    def _values(self, values: Any) -> None:
        for value in values:
            self._value(value)
