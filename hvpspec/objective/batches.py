"""Batches as users give them, however nested: checked, counted, and moved to a device and dtype."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.objective.containers import mapped


def check_data(data: Iterable[Any]) -> Iterable[Any]:
    """The data, if it can be iterated over repeatedly; else InputError, which says what to give instead."""
    if isinstance(data, (str, bytes, Tensor, np.ndarray, Mapping)) or not hasattr(data, "__iter__"):
        if isinstance(data, torch.utils.data.Dataset):
            raise InputError("data is a Dataset of single samples; wrap it in a DataLoader to get batches.")
        raise InputError(
            f"data must be a re-iterable of batches, such as a list or a DataLoader; got {type(data).__name__}."
        )
    if isinstance(data, Iterator):
        raise InputError(
            f"data is a one-shot {type(data).__name__}, but every HVP passes over the data again; "
            "give a list of batches (list(data)) or a DataLoader."
        )
    return data


def frozen(data: Iterable[Any]) -> list[Any]:
    """Copies of the batches of one pass over the data, for later passes to repeat."""
    return [copy.deepcopy(batch) for batch in check_data(data)]


def sample_count(index: int, batch: Any) -> float:
    """The length that all tensors in the batch share. Raises InputError, naming the batch, when lengths differ."""
    if isinstance(batch, (tuple, list)) and batch and not any(isinstance(part, Tensor | np.ndarray) for part in batch):
        raise InputError(
            f"batch {index}: cannot tell what its loss is a mean over (it is a {type(batch).__name__} of "
            f"{type(batch[0]).__name__}s, perhaps one for each sample); let the loss return (mean loss, weight)."
        )
    lengths = {tensor.shape[0] for tensor in tensors(batch) if tensor.ndim > 0}
    if len(lengths) != 1:
        found = f"its tensors have lengths {sorted(lengths)}" if lengths else "it holds no tensor"
        raise InputError(
            f"batch {index}: the number of samples is not clear ({found}); let the loss return (mean loss, weight)."
        )
    return float(lengths.pop())


def samples_or_nan(index: int, batch: Any) -> float:
    """The same; NaN where lengths differ."""
    try:
        return sample_count(index, batch)
    except InputError:
        return math.nan


def tensors(batch: Any) -> Iterator[Tensor]:
    """All tensors in a batch, or in the inputs or outputs of a module, however nested."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from tensors(value)
    elif dataclasses.is_dataclass(batch):
        for field in dataclasses.fields(batch):
            yield from tensors(getattr(batch, field.name))


def move(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A copy of the batch with every tensor in it on `device` and its floating-point ones in `dtype`, however nested.

    Arrays become tensors, except in the attributes of objects that are no dataclasses. Complex tensors get the same
    precision. Objects that hold no tensor are asked to move by their method `to`.
    """

    def moved(value: Any) -> Any:
        if isinstance(value, torch.device):  # what an object knows of where it is
            return device
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiubc":
            value = _tensor(value)
        if not isinstance(value, Tensor):
            can_move = callable(getattr(value, "to", None)) and not isinstance(value, (type, torch.nn.Module))
            return value.to(device) if can_move else value
        precision = dtype if value.is_floating_point() else dtype.to_complex() if value.is_complex() else None
        return value.to(device, precision)

    return mapped(batch, moved)


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    kind = array.dtype.kind
    if kind in "fc" and array.dtype.itemsize > np.dtype(f"{kind}{8 if kind == 'f' else 16}").itemsize:  # extended
        array = array.astype(np.float64 if kind == "f" else np.complex128)
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
