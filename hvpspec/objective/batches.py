"""Batches as users give them, however nested: checked, counted, and moved to a device and dtype."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.errors import InputError


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
    """The batch with every tensor in it on `device` and its floating-point ones in `dtype`, however nested."""
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "fiub":
        batch = torch.from_numpy(batch)
    if isinstance(batch, Tensor):
        return batch.to(device, dtype if batch.is_floating_point() else None)
    if isinstance(batch, Mapping):
        return {key: move(value, device, dtype) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(value, device, dtype) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(move(value, device, dtype) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {f.name: move(getattr(batch, f.name), device, dtype) for f in dataclasses.fields(batch) if f.init}
        return dataclasses.replace(batch, **fields)
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    return batch
