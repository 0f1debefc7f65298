"""Arithmetic with long vectors in full precision, whatever the caller has set for their own work.

TF32 on a GPU and bfloat16 on a CPU, which `torch.set_float32_matmul_precision` turns on, and autocast give a product
of float32 matrices a relative error of 1e-3. A basis would not be orthonormal then, and error bars would be wrong.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import torch

from hvpspec.kernels.float32_precision import is_exact_on_cpu
from hvpspec.kernels.torch_kernels import exact_arithmetic
from hvpspec.system.undoing import scoped

_P = ParamSpec("_P")
_R = TypeVar("_R")

_CPU = torch.device("cpu")
_INSIDE: ContextVar[str] = ContextVar("inside", default="")  # for which kind of device, in this thread


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """No autocast, TF32 or bfloat16 meanwhile: on the device, and on the CPU, where the basis may be."""
    return contextlib.nullcontext() if _is_inside(device) else _entered(device)


def in_full_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, run in full precision on the device of its first argument: a tensor, or what has a `device`."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        first: Any = args[0]
        if _is_inside(first.device):
            return function(*args, **kwargs)
        with _entered(first.device):
            return function(*args, **kwargs)

    return run


def _is_inside(device: torch.device) -> bool:
    """Whether it is so already. An operator may have turned autocast on again for what it calls."""
    inside = _INSIDE.get()
    return bool(inside) and device.type in (inside, "cpu") and not torch.is_autocast_enabled(device.type)


@contextlib.contextmanager
def _entered(device: torch.device) -> Iterator[None]:
    nothing = contextlib.nullcontext()
    with _exactly(device) if device.type != "cpu" else nothing:
        on_cpu = torch.is_autocast_enabled("cpu") or not is_exact_on_cpu()
        with _exactly(_CPU) if on_cpu else nothing, scoped(_INSIDE, device.type):
            yield


@contextlib.contextmanager
def _exactly(device: torch.device) -> Iterator[None]:
    """Exact arithmetic. In inference mode as before: its tensors cannot be written to outside of it."""
    inference = torch.is_inference_mode_enabled()
    with exact_arithmetic(device), torch.inference_mode(inference):
        yield
