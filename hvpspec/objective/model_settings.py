"""Settings of Hugging Face models that an evaluation cannot do with: caches, and kernels without a float64.

They are in the models' configs, which are objects that modules share. What is set here is put back when it ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hvpspec.objective.live_model import modules_of

_CACHE = "use_cache"  # filled in place in eval mode, or missing in layers without attention
_EXPERTS = "_experts_implementation_internal"  # how the matrices of a mixture of experts are multiplied
_IN_FLOAT64 = (None, "eager", "batched_mm")
_LARGEST_BATCHED = 1 << 11  # entries of an expert's weights, which batched_mm copies for each token


@contextlib.contextmanager
def settled(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """No caches, and in float64 experts that have it, while it lasts.

    The experts are multiplied one after the other ("eager"), or where they are tiny by copies of their weights
    ("batched_mm"): that can be recorded, but takes 1.7 times as long at 4,000 entries, and five times at 25,000.
    """
    kept: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in modules_of(model):
            own = getattr(vars(module).get("config"), "__dict__", {})
            if own.get(_CACHE) is True:
                kept.append((own, _CACHE, True))
                own[_CACHE] = False
            if dtype == torch.float64 and own.get(_EXPERTS) not in _IN_FLOAT64:
                kept.append((own, _EXPERTS, own[_EXPERTS]))
                own[_EXPERTS] = "batched_mm" if _largest_expert(model) <= _LARGEST_BATCHED else "eager"
        yield
    finally:
        for own, name, value in reversed(kept):
            own[name] = value


def _largest_expert(model: nn.Module) -> int:
    """Entries of an expert's largest weight, of those that modules hold in stacks of three dimensions."""
    sizes = [p[0].numel() for p in model.parameters() if p.ndim == 3 and len(p)]
    return max(sizes, default=0)
