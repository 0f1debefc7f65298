"""Writes to memory that nothing else sees, as operations that return their result.

Backward passes write to tensors that they have just made: that of a mean divides in place. Such an operation has a twin
that returns the result (`div_`, `div`), and where no other tensor shares the memory, the twin can stand in its place.
Any other write takes `torch.func.functionalize`, with which the whole product is recorded again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree


def without_private_writes(module: fx.GraphModule) -> None:
    """Replaces what writes to a tensor whose memory no other tensor of the graph shares."""
    own: set[fx.Node] = set()  # tensors with memory of their own
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            own.difference_update(node.all_input_nodes)  # what it returns may be what it was given
            continue
        twin = _twin(node) if node.target._schema.is_mutable and node.args[0] in own else None
        if twin is not None:
            own.remove(node.args[0])
            own.add(_replaced(module.graph, node, twin))
            continue
        for argument, value in _arguments(node):
            if argument.alias_info is not None:  # the result is a view of it, or the same tensor
                own.difference_update(pytree.tree_leaves(value))
        returns = node.target._schema.returns
        if len(returns) == 1 and returns[0].alias_info is None and isinstance(node.meta.get("val"), FakeTensor):
            own.add(node)
    module.recompile()


def _arguments(node: fx.Node) -> list[tuple[Any, Any]]:
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    named = {argument.name: argument for argument in arguments}
    return [*zip(arguments, node.args, strict=False), *((named[name], value) for name, value in node.kwargs.items())]


def _twin(node: fx.Node) -> OpOverload | None:
    """The operation that returns what this one writes to its first argument, and to no other."""
    written = [value for argument, value in _arguments(node) if argument.alias_info and argument.alias_info.is_write]
    space, _, name = str(node.target._schema.name).partition("::")  # type: ignore[union-attr]
    if written != [node.args[0]] or not name.endswith("_"):
        return None
    packet = getattr(getattr(torch.ops, space), name[:-1], None)
    twin = getattr(packet, node.target._overloadname, None)  # type: ignore[union-attr]
    if not isinstance(twin, OpOverload) or twin._schema.is_mutable:
        return None
    return twin if _gives_the_same(twin, node) else None


def _gives_the_same(twin: OpOverload, node: fx.Node) -> bool:
    """Whether its result has the dtype of the tensor written to, which may be a narrower one, and its strides."""
    expected = node.meta.get("val")
    if not isinstance(expected, FakeTensor) or any(given.meta.get("val") is None for given in node.all_input_nodes):
        return False
    args, kwargs = pytree.tree_map_only(fx.Node, lambda given: given.meta["val"], (node.args, node.kwargs))
    with expected.fake_mode:
        found = twin(*args, **kwargs)
    same = isinstance(found, torch.Tensor) and (found.dtype, found.device) == (expected.dtype, expected.device)
    return bool(same and found.shape == expected.shape and found.stride() == expected.stride())


def _replaced(graph: fx.Graph, node: fx.Node, twin: OpOverload) -> fx.Node:
    before = node.args[0]
    assert isinstance(before, fx.Node)
    with graph.inserting_before(node):
        new = graph.call_function(twin, node.args, node.kwargs)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    before.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new and user > new)
    return new
