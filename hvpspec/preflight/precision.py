"""Parts that a model computes with fewer digits than the run, where derivatives pass: which, and what they cost.

Rotary embeddings, norms and softmax are often written in float32 (`x.float()`, `softmax(x, dtype=torch.float32)`), and
fast parts of models in bfloat16. The loss and its derivatives are then those of the user's program, but have the
precision of these parts.
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
from hvpspec.kernels.random_vectors import directions
from hvpspec.objective.losses.user_errors import MODULE_CALLS
from hvpspec.objective.objective import Objective
from hvpspec.oracle import autograd
from hvpspec.results.preflight import Finding
from hvpspec.wording import dtype_name, listed

_MAX_LISTED_NAMES = 3
_NARROW = (torch.float32, torch.complex64, torch.float16, torch.bfloat16)


def computed_with_fewer_digits(objective: Objective) -> list[Finding]:
    """A finding on float32 inside a float64 run, or on half precision. Costs a forward pass of the first batch, and two
    products where something is found. `objective` is on that batch."""
    try:
        casts = _casts(objective)
        if not casts.names:
            return []
        error = _error(objective)
    except (InputError, torch.OutOfMemoryError, StopIteration):  # the product itself says what is wrong
        return []
    shown = listed((f"'{name}'" if name else "the loss or the whole model" for name in casts.names), _MAX_LISTED_NAMES)
    coarsest = max(casts.dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    accuracy = f"about {torch.finfo(coarsest).eps:.0e}" if error is None else f"{error:.0e}, as measured"
    inside = " and ".join(dict.fromkeys(dtype_name(dtype.to_real()) for dtype in casts.dtypes))
    found = f"computed in {inside} inside a {dtype_name(objective.dtype)} run: {shown}"
    single = coarsest in (torch.float32, torch.complex64)
    kind = "float32_inside" if single else "half_inside"
    return [Finding(kind, found, f"as the model says: products are accurate to {accuracy}", "note")]


def _casts(objective: Objective) -> _Casts:
    casts = _Casts(objective.model)
    with objective.evaluating(), casts:
        next(objective.losses())
    return casts


def _error(objective: Objective) -> float | None:
    """The relative difference between a product and one with these parts in the run's dtype; None where that fails."""
    v = directions(objective.space.n, 1, dtype=objective.dtype, device=objective.device).T
    found = autograd.hvp(objective, v)
    try:
        with _Widening(objective.dtype):
            exact = autograd.hvp(objective, v)
    except (InputError, RuntimeError):  # a part may insist on its dtype
        return None
    scale = float(exact.norm())
    return float((found - exact).norm()) / scale if scale else None


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operation. Torch would import its compiler, which takes a second, to hide that from it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class _Casts(_Mode):
    """Notes in which modules a tensor is made from one with more digits that requires a gradient, and its dtype."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: dict[str, None] = {}
        self.dtypes: dict[torch.dtype, None] = {}
        self._modules = {id(module): name for name, module in model.named_modules()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = {t.dtype for t in tree_leaves(result) if isinstance(t, Tensor) and t.dtype in _NARROW}
        if made:
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and _has_digits(t)]
            finest = min((torch.finfo(t.dtype).eps for t in given if t.requires_grad), default=1.0)
            narrower = [dtype for dtype in made if torch.finfo(dtype).eps > finest]
            if narrower:
                self.names[next(self._running(), "")] = None
                self.dtypes |= dict.fromkeys(narrower)
        return result

    def _running(self) -> Iterator[str]:
        """Names of the modules whose forward is running, the innermost first."""
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_name in MODULE_CALLS and (key := id(frame.f_locals.get("self"))) in self._modules:
                yield self._modules[key]
            frame = frame.f_back  # type: ignore[assignment]


def _has_digits(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


class _Widening(_Mode):
    """What asks for fewer digits gets those of a dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wide(dtype: torch.dtype) -> torch.dtype:
            wider = self._dtype.to_complex() if dtype.is_complex else self._dtype
            return wider if dtype in _NARROW else dtype

        args, kwargs = tree_map_only(torch.dtype, wide, (args, kwargs or {}))
        return func(*args, **kwargs)
