"""The dtypes of a file and of a model: no value is rounded without a warning, and none is misinterpreted."""

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
    """`entries` with the quantised ones converted to float32, and a CheckpointWarning about that."""
    quantised = {tensor.dtype for tensor in entries.values() if tensor.is_quantized}
    if quantised:
        found = f"{path} holds quantised parameters ({_names(quantised)})"
        done = "they are converted to float32: the model with the rounded values is measured"
        warnings.warn(CheckpointWarning("dequantised", found, done), stacklevel=3)
    return {name: tensor.dequantize() if tensor.is_quantized else tensor for name, tensor in entries.items()}


def dense(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`entries` with sparse ones made dense. Only for shapes that the model has: others could fill any memory."""
    return {
        name: tensor if tensor.is_meta or tensor.layout == torch.strided else tensor.to_dense()
        for name, tensor in entries.items()
    }


def of_another_type(entries: Mapping[str, Tensor], model: nn.Module, expected: Mapping[str, Tensor]) -> list[str]:
    """Entries whose type does not fit: integers (quantised, with their scale elsewhere) or complex numbers for a real
    parameter, values that a buffer cannot hold, and tensors without values."""
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return [
        f"{name} (file {'no values' if tensor.is_meta else dtype_name(tensor.dtype)}, "
        f"model {dtype_name(expected[name].dtype)})"
        for name, tensor in entries.items()
        if tensor.is_meta or not _fits(tensor, expected[name].dtype, exactly=name in buffers)
    ]


def _fits(tensor: Tensor, dtype: torch.dtype, *, exactly: bool) -> bool:
    if tensor.dtype == dtype or dtype.is_complex or (tensor.is_floating_point() and dtype.is_floating_point):
        return True
    if tensor.is_complex() or (dtype.is_floating_point and not exactly):
        return False
    return _holds(dtype, tensor)  # counters and masks, which other versions of a model store in other dtypes


def _holds(dtype: torch.dtype, tensor: Tensor) -> bool:
    """Whether `dtype` holds every value of a tensor exactly."""
    same = tensor.to(dtype).to(tensor.dtype) == tensor
    return bool((same | (tensor != tensor) if dtype.is_floating_point else same).all())


def precision(
    path: Path, entries: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[torch.dtype | None, list[CheckpointWarning]]:
    """A dtype that holds those `entries` which the model would round, and a warning about that, or about entries that
    have less precision than the model. None: the model's own dtypes hold them all."""
    pairs = [
        (tensor, expected[name].dtype)
        for name, tensor in entries.items()
        if (tensor.is_floating_point() and expected[name].is_floating_point())
        or (tensor.is_complex() and expected[name].is_complex())
    ]
    rounded = [
        (tensor.dtype, own) for tensor, own in pairs if _common(tensor.dtype, own) != own and not _holds(own, tensor)
    ]
    if rounded:
        finest = functools.reduce(_common, map(_of_real, itertools.chain(*rounded)))
        found = (
            f"{path} holds {_names(dtype for dtype, _ in rounded)} parameters and the model is built in "
            f"{_names(own for _, own in rounded)}"
        )
        done = f"the model is converted to {dtype_name(finest)}, so that no value is rounded"
        return finest, [CheckpointWarning("precision", found, done)]
    casts = {
        f"{dtype_name(t.dtype)} → {dtype_name(own)}"
        for t, own in pairs
        if _of_real(t.dtype).itemsize < min(4, _of_real(own).itemsize)
    }
    if not casts:
        return None, []
    found = f"{path} holds parameters in lower precision than the model ({', '.join(sorted(casts))})"
    done = "they are cast: the model with the rounded values is measured"
    return None, [CheckpointWarning("precision", found, done)]


def convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Converts the floating-point and complex tensors of `model` that are less precise than `dtype`."""

    def converted(tensor: Tensor) -> Tensor:
        return tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)

    model._apply(lambda tensor: converted(tensor) if _is_coarser(tensor, dtype) else tensor)  # type: ignore[no-untyped-call]


def _common(dtype: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The least precise dtype that holds the values of both."""
    if dtype == other:
        return dtype
    if dtype.itemsize == 1 or other.itemsize == 1:  # torch cannot promote 8-bit floats
        return max(dtype, other, torch.float32, key=lambda one: one.itemsize)
    return torch.promote_types(dtype, other)


def _is_coarser(tensor: Tensor, dtype: torch.dtype) -> bool:
    has_precision = not is_lazy(tensor) and (tensor.is_floating_point() or tensor.is_complex())
    return has_precision and _of_real(tensor.dtype).itemsize < dtype.itemsize


def _of_real(dtype: torch.dtype) -> torch.dtype:
    """The dtype of real and imaginary parts."""
    return dtype.to_real() if dtype.is_complex else dtype


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return " and ".join(sorted({dtype_name(dtype) for dtype in dtypes}))
