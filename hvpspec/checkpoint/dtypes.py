"""The numbers in a file as the model's: none is rounded without a word, and none is taken for what it is not."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hvpspec.errors import CheckpointWarning
from hvpspec.wording import dtype_name


def dequantised(path: Path, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`entries` with the values that their scale gives to quantised ones, which a CheckpointWarning tells."""
    quantised = {tensor.dtype for tensor in entries.values() if tensor.is_quantized}
    if quantised:
        found = f"{path} holds quantised parameters ({_said(quantised)})"
        _warn("dequantised", found, "they are taken as float32: what is measured is the model with the rounded values")
    return {name: tensor.dequantize() if tensor.is_quantized else tensor for name, tensor in entries.items()}


def dense(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`entries`, of which the model has the shapes, without sparse ones: their declared shape could fill any memory."""
    return {
        name: tensor if tensor.is_meta or tensor.layout == torch.strided else tensor.to_dense()
        for name, tensor in entries.items()
    }


def of_another_kind(entries: Mapping[str, Tensor], model: nn.Module, expected: Mapping[str, Tensor]) -> list[str]:
    """Entries that are no numbers for their place: whole ones (quantised, their scale elsewhere) or complex ones for a
    parameter that is real, what a buffer cannot hold, and tensors without values."""
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return [
        f"{name} (file {'no values' if tensor.is_meta else dtype_name(tensor.dtype)}, "
        f"model {dtype_name(expected[name].dtype)})"
        for name, tensor in entries.items()
        if tensor.is_meta or not _is_a_kind_of(tensor, expected[name].dtype, exactly=name in buffers)
    ]


def _is_a_kind_of(tensor: Tensor, dtype: torch.dtype, *, exactly: bool) -> bool:
    if tensor.dtype == dtype or dtype.is_complex or (tensor.is_floating_point() and dtype.is_floating_point):
        return True
    if tensor.is_complex() or (dtype.is_floating_point and not exactly):
        return False
    return _holds(dtype, tensor)  # counters and masks, which other versions keep in other dtypes


def _holds(dtype: torch.dtype, tensor: Tensor) -> bool:
    """Whether every value of a tensor has its like in `dtype`."""
    same = tensor.to(dtype).to(tensor.dtype) == tensor
    return bool((same | (tensor != tensor) if dtype.is_floating_point else same).all())


def without_rounding(
    path: Path, entries: Mapping[str, Tensor], model: nn.Module, expected: Mapping[str, Tensor]
) -> None:
    """Raises the floating-point tensors of `model` to a dtype that holds those `entries` which it would round, and says
    so; and says where the file is the coarser one."""
    pairs = [
        (tensor, expected[name].dtype)
        for name, tensor in entries.items()
        if tensor.is_floating_point() and expected[name].is_floating_point()
    ]
    rounded = [
        (tensor.dtype, own) for tensor, own in pairs if _common(tensor.dtype, own) != own and not _holds(own, tensor)
    ]
    if rounded:
        finest = functools.reduce(_common, itertools.chain(*rounded))
        _warn(
            "precision",
            f"{path} holds {_said(dtype for dtype, _ in rounded)} parameters and the model is built in "
            f"{_said(own for _, own in rounded)}",
            f"the model is raised to {dtype_name(finest)}, so that none is rounded",
        )
        model._apply(lambda tensor: tensor.to(finest) if _is_coarser(tensor, finest) else tensor)
        return
    casts = {
        f"{dtype_name(t.dtype)} → {dtype_name(own)}" for t, own in pairs if t.dtype.itemsize < min(4, own.itemsize)
    }
    if casts:
        _warn(
            "precision",
            f"{path} holds parameters in less precision than the model has ({', '.join(sorted(casts))})",
            "they are cast: what is measured is the model with the rounded values",
        )


def _common(dtype: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The coarsest dtype that holds the values of both."""
    if dtype == other:
        return dtype
    if dtype.itemsize == 1 or other.itemsize == 1:  # torch has no rule for 8 bits beside others
        return max(dtype, other, torch.float32, key=lambda one: one.itemsize)
    return torch.promote_types(dtype, other)


def _is_coarser(tensor: Tensor, dtype: torch.dtype) -> bool:
    return not is_lazy(tensor) and tensor.is_floating_point() and tensor.dtype.itemsize < dtype.itemsize


def _warn(kind: str, found: str, done: str) -> None:
    warnings.warn(CheckpointWarning(kind, found, done), stacklevel=4)


def _said(dtypes: Iterable[torch.dtype]) -> str:
    return " and ".join(sorted({dtype_name(dtype) for dtype in dtypes}))
