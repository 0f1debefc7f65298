"""Settings that an evaluation cannot do with: caches, kernels without a float64, a default dtype that does not fit.

Those of Hugging Face models are in their configs, which are objects that modules share. What is set here is put back
when it ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from hvpspec.objective.live_model import modules_of
from hvpspec.objective.losses.user_errors import is_of_dtype
from hvpspec.system.undoing import run_all, set_entry

_CACHE = "use_cache"  # filled in place in eval mode, or missing in layers without attention
_EXPERTS = "_experts_implementation_internal"  # how the matrices of a mixture of experts are multiplied
_IN_FLOAT64 = (None, "eager", "batched_mm")
_LARGEST_BATCHED = 1 << 11  # entries of an expert's weights, which batched_mm copies for each token


class DefaultDtype:
    """The dtype in which a model or a loss makes tensors of its own: float32, unless that does not fit a run in
    float64. Then it is float64 as well, from then on."""

    def __init__(self) -> None:
        self._double = False

    @contextlib.contextmanager
    def __call__(self, dtype: torch.dtype) -> Iterator[None]:
        """Has that dtype while it lasts; the default is one for all threads."""
        if not (self._double and dtype == torch.float64):
            yield
            return
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(dtype)
            yield
        finally:
            try:
                torch.set_default_dtype(before)
            except BaseException:  # an alarm, perhaps before anything was done
                torch.set_default_dtype(before)
                raise

    def instead(self, error: BaseException, dtype: torch.dtype, evaluate: Callable[[], Any]) -> Any:
        """What `evaluate` gives with tensors made in float64; None where an error is not due to their dtype."""
        if self._double or dtype != torch.float64 or not is_of_dtype(error):
            return None
        self._double = True
        try:
            return evaluate()
        except Exception:
            self._double = False
            return None


@contextlib.contextmanager
def settled(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """No caches, and in float64 experts that have it, while it lasts.

    The experts are multiplied one after the other ("eager"), or where they are tiny by copies of their weights
    ("batched_mm"): that can be recorded, but takes 1.7 times as long at 4,000 entries, and five times at 25,000.
    """
    places: list[dict[str, Any]] = []
    names: list[str] = []
    values: list[Any] = []
    undo = map(set_entry, places, names, values)

    def change(own: dict[str, Any], name: str, value: Any) -> None:
        values.append(own[name])
        names.append(name)
        places.append(own)
        own[name] = value

    try:
        for module in modules_of(model):
            own = getattr(vars(module).get("config"), "__dict__", {})
            if own.get(_CACHE) is True:
                change(own, _CACHE, False)
            if dtype == torch.float64 and own.get(_EXPERTS) not in _IN_FLOAT64:
                change(own, _EXPERTS, "batched_mm" if _largest_expert(model) <= _LARGEST_BATCHED else "eager")
        yield
    finally:
        run_all(undo)


def _largest_expert(model: nn.Module) -> int:
    """Entries of an expert's largest weight, of those that modules hold in stacks of three dimensions."""
    sizes = [p[0].numel() for p in model.parameters() if p.ndim == 3 and len(p)]
    return max(sizes, default=0)
