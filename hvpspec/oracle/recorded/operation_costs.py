"""What the operations of a recorded graph take: the memory of their results, and their time, as bytes read and written.

Times are estimated, not measured, so that each process comes to the same choice. On one core of a Xeon, pointwise
operations of 96 KiB to 12 MiB read and write 14 to 18 GB/s, those in `_SLOW` 4 to 8; products of matrices reach some
100 GFLOPS. Their ratio is similar on a GPU.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import flop_registry

_BYTES_OF_A_CALL = 2**16  # that could be moved while an operation is called
_FLOPS_OF_A_BYTE = 7.0  # floating-point operations in the time in which a byte is moved
_SLOWER = 2.5  # what those in `_SLOW` take, compared with pointwise operations

_aten = torch.ops.aten
# Besides the operations that torch calls pointwise or reductions. None of them draws or writes anything.
_CHEAP = {
    *(_aten._to_copy, _aten.cat, _aten.constant_pad_nd, _aten.repeat, _aten.flip, _aten.roll, _aten.triu, _aten.tril),
    *(_aten.ones, _aten.zeros, _aten.full, _aten.arange, _aten.eye, _aten.scalar_tensor, _aten.fill, _aten.copy),
    *(_aten.ones_like, _aten.zeros_like, _aten.full_like, _aten.new_ones, _aten.new_zeros, _aten.new_full),
    *(_aten.slice_backward, _aten.select_backward, _aten.diagonal_backward),
    *(_aten.mse_loss, _aten.mse_loss_backward, _aten.nll_loss_backward, _aten.lift_fresh_copy),
}
_SLOW = {
    *(_aten._softmax, _aten._log_softmax, _aten._softmax_backward_data, _aten._log_softmax_backward_data),
    *(_aten.native_layer_norm, _aten.native_group_norm, _aten.stack, _aten.masked_fill, _aten.pow, _aten.erf),
    *(_aten.embedding, _aten.index, _aten.index_select, _aten.gather, _aten.gelu, _aten.gelu_backward),
    *(_aten.native_layer_norm_backward, _aten.native_group_norm_backward, _aten.native_batch_norm_backward),
    *(_aten._native_batch_norm_legit_no_training, _aten.batch_norm_backward),
    *(_aten.native_batch_norm, _aten.max_pool2d_with_indices, _aten.avg_pool2d, _aten._adaptive_avg_pool2d),
}
# Operations that each return memory of their own, with any contents.
_UNFILLED = {_aten.empty, _aten.new_empty, _aten.empty_like}
_UNDECLARED_VIEWS = {_aten._unsafe_view, _aten.unsafe_split, _aten.unsafe_split_with_sizes}
_CHANGING = {torch.Tag.nondeterministic_seeded, torch.Tag.nondeterministic_bitwise}
_POINTWISE = {torch.Tag.pointwise, torch.Tag.reduction}


def owners(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For each node with one tensor, the node whose memory it is: another one for a view, itself otherwise.

    The fake tensors of a recording share memory as the tensors that they stand for do.
    """
    first: dict[int, fx.Node] = {}
    found = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            found[node] = first.setdefault(value.untyped_storage()._cdata, node)
    return found


def is_view(node: fx.Node, owner: dict[fx.Node, fx.Node]) -> bool:
    """Whether a node only looks at another one's memory, or is a list of such."""
    target: Any = node.target
    if target is operator.getitem:
        return is_view(node.all_input_nodes[0], owner)
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload) or owner.get(node) is node:
        return False
    return _looks(target)


def size(node: fx.Node) -> int:
    """Bytes of the memory that a node's tensor is in."""
    return int(node.meta["val"].untyped_storage().nbytes())


def is_repeatable(node: fx.Node) -> bool:
    """Whether an operation gives the same bits each time and takes about as long as reading and writing its tensors."""
    target: Any = node.target
    if target is operator.getitem:
        return True
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    if target.namespace != "aten" or not _CHANGING.isdisjoint(target.tags):
        return False
    packet = target.overloadpacket
    if packet is _aten.native_batch_norm and node.args[3] is not None and node.args[5]:
        return False  # in training it changes the running mean, though its schema does not say so
    return packet in _CHEAP | _SLOW | _UNFILLED or not _POINTWISE.isdisjoint(target.tags)


def cost(node: fx.Node) -> float:
    """The time of an operation, in bytes that could be read and written meanwhile; 0 for what only looks at memory."""
    target: Any = node.target
    if node.op != "call_function" or target is operator.getitem or not isinstance(target, torch._ops.OpOverload):
        return 0.0
    if _looks(target):
        return 0.0
    if target.overloadpacket in _UNFILLED:
        return float(_BYTES_OF_A_CALL)
    results = list(_tensors(node.meta.get("val")))
    moved = sum(map(_accessed, results))
    moved += sum(_accessed(tensor) for parent in node.all_input_nodes for tensor in _tensors(parent.meta.get("val")))
    if target.overloadpacket in _SLOW:
        moved = int(_SLOWER * moved)
    flops = 0
    if (formula := flop_registry.get(target.overloadpacket)) is not None:
        arguments, options = fx.map_arg((node.args, node.kwargs), lambda parent: parent.meta.get("val"))
        flops = formula(*arguments, **options, out_val=node.meta.get("val"))
        flops *= max(tensor.itemsize for tensor in results) / torch.float32.itemsize  # as wide as registers are
    return _BYTES_OF_A_CALL + max(moved, flops / _FLOPS_OF_A_BYTE)


def _looks(target: torch._ops.OpOverload) -> bool:
    """Whether an operation returns its argument's memory."""
    declared = any(result.alias_info is not None for result in target._schema.returns)
    return declared or target.overloadpacket in _UNDECLARED_VIEWS


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _accessed(tensor: torch.Tensor) -> int:
    """Bytes of memory that a tensor's entries are in: fewer than those of its entries where they are repeated."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())
