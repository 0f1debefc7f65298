"""All that the measurements use of hvpspec besides its public calls, so that a change of these has one place here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hvpspec
from gpu_sections.counting import Marked
from gpu_sections.timing import wait
from hvpspec.kernels.random_vectors import probes
from hvpspec.krylov.vectors import column_inner, inner
from hvpspec.memory import free_memory
from hvpspec.preflight import examine, inspect_operator
from hvpspec.system.out_of_memory import is_out_of_memory, release_memory

__all__ = [
    "Watched", "column_inner", "examine", "failing_capture", "free_memory", "inner", "inspect_operator",
    "is_out_of_memory", "out_of_memory_at", "probes", "release_memory", "watched", "without_comparison",
]  # fmt: skip


@contextlib.contextmanager
def without_comparison() -> Iterator[None]:
    """Products that trust the model to have the values that it had, instead of comparing them."""
    from hvpspec.objective.objective import Objective

    compared = Objective.unchanged
    Objective.unchanged = lambda self, *given: True  # type: ignore[method-assign]
    try:
        yield
    finally:
        Objective.unchanged = compared  # type: ignore[method-assign]


class Watched:
    """Stands for the object that computes an operator's products: adds up their seconds, and marks them."""

    def __init__(self, product: Any, device: torch.device) -> None:
        self._product, self._device = product, device
        self.seconds = 0.0
        self.timed = False  # whether the device is waited for

    def __call__(self, *given: Any, **options: Any) -> Any:
        return self._watched(self._product, *given, **options)

    def recomputed(self, *given: Any) -> Any:
        return self._watched(self._product.recomputed, *given)

    def _watched(self, product: Callable[..., Any], *given: Any, **options: Any) -> Any:
        if self.timed:
            wait(self._device)
        start = time.perf_counter()
        with Marked():
            found = product(*given, **options)
        if self.timed:
            wait(self._device)
        self.seconds += time.perf_counter() - start
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._product, name)


def watched(H: hvpspec.HessianOperator) -> Watched:
    """The operator's product, watched from now on."""
    H._product = product = Watched(H._product, H.device)  # type: ignore[assignment]
    return product


@contextlib.contextmanager
def failing_capture() -> Iterator[None]:
    """Every capture of a CUDA graph fails in its middle, after operations, by waiting for the device."""
    from hvpspec.oracle.recorded import cuda_graph

    capture = cuda_graph.capture

    def fails(apply: Callable[..., Any], *given: Any, **options: Any) -> Any:
        def waiting(*arguments: Any) -> Any:
            found = apply(*arguments)
            if torch.cuda.is_current_stream_capturing():
                torch.cuda.synchronize()
            return found

        return capture(waiting, *given, **options)

    cuda_graph.capture = fails
    try:
        yield
    finally:
        cuda_graph.capture = capture


class out_of_memory_at(TorchDispatchMode):
    """An operation that finds no memory, `times` times: the one of this number, counted again after each failure."""

    def __init__(self, number: int, times: int) -> None:
        super().__init__()
        self.number, self.left, self._count = number, times, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._count += 1
        if self.left and self._count >= self.number:
            self._count, self.left = 0, self.left - 1
            raise torch.OutOfMemoryError("CUDA out of memory (forced)")
        return func(*args, **(kwargs or {}))
