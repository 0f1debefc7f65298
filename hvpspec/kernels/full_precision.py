"""Arithmetic with long vectors in full precision, whatever the caller has set for their own work.

TF32 on a GPU and bfloat16 on a CPU, which `torch.set_float32_matmul_precision` turns on, and autocast give a product
of float32 matrices a relative error of 1e-3. A basis would not be orthonormal then, and error bars would be wrong.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import torch

from hvpspec.kernels.torch_kernels import exact_arithmetic

_P = ParamSpec("_P")
_R = TypeVar("_R")

_CPU = torch.device("cpu")
_INSIDE: ContextVar[bool] = ContextVar("inside", default=False)  # exact arithmetic on a GPU, in this thread


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, TF32 or bfloat16 meanwhile. Where that is so already, this takes a few microseconds."""
    with contextlib.ExitStack() as stack:
        if device.type != "cpu" and not (_INSIDE.get() and not torch.is_autocast_enabled(device.type)):
            stack.enter_context(_exactly(device))
            token = _INSIDE.set(True)
            stack.callback(_INSIDE.reset, token)
        if torch.is_autocast_enabled("cpu"):  # whatever the device: the basis may be in CPU memory
            stack.enter_context(_exactly(_CPU))
        stack.enter_context(_EXACT_ON_CPU)
        yield


@contextlib.contextmanager
def _exactly(device: torch.device) -> Iterator[None]:
    """Exact arithmetic. In inference mode as before: its tensors cannot be written to outside of it."""
    inference = torch.is_inference_mode_enabled()
    with exact_arithmetic(device), torch.inference_mode(inference):
        yield


def in_full_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, run in full precision on the device of its first argument: a tensor, or what has a `device`."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        first: Any = args[0]
        with full_precision(first.device):
            return function(*args, **kwargs)

    return run


class _ExactOnCPU:
    """float32 stays float32 in products of matrices on the CPU while any thread is inside.

    Threads are counted, and do not wait for one another: the last one to leave restores the switch.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, "none"

    def __enter__(self) -> None:
        switch: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        with self._lock:
            if self._inside == 0:
                self._before = switch.fp32_precision
                if self._before not in ("none", "ieee"):
                    switch.fp32_precision = "ieee"
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        switch: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._before not in ("none", "ieee"):
                switch.fp32_precision = self._before


_EXACT_ON_CPU = _ExactOnCPU()
