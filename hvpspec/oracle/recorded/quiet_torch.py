"""Where torch refuses what changes nothing, or warns of what the user has not written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def idle_conversions() -> Iterator[None]:
    """Lets modules be moved to where they are (`self.router.to(torch.float32)`) while they hold fake tensors.

    torch exchanges a module's tensors for converted ones, even if these are the same, and that fails for fake tensors
    which are in use elsewhere.
    """
    original: Any = nn.Module._apply

    def apply(self: nn.Module, fn: Callable[[Tensor], Any], recurse: bool = True) -> Any:
        for module in self.modules() if recurse else (self,):
            tensors = [*module._parameters.values(), *module._buffers.values()]
            with torch.no_grad():
                if any(fn(tensor) is not tensor for tensor in tensors if tensor is not None):
                    return original(self, fn, recurse)
        return self

    nn.Module._apply = apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = original  # type: ignore[method-assign]


def vmapped(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`torch.func.vmap` without its warnings of operations that it repeats for each row: whether several together are
    faster is measured."""
    warn: Any = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]
    warn(False)
    try:
        found: Tensor = torch.func.vmap(function)(rows)
    finally:
        warn(True)  # torch's default; it does not say what is set
    return found
