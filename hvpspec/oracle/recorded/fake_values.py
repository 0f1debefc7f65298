"""The fake tensors of a recorded graph: shape and memory of each value, which the costs of operations are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree


def has_unknown_size(node: fx.Node) -> bool:
    """Whether a size of a node's value depends on the data."""
    leaves = pytree.tree_leaves(node.meta.get("val"))
    sizes = [size for leaf in leaves for size in (leaf.shape if isinstance(leaf, Tensor) else (leaf,))]
    return any(isinstance(size, torch.SymInt) for size in sizes)


def share_memory(graph: fx.GraphModule, arguments: Sequence[Tensor]) -> None:
    """Replaces the fake tensors of a graph that was recorded with values, as each has memory of its own, by ones that
    share memory where the values do."""
    graph.graph.eliminate_dead_code()  # numbers that were read from tensors, and what led to them
    graph.recompile()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), mode:
        _Faked(graph, mode).run(*map(mode.from_tensor, arguments))


class _Faked(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(graph)
        self._mode = mode

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self._mode.from_tensor(value) if isinstance(value, Tensor) else value

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except Exception:  # the shape of the result depends on values
            value = pytree.tree_map_only(Tensor, _like, n.meta["val"])
        if n.op != "output":
            n.meta["val"] = value
        return value


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
