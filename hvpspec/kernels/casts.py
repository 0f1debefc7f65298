"""Casts to a lower precision inside a model or a loss, left out: what they round hides what differences are to show.

A model may compute a norm in float32 whatever its parameters are. In float64 without these casts it is the same
function with all of its digits, whose derivatives can be compared with differences of its gradient by small steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LOWER = frozenset({torch.float32, torch.float16, torch.bfloat16})
_CASTS = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})


class WithoutCasts(TorchFunctionMode):
    """float64 wherever a function of torch is asked for a floating-point number of fewer digits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CASTS:
            return args[0].double(**(kwargs or {}))
        args = tuple(map(_finest, args))
        return func(*args, **{name: _finest(value) for name, value in (kwargs or {}).items()})


def _finest(argument: Any) -> Any:
    return torch.float64 if isinstance(argument, torch.dtype) and argument in _LOWER else argument
