"""Exact rewrites of a recorded product: the same values with less work, or with work that need not be repeated.

They are applied to the whole graph, before it is split: what they move out of the part that depends on the vector is
computed only once, in the other part.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import fx
from torch._decomp import get_decompositions
from torch.utils import _pytree as pytree

_aten = torch.ops.aten
# Operations that each return memory of their own, with any contents.
_UNFILLED = (_aten.empty.memory_format, _aten.new_empty.default, _aten.empty_like.default)

# Entries of a convolution's kernel above which `convolution_backward` is slower. With it, the gradient with respect to
# a weight of 1 × 128 × 512 (32 sound clips of 1,532 samples) takes 36 ms, and 19 ms as the convolution that autograd
# makes of it. With 64 entries both take as long; with 3 × 3 the former takes a fifth to a half of the time (two cores).
_MAX_SHORT_KERNEL = 64

# Activation functions whose derivative is expensive. torch multiplies by it in one operation; in several operations,
# the derivative, which is the same for every vector, is separate from the multiplication.
_EXPENSIVE_DERIVATIVES = (
    *(_aten.gelu_backward, _aten.silu_backward, _aten.mish_backward, _aten.softplus_backward, _aten.elu_backward),
    *(_aten.log_sigmoid_backward, _aten.logit_backward),
)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Operations that `make_fx` is to record as several."""
    return {**get_decompositions(_EXPENSIVE_DERIVATIVES), _aten._efficientzerotensor.default: _zeros}


def _zeros(size: Sequence[int], *, dtype: Any = None, device: Any = None, **_: Any) -> torch.Tensor:
    """Zeros in memory of their own. Forward-mode derivatives (torch.func.jacfwd, hessian) begin with zeros that have
    none, which take fake tensors to another device and, with real ones, end the process."""
    return torch.zeros(size, dtype=dtype, device=device)


def simplify(graph: fx.Graph) -> None:
    """Removes repeated operations, and rewrites convolutions that compute a weight gradient.

    No operation of the graph may write in place.
    """
    _without_assumed_strides(graph)
    _weight_gradients(graph)
    _without_repetitions(graph)
    graph.eliminate_dead_code()


def made_in_their_dtypes(module: fx.GraphModule) -> None:
    """Names the dtype of tensors that are made in the default one, which may be another when the graph runs."""
    for node in module.graph.nodes:
        schema, value = getattr(node.target, "_schema", None), node.meta.get("val")
        if schema is None or not isinstance(value, torch.Tensor) or any(_is_tensor(a) for a in schema.arguments):
            continue
        if any(a.name == "dtype" and a.kwarg_only for a in schema.arguments) and node.kwargs.get("dtype") is None:
            node.kwargs = {**node.kwargs, "dtype": value.dtype}
    module.recompile()


def _is_tensor(argument: Any) -> bool:
    return "Tensor" in str(argument.type)


def without_write_backs(graph: fx.Graph, model_values: int) -> None:
    """Removes what `functionalize` leaves of writes to the batch: copies of the last values to it, at the end.

    A loss may write to its batch (`labels[labels == pad] = -100`), which a product need not. model_values: how many
    inputs come before the batch. One that writes to these is another function each time.
    """
    written = [node for node in graph.nodes if node.op == "placeholder"][model_values:]
    for node in graph.nodes:
        if node.target is _aten.copy_.default and node.args[0] in written and not node.users:
            graph.erase_node(node)


def _without_assumed_strides(graph: fx.Graph) -> None:
    """Turns views into reshapes: the strides of some operations' results are not those that recording assumes."""
    for node in graph.nodes:
        if node.target in (_aten.view.default, _aten._unsafe_view.default):
            node.target = _aten.reshape.default


def _without_repetitions(graph: fx.Graph) -> None:
    """Keeps the first of equal operations on the same arguments. (Inductor does that too late, after the split.)"""
    first: dict[Hashable, fx.Node] = {}
    for node in graph.nodes:
        tags = getattr(node.target, "tags", ())
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in tags or node.target in _UNFILLED:
            continue
        leaves, form = pytree.tree_flatten((node.args, node.kwargs))
        key = (node.target, str(form), *((type(leaf), leaf) for leaf in leaves))  # 1 is not True, nor 1.0
        if (known := first.setdefault(key, node)) is not node:
            node.replace_all_uses_with(known)


def _weight_gradients(graph: fx.Graph) -> None:
    """Replaces convolutions that compute a weight gradient by torch's operation for that.

    In the second derivative of a convolution, autograd computes the gradient with respect to the weight, from images x
    and output gradients g, as the convolution of x by g, both with samples and channels exchanged, and keeps the first
    entries of the result. There the kernel is as large as the image, for which libraries have no fast algorithm: with
    few channels it takes four times as long as the gradient itself.
    """
    for node in list(graph.nodes):
        if node.target is not _aten.convolution.default:
            continue
        images, gradients, bias, stride, padding, dilation, transposed, output_padding, groups = _arguments(node)
        x, g = _exchanged(images), _exchanged(gradients)
        if x is None or g is None or bias is not None or transposed or groups != 1 or len(node.users) != 1:
            continue
        (last,) = node.users
        if not _exchanges(last):
            continue
        while len(last.users) == 1 and _keeps_first(user := next(iter(last.users))):
            last = user
        weight = torch.empty_like(_value(last))  # not in the larger tensor that it is cut from
        if _is_long(weight):
            continue
        with graph.inserting_before(last):
            like = graph.call_function(_aten.new_empty.default, (g, list(weight.shape)))
            like.meta["val"] = torch.empty_like(weight)
            # Stride and dilation are exchanged, too. Autograd hands on the output padding of a transposed convolution,
            # which means nothing here.
            no_padding = [0] * len(output_padding)
            arguments = (g, x, like, None, dilation, padding, stride, False, no_padding, 1, [False, True, False])
            both = graph.call_function(_aten.convolution_backward.default, arguments)
            both.meta["val"] = (None, weight, None)
            gradient = graph.call_function(operator.getitem, (both, 1))
            gradient.meta = {**last.meta, "val": weight}
        last.replace_all_uses_with(gradient)


def _exchanged(node: Any) -> fx.Node | None:
    """The node of which this one exchanges the first two dimensions, directly or in a copy; None otherwise."""
    if isinstance(node, fx.Node) and node.target is _aten.clone.default:
        node = _arguments(node)[0]
    return _arguments(node)[0] if isinstance(node, fx.Node) and _exchanges(node) else None


def _exchanges(node: fx.Node) -> bool:
    """Whether a node exchanges the first two dimensions."""
    return node.target is _aten.transpose.int and set(node.args[1:]) == {0, 1}


def _keeps_first(node: fx.Node) -> bool:
    """Whether a node takes the first entries along one of the image's dimensions."""
    if node.target is not _aten.slice.Tensor or len(node.args) not in (3, 4):
        return False
    _, dimension, start, *_ = _arguments(node)
    return bool(dimension >= 2 and start == 0)


def channels_last(prepare: fx.GraphModule, apply: fx.GraphModule) -> None:
    """Has `prepare` return images in channels-last memory format, as Inductor uses it on the CPU.

    Inductor would read other formats entry by entry. Images are what has the shape of a convolution's input or output.
    """
    if any(node.target is _aten.as_strided.default for node in apply.graph.nodes):
        return  # which depends on the strides
    shapes = set()
    for node in prepare.graph.nodes:
        if node.target is _aten.convolution.default and not _is_long(_value(_arguments(node)[1])):
            shapes |= {_value(node).shape, _value(_arguments(node)[0]).shape}
    (output,) = (node for node in prepare.graph.nodes if node.op == "output")
    saved, *rest = _arguments(output)[0]
    changed = []
    for node in saved:
        value = _value(node)
        form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(value.ndim)
        if form is not None and value.shape in shapes and value.device.type == "cpu":
            with prepare.graph.inserting_after(node):
                last = prepare.graph.call_function(_aten.clone.default, (node,), {"memory_format": form})
                last.meta["val"] = value
            node = last
        changed.append(node)
    output.args = ((changed, *rest),)
    for node in apply.graph.nodes if changed != saved else ():
        if node.target in (_aten.view.default, _aten._unsafe_view.default):  # which needs the former strides
            node.target = _aten.reshape.default
    prepare.recompile()
    apply.recompile()


def _is_long(weight: torch.Tensor) -> bool:
    """Whether a kernel is so large that the convolution by an image is faster than `convolution_backward`."""
    return math.prod(weight.shape[2:]) > _MAX_SHORT_KERNEL


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _value(node: fx.Node) -> torch.Tensor:
    value: torch.Tensor = node.meta["val"]
    return value
