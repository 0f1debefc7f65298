"""Where torch refuses what changes nothing, or warns of what the user has not written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_LOGS = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")


@contextmanager
def without_logs() -> Iterator[None]:
    """Without what torch logs of operations that it cannot run on fake tensors, a traceback for each: recording goes on
    in another way, and the plan says why where it does not."""
    loggers = [logger for name in _LOGS if not (logger := logging.getLogger(name)).disabled]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in loggers:
            logger.disabled = False


@contextmanager
def functional_conversions() -> Iterator[None]:
    """Conversions of modules (`self.router.to(torch.float32)`) as operations on the tensors that they hold, while it
    lasts: what is converted to what it is stays, and all else is as before when it ends.

    torch exchanges a module's tensors for converted ones, even if these are the same, and that fails for fake tensors
    which are in use elsewhere.
    """
    original: Any = nn.Module._apply
    replaced: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []

    def apply(self: nn.Module, fn: Callable[[Tensor], Any], recurse: bool = True) -> Any:
        for module in self.modules() if recurse else (self,):
            for slots in (vars(module)["_parameters"], vars(module)["_buffers"]):
                for name, tensor in slots.items():
                    if tensor is not None and (converted := fn(tensor)) is not tensor:
                        replaced.append((slots, name, tensor, converted))
                        slots[name] = converted
        return self

    try:
        nn.Module._apply = apply  # type: ignore[method-assign]
        yield
    finally:
        nn.Module._apply = original  # type: ignore[method-assign]
        for slots, name, tensor, converted in reversed(replaced):
            if slots[name] is converted:  # not what was put there since
                slots[name] = tensor


def vmapped(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`torch.func.vmap` without its warnings of operations that it repeats for each row: whether several together are
    faster is measured."""
    warn: Any = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]
    try:
        warn(False)
        found: Tensor = torch.func.vmap(function)(rows)
    finally:
        warn(True)  # torch's default; it does not say what is set
    return found
