"""Reads the pickles of torch.save without running anything in them: only what is known to be harmless may be called.

torch's own unpickler with weights_only calls what allocates memory of any length, of unknown content, or out of bounds.
"""

from __future__ import annotations

import itertools
import mmap
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, Any, cast

import torch
from torch import Tensor

from hvpspec.checkpoint.formats.limits import Budget
from hvpspec.checkpoint.formats.pickles.rebuilding import check_key
from hvpspec.checkpoint.formats.pickles.storages import Refused, storage_kind

_OPCODES_BETWEEN_LOOKS_AT_THE_CLOCK = 10_000
_BYTES_OF_AN_OBJECT = 512  # of a tensor without its data, or of an object of another class

_BLOCKED_MODULES = ("sys", "os", "posix", "nt")  # whoever allows something of these means something else

_NAMED_VALUES = {
    "torch.Tensor": Tensor,
    **{str(kind): kind for kind in (torch.per_tensor_affine, torch.per_channel_affine,
                                    torch.per_channel_affine_float_qparams)},
}  # fmt: skip


class SafeUnpickler(pickle._Unpickler):
    """Makes tensors, plain values, and instances of what is allowed, of a budget.

    storages: turns a persistent id, with which torch names the memory of a tensor, into an object. allowed: what may be
    called, or made and given a state, by the full name that a pickle gives. (pickle's version in C cannot be restricted
    so far: it calls whatever is on its stack, and allocates a memo as long as the largest index in a file says.)
    """

    def __init__(
        self,
        file: IO[bytes] | mmap.mmap,
        storages: Callable[[Any], Any] | None,
        allowed: Mapping[str, Any],
        budget: Budget,
    ) -> None:
        super().__init__(cast(IO[bytes], file), encoding="utf-8")
        self._file, self._storages, self._budget = file, storages, budget
        self._allowed: dict[str, Any] = {}
        self._callable: set[int] = set()
        self._classes: set[type] = set()
        for name, value in allowed.items():
            self.allow(name, value)

    def allow(self, name: str, value: Any) -> Any:
        """Lets the pickle call `value` by a full name, and set the state of its instances where it is a class."""
        self._allowed[name] = value
        self._callable.add(id(value))
        if isinstance(value, type):
            self._classes.add(value)
        return value

    def load(self) -> Any:
        """The object that the pickle holds."""
        self.read, self.readline = self._file.read, self._file.readline
        self.stack: list[Any] = []
        self.metastack: list[list[Any]] = []
        self.append, self.proto = self.stack.append, 0
        read, dispatch, stop = self.read, _DISPATCH, pickle.STOP
        for number in itertools.count():
            if (opcode := read(1)) == stop:
                return self.stack.pop()
            if number % _OPCODES_BETWEEN_LOOKS_AT_THE_CLOCK == 0:
                self._budget.check_time()
            if opcode not in dispatch:
                raise pickle.UnpicklingError(f"Unsupported operand {opcode!r}" if opcode else "it is cut short")
            dispatch[opcode](self)

    def find_class(self, module: str, name: str) -> Any:
        if self.proto < 3:  # names of Python 2, as which Python 3 writes them too: commands.Popen is subprocess.Popen
            if (module, name) in NAME_MAPPING:
                module, name = NAME_MAPPING[module, name]
            else:
                module = IMPORT_MAPPING.get(module, module)
        full = f"{module}.{name}"
        if module not in _BLOCKED_MODULES and full in self._allowed:
            return self._allowed[full]
        if full in _NAMED_VALUES:
            return _NAMED_VALUES[full]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (kind := storage_kind(module, name)) is not None:
            return kind
        raise Refused(f"it names {full}", full)

    def persistent_load(self, pid: Any) -> Any:
        if self._storages is None:
            raise Refused("Only persistent_load of storage is allowed, and none is expected here")
        return self._storages(pid)

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if id(function) not in self._callable or not isinstance(arguments, tuple):
            raise Refused(f"Trying to call reduce for unrecognized function {function!r:.80}")
        self._budget.take(_BYTES_OF_AN_OBJECT + 8 * len(arguments))
        self.stack[-1] = function(*arguments)

    def load_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self._budget.take(_BYTES_OF_AN_OBJECT)
        if id(kind) in self._callable and isinstance(kind, type):
            self.append(kind.__new__(kind, *arguments))
        elif (made := self._allowed.get("torch.nn.parameter.Parameter")) is not None and kind is made:
            self.append(made(*arguments))
        else:
            raise Refused(f"Can only create new object for nn.Parameter or allowed classes but got {kind!r:.80}")

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if type(made) is OrderedDict and isinstance(state, dict):
            made.__dict__.update(state)
        elif type(made) not in self._classes:
            raise Refused(f"Can only build OrderedDict or allowed classes, but got {type(made)}")
        elif hasattr(made, "__setstate__"):
            made.__setstate__(state)
        else:
            state, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
            if state:
                made.__dict__.update(state)
            for name, value in (slots or {}).items():
                setattr(made, name, value)

    def load_append(self) -> None:
        value = self.stack.pop()
        self._target("append to lists", list).append(value)

    def load_appends(self) -> None:
        values = self.pop_mark()  # type: ignore[attr-defined]
        self._target("extend lists", list).extend(values)

    def load_additems(self) -> None:
        values = self.pop_mark()  # type: ignore[attr-defined]
        for value in values:
            check_key(value)
        self._target("add to sets", set).update(values)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items("SETITEM", [key, value])

    def load_setitems(self) -> None:
        self._set_items("SETITEMS", self.pop_mark())  # type: ignore[attr-defined]

    def _set_items(self, opcode: str, items: list[Any]) -> None:
        target = self._target(
            f"{opcode} for dict, collections.OrderedDict, collections.Counter", dict, OrderedDict, Counter
        )
        for key, value in zip(items[::2], items[1::2], strict=True):
            check_key(key)
            target[key] = value

    def load_frozenset(self) -> None:
        values = self.pop_mark()  # type: ignore[attr-defined]
        for value in values:
            check_key(value)
        self.append(frozenset(values))

    def load_long4(self) -> None:
        length = int.from_bytes(self.read(4), "little")
        if length > 1024:
            raise ValueError("a number is too long")
        self.append(pickle.decode_long(self.read(length)))

    def load_frame(self) -> None:
        self.read(8)  # only how far the file is read at once

    def load_dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append({})
        self._set_items("DICT", items)

    def _target(self, done: str, *kinds: type) -> Any:
        """The container on the stack, which may not be anything with methods of a list or a dict: those are calls."""
        if type(self.stack[-1]) not in kinds:
            raise Refused(f"Can only {done}, but got {type(self.stack[-1])}")
        return self.stack[-1]


# Opcodes that allocate, call or import in ways of their own, and that torch.save does not write, are left out.
_DISPATCH: dict[bytes, Callable[[SafeUnpickler], None]] = {
    getattr(pickle, opcode): getattr(SafeUnpickler, f"load_{method}")
    for opcode, method in {
        "PROTO": "proto", "FRAME": "frame", "MARK": "mark", "POP": "pop", "POP_MARK": "pop_mark",
        "NONE": "none", "NEWTRUE": "true", "NEWFALSE": "false", "INT": "int", "BININT": "binint", "BININT1": "binint1",
        "BININT2": "binint2", "LONG": "long", "LONG1": "long1", "LONG4": "long4", "FLOAT": "float",
        "BINFLOAT": "binfloat", "STRING": "string", "SHORT_BINSTRING": "short_binstring", "BINSTRING": "binstring",
        "UNICODE": "unicode", "BINUNICODE": "binunicode", "SHORT_BINUNICODE": "short_binunicode",
        "BINUNICODE8": "binunicode8", "SHORT_BINBYTES": "short_binbytes", "BINBYTES": "binbytes",
        "BINBYTES8": "binbytes8", "EMPTY_TUPLE": "empty_tuple", "TUPLE": "tuple", "TUPLE1": "tuple1",
        "TUPLE2": "tuple2", "TUPLE3": "tuple3", "EMPTY_LIST": "empty_list", "LIST": "list", "APPEND": "append",
        "APPENDS": "appends", "EMPTY_DICT": "empty_dictionary", "DICT": "dict", "SETITEM": "setitem",
        "SETITEMS": "setitems", "EMPTY_SET": "empty_set", "ADDITEMS": "additems", "FROZENSET": "frozenset",
        "PUT": "put", "BINPUT": "binput", "LONG_BINPUT": "long_binput", "MEMOIZE": "memoize", "GET": "get",
        "BINGET": "binget", "LONG_BINGET": "long_binget", "GLOBAL": "global", "STACK_GLOBAL": "stack_global",
        "REDUCE": "reduce", "NEWOBJ": "newobj", "BUILD": "build", "BINPERSID": "binpersid",
    }.items()
}  # fmt: skip
