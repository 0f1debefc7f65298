"""How pickles of torch.save describe tensors, and what is made of it. Nothing here allocates more than a file holds.

Each function stands for the one of torch with its name. torch's own trust what a file says of shapes and indices: they
return memory of unknown content, or memory of something else, where it is wrong.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.checkpoint.formats.limits import Budget
from hvpspec.checkpoint.formats.pickles.storages import Storage, shape, strided

_BYTES_OF_AN_ENTRY = 64  # in a Python container

_MAX_KEY_PARTS = 64  # of a tuple that is a key, with all that is inside it


class Rebuilding:
    """The functions that a pickle may call, within a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.functions: dict[str, Callable[..., Any]] = {
            **{f"torch._utils._rebuild_{name}": getattr(self, f"_{name}") for name in _TENSORS},
            "torch._tensor._rebuild_from_type_v2": self._from_type_v2,
            "torch.nn.parameter.Parameter": self._parameter,
            "torch.Size": self._size,
            "torch.device": _device,
            "torch.serialization._get_layout": _layout,
            "collections.OrderedDict": self._ordered_dict,
            "collections.Counter": self._counter,
            "_codecs.encode": self._encode,
            "builtins.bytearray": self._bytearray,
            "builtins.set": self._set,
            "builtins.frozenset": self._frozenset,
            "builtins.complex": _complex,
        }
        self._makers = frozenset(getattr(self, f"_{name}") for name in _TENSORS)

    # --- tensors ------------------------------------------------------------------------------------------------------

    def _tensor(self, storage: Storage, offset: Any, size: Any, stride: Any) -> Tensor:
        return strided(_is_a(storage, Storage), offset, size, stride, self._budget)

    def _tensor_v2(
        self, storage: Storage, offset: Any, size: Any, stride: Any, requires_grad: Any = False, _hooks: Any = None,
        metadata: Any = None,
    ) -> Tensor:  # fmt: skip
        tensor = self._tensor(storage, offset, size, stride).requires_grad_(requires_grad is True)
        if metadata:  # whether it is conjugated or negated, which torch does when it is read
            marks = {name: metadata[name] for name in ("conj", "neg") if metadata.get(name) is True}
            torch._utils.set_tensor_metadata(tensor, marks)  # type: ignore[no-untyped-call]
        return tensor

    def _tensor_v3(
        self, storage: Storage, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any,
        metadata: Any = None,
    ) -> Tensor:  # fmt: skip
        typed = Storage(_is_a(storage, Storage).content, _is_a(dtype, torch.dtype))
        return self._tensor_v2(typed, offset, size, stride, requires_grad, hooks, metadata)

    def _parameter(self, data: Any = None, requires_grad: Any = True, _hooks: Any = None) -> nn.Parameter:
        return nn.Parameter(_is_a(data, Tensor), requires_grad is True)

    def _parameter_with_state(self, data: Any, requires_grad: Any, hooks: Any, state: Any) -> nn.Parameter:
        return _with_state(self._parameter(data, requires_grad, hooks), state)  # type: ignore[no-any-return]

    def _from_type_v2(self, function: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
        """A tensor with attributes of Python, or of a class that the user allows."""
        if function not in self._makers or not (isinstance(kind, type) and issubclass(kind, Tensor)):
            raise ValueError("a tensor is made in an unknown way")
        tensor = function(*arguments)
        return _with_state(tensor if type(tensor) is kind else tensor.as_subclass(kind), state)  # type: ignore[no-any-return]

    def _sparse_tensor(self, layout: Any, data: Any) -> Tensor:
        *parts, size = data[:3] if layout == torch.sparse_coo else data
        if not all(isinstance(part, Tensor) for part in parts):
            raise ValueError("a sparse tensor has no indices or no values")
        if layout == torch.sparse_coo:
            indices, values = parts
            return torch.sparse_coo_tensor(indices, values, shape(size), check_invariants=True)
        rows, columns, values = parts
        return torch.sparse_compressed_tensor(rows, columns, values, shape(size), layout=layout, check_invariants=True)

    def _qtensor(
        self, storage: Storage, offset: Any, size: Any, stride: Any, quantizer: Any, _requires_grad: Any = False,
        _hooks: Any = None,
    ) -> Tensor:  # fmt: skip
        strided(_is_a(storage, Storage), offset, size, stride, self._budget)
        self._budget.take(math.prod(shape(size)) * storage.dtype.itemsize)  # torch makes one of its own first
        typed = torch.storage.TypedStorage(wrap_storage=storage.content, dtype=storage.dtype, _internal=True)  # type: ignore[no-untyped-call]
        return torch._utils._rebuild_qtensor(typed, offset, size, stride, quantizer, False, None)  # type: ignore[no-any-return, no-untyped-call]

    def _meta_tensor_no_storage(self, dtype: Any, size: Any, stride: Any, requires_grad: Any) -> Tensor:
        return torch.empty_strided(shape(size), stride, dtype=dtype, device="meta", requires_grad=requires_grad is True)

    def _device_tensor_from_cpu_tensor(self, data: Any, dtype: Any, _device: Any, _requires_grad: Any) -> Tensor:
        self._budget.take(_is_a(data, Tensor).numel() * 8)
        return _is_a(data, Tensor).to(_is_a(dtype, torch.dtype))  # type: ignore[no-any-return]

    # --- other values -------------------------------------------------------------------------------------------------

    def _size(self, lengths: Any = ()) -> torch.Size:
        return torch.Size(shape(lengths))

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """bytes, as protocol 2 writes them. (Other encodings can double in length each time.)"""
        if encoding not in ("latin1", "latin-1"):
            raise ValueError(f"bytes are written in the encoding {encoding!r:.40}")
        self._budget.take(len(_is_a(text, str)))
        return _is_a(text, str).encode("latin-1")  # type: ignore[no-any-return]

    def _bytearray(self, content: Any = b"", encoding: Any = None) -> bytearray:
        """bytearray(content), never bytearray(count)."""
        content = self._encode(content, encoding) if isinstance(content, str) else _is_a(content, bytes)
        self._budget.take(len(content))
        return bytearray(content)

    def _entries(self, entries: Any) -> Any:
        """What a container is made of: a list of its keys, all of them hashable in a short time."""
        self._budget.take(_BYTES_OF_AN_ENTRY * len(_is_a(entries, list | tuple | dict)))
        for entry in entries:
            check_key(entry)
        return entries

    def _set(self, entries: Any = ()) -> set[Any]:
        return set(self._entries(entries))

    def _frozenset(self, entries: Any = ()) -> frozenset[Any]:
        return frozenset(self._entries(entries))

    def _counter(self, entries: Any = None) -> Counter[Any]:
        return Counter(self._entries({} if entries is None else _is_a(entries, dict)))

    def _ordered_dict(self, entries: Any = ()) -> OrderedDict[Any, Any]:
        pairs = [_is_a(pair, list | tuple) for pair in _is_a(entries, list | tuple)]
        self._entries([key for key, _ in pairs])
        return OrderedDict(pairs)


_TENSORS = (
    "tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "sparse_tensor", "qtensor",
    "meta_tensor_no_storage", "device_tensor_from_cpu_tensor",
)  # fmt: skip


def check_key(key: Any) -> None:
    """Raises ValueError for a key that would take long to hash: a tuple of tuples of tuples, each several times."""
    left, parts = [key], 0
    while left:
        part = left.pop()
        parts += 1
        if isinstance(part, tuple | frozenset):
            if parts + len(left) + len(part) > _MAX_KEY_PARTS:
                raise ValueError("a key is a tuple of too many parts")
            left.extend(part)


def _with_state(tensor: Any, state: Any) -> Any:
    """With the attributes that its user gave it, where they are in a dict. Others belong to torch."""
    attributes = state[0] if isinstance(state, tuple) and len(state) == 2 else state
    if isinstance(attributes, dict) and all(isinstance(name, str) for name in attributes):
        tensor.__dict__.update(attributes)
    return tensor


def _is_a(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} is in the place of something else")
    return value


def _device(*arguments: Any) -> torch.device:
    return torch.device(*arguments)


def _layout(name: Any) -> torch.layout:
    layouts = (torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
    return {str(layout): layout for layout in layouts}[name]


def _complex(real: Any, imaginary: Any) -> complex:
    return complex(_is_a(real, float | int), _is_a(imaginary, float | int))
