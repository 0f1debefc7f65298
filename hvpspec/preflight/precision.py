"""Parts that a model computes in float32 within a run in float64, where derivatives pass: which, and what they cost.

Rotary embeddings, norms and softmax are often written so: `x.float()`, `softmax(x, dtype=torch.float32)`. The loss and
its derivatives are then those of the user's program, but have the precision of float32.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from hvpspec.errors import InputError
from hvpspec.objective.conventions import MODULE_CALLS
from hvpspec.objective.objective import Objective
from hvpspec.oracle import autograd
from hvpspec.results.preflight import Finding
from hvpspec.wording import listed

_MAX_LISTED_NAMES = 3
_SINGLE = 1e-7  # relative: the rounding of float32
_WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def computed_in_float32(objective: Objective) -> list[Finding]:
    """A finding on float32 inside a float64 run. Costs a forward pass of the first batch, and two products where
    something is found. `objective` is on that batch."""
    if objective.dtype != torch.float64:
        return []
    try:
        names = _names(objective)
        if not names:
            return []
        error = _error(objective)
    except (InputError, torch.OutOfMemoryError, StopIteration):  # the product itself says what is wrong
        return []
    shown = listed((f"'{name}'" if name else "the loss or the whole model" for name in names), _MAX_LISTED_NAMES)
    accuracy = f"about {_SINGLE:.0e}" if error is None else f"{error:.0e}, as measured"
    found = f"computed in float32 inside a float64 run: {shown}"
    return [Finding("float32_inside", found, f"as the model says: products are accurate to {accuracy}", "note")]


def _names(objective: Objective) -> list[str]:
    with objective.evaluating(), _Casts(objective.model) as casts:
        next(objective.losses())
    return list(casts.names)


def _error(objective: Objective) -> float | None:
    """The relative difference between a product and one with these parts in float64; None where that fails."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(objective.space.n, 1, generator=generator, dtype=torch.float64).to(objective.device)
    found = autograd.hvp(objective, v)
    try:
        with _InFloat64():
            exact = autograd.hvp(objective, v)
    except (InputError, RuntimeError):  # a part may insist on float32
        return None
    scale = float(exact.norm())
    return float((found - exact).norm()) / scale if scale else None


class _Casts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes in which modules a single-precision tensor is made from a double one that requires a gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: dict[str, None] = {}
        self._modules = {id(module): name for name, module in model.named_modules()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(t, Tensor) and t.dtype in _WIDER for t in tree_leaves(result)):
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            if any(t.dtype in _WIDER.values() and t.requires_grad for t in given):
                self.names[next(self._running(), "")] = None
        return result

    def _running(self) -> Iterator[str]:
        """Names of the modules whose forward is running, the innermost first."""
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_name in MODULE_CALLS and (key := id(frame.f_locals.get("self"))) in self._modules:
                yield self._modules[key]
            frame = frame.f_back  # type: ignore[assignment]


class _InFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What asks for float32 gets float64."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(torch.dtype, lambda dtype: _WIDER.get(dtype, dtype), (args, kwargs or {}))
        return func(*args, **kwargs)
