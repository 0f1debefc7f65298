"""Copies of tensors on another device, which are kept as long as the tensors have the values that were copied.

A model on the CPU whose products are computed on a GPU would otherwise be copied there for each of them, and so would
each batch; and the GPU would wait, as memory that any program may use cannot be copied while it works. Whether values
have changed is seen where they are, while the GPU works: next to each copy there is another one with the tensor.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hvpspec.kernels.comparison import same
from hvpspec.memory import free_memory

_SHARE = 0.1  # of the free memory, on either device, for copies of batches


@dataclass(frozen=True)
class _Copy:
    """`placed`: on the device. `values`: with the tensor, which `tensor` is, if it is known; `origin`: its memory."""

    values: Tensor
    placed: Tensor
    version: int  # of `placed`
    tensor: Tensor | None = None
    origin: Tensor | None = None
    version_of_tensor: int = -1

    def is_untouched(self, tensor: Tensor) -> bool:
        """Whether it is of this tensor, which torch has not noticed to have been written to."""
        return (
            tensor is self.tensor
            and self.origin is not None
            and tensor.data_ptr() == self.origin.data_ptr()
            and _version(tensor) == self.version_of_tensor
        )

    def is_of(self, dtype: torch.dtype) -> bool:
        """Whether it is in that dtype, and has not been written to."""
        return self.placed.dtype == dtype and _version(self.placed) == self.version


class Placed:
    """What tensors hold, on a device. limited: to a share of the free memory, there and with the tensors."""

    def __init__(self, device: torch.device, *, limited: bool = False) -> None:
        self.device, self._limited = device, limited
        self._copies: dict[Hashable, _Copy] = {}
        self._limit: int | None = None
        self.size = 0  # bytes on the device

    def __reduce__(self) -> tuple[object, ...]:
        """Without the copies, which belong to this process and to the tensors that they are of."""
        return partial(Placed, limited=self._limited), (self.device,)

    def trusted(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """What a tensor held when `unchanged` last looked, unless torch has noticed that it was written to since."""
        tensor_dtype = in_precision_of(tensor, dtype)
        if not is_elsewhere(tensor, self.device):
            return tensor.detach().to(self.device, tensor_dtype)
        known = self._copies.get(id(tensor))
        if known is not None and known.is_of(tensor_dtype) and known.is_untouched(tensor):
            return known.placed
        return self._new(id(tensor), tensor, tensor_dtype, is_known=True)

    def copy(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The same in memory that nobody else has."""
        if not is_elsewhere(tensor, self.device):
            tensor_dtype = in_precision_of(tensor, dtype)
            return tensor.detach().to(self.device, tensor_dtype, copy=True)
        return self.trusted(tensor, dtype).clone()

    def compared(self, key: Hashable, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """What a tensor holds: the copy of that key where it has the same values, and a new one otherwise."""
        if not is_elsewhere(tensor, self.device):
            return tensor.to(self.device, dtype)
        known = self._copies.get(key)
        if known is not None and known.is_of(dtype) and same([tensor.detach()], [known.values]):
            return known.placed
        return self._new(key, tensor, dtype, is_known=False)

    def unchanged(self) -> bool:
        """Whether all tensors that are known hold what they did when they were copied. Copies of others are dropped."""
        changed = [
            key for key, one in self._copies.items() if one.origin is not None and not same([one.origin], [one.values])
        ]
        for key in changed:
            self._drop(key)
        return not changed

    def _new(self, key: Hashable, tensor: Tensor, dtype: torch.dtype, *, is_known: bool) -> Tensor:
        self._drop(key)
        placed = copied(tensor.detach(), self.device, dtype)
        if self._limited and self._limit is None:
            self._limit = int(_SHARE * min(map(free_memory, (self.device, tensor.device))))
        if self._limit is None or self.size + max(placed.nbytes, tensor.nbytes) <= self._limit:
            values, version = tensor.detach().clone(), _version(placed)
            if is_known:
                known = _Copy(values, placed, version, tensor, tensor.data, _version(tensor))
            else:
                known = _Copy(values, placed, version)
            self._copies[key] = known
            self.size += placed.nbytes
        return placed

    def _drop(self, key: Hashable) -> None:
        copy = self._copies.pop(key, None)
        self.size -= 0 if copy is None else copy.placed.nbytes


def in_precision_of(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a model's tensor where the model is evaluated in `dtype`."""
    if tensor.is_complex():
        return dtype.to_complex()
    return dtype if tensor.is_floating_point() else tensor.dtype


def is_elsewhere(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor is on another device, and of a kind that can be compared."""
    return tensor.device != device and tensor.layout == torch.strided


def copied(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy on the device."""
    return tensor.to(device, dtype, copy=True)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
