"""Records the Hessian-vector product of one batch as two graphs: what does not depend on the vector v, and what does.

    prepare(parameters, constants, batch) -> activations, loss, weight        apply(activations, v) -> H v

`make_fx` records (parameters, constants, batch, v) ↦ d(gᵀv)/dp with g = dL/dp, for one batch shape. Operations that
depend on v go to `apply`, all others to `prepare`; the values that `prepare` hands to `apply` are the activations.
Parameters and data stay the same from product to product, so that `prepare` runs once and `apply` costs little more
than the linear part of the arithmetic.

Recording uses fake tensors, which have no values: control flow that depends on the data cannot be frozen by mistake, it
raises an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from hvpspec.objective.batches import mapped
from hvpspec.objective.objective import Objective
from hvpspec.objective.parameters import Snapshot
from hvpspec.oracle.autograd import described
from hvpspec.oracle.recorded.graph_rewrites import channels_last, decompositions, simplify


class NotRecordable(Exception):
    """Why a product cannot be recorded, in one line."""


@dataclass(frozen=True)
class Recording:
    """The two graphs for batches of one shape, and `whole`, the graph that was split into them."""

    prepare: fx.GraphModule
    apply: fx.GraphModule
    whole: fx.GraphModule
    weight: Any  # what the loss returned as its weight: a number, None, or _COMPUTED for a tensor
    pair: bool  # whether it returned (loss, weight)

    @cached_property
    def for_compiler(self) -> tuple[fx.GraphModule, fx.GraphModule]:
        """The two graphs with views recomputed in `apply`, as Inductor would copy the views that `prepare` returns."""
        halves = _split(self.whole, again=_is_free)
        channels_last(*halves)
        return halves

    def result(self, loss: Tensor, weight: Tensor) -> Any:
        """What the loss function returned, from the outputs of `prepare`: the mean loss, or (mean loss, weight)."""
        if not self.pair:
            return loss
        return loss, (weight if self.weight is _COMPUTED else self.weight)

    @property
    def operations(self) -> int:
        """Number of operations in both graphs."""
        return len(self.prepare.graph.nodes) + len(self.apply.graph.nodes)


@dataclass
class Program:
    """What runs for batches of one shape: the two halves of a recording, as recorded, compiled or captured."""

    recording: Recording
    prepare: Callable[..., Any]
    apply: Callable[..., Tensor]
    apply_columns: Callable[[list[Tensor], Tensor], Tensor]  # for several vectors together, rows of shape (b, n)


def eager(recording: Recording) -> Program:
    """The program that runs a recording without compilation."""
    return Program(recording, recording.prepare, recording.apply, vectorised(recording.apply))


def vectorised(apply: Callable[..., Tensor]) -> Callable[[list[Tensor], Tensor], Tensor]:
    """`apply` for several vectors together."""
    return lambda activations, rows: torch.func.vmap(lambda v: apply(*activations, v))(rows)


_COMPUTED = object()  # stands for a weight that is a tensor

_aten = torch.ops.aten
_VIEWS_AND_CONSTANTS = frozenset(
    {
        *(
            _aten.view.default,
            _aten.reshape.default,
            _aten.t.default,
            _aten.transpose.int,
            _aten.permute.default,
            _aten.expand.default,
        ),
        *(_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.unsqueeze.default, _aten.detach.default),
        *(_aten.alias.default, _aten.slice.Tensor, _aten.select.int, _aten.diagonal.default),
        *(_aten.ones.default, _aten.zeros.default, _aten.full.default, _aten.arange.default),
    }
)


def shape_of(batch: Any) -> tuple[Hashable, list[Tensor]]:
    """What batches must have in common to share a recording, and a batch's tensors."""
    key: list[Hashable] = []
    tensors: list[Tensor] = []

    def note(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            if leaf.layout != torch.strided or type(leaf) is not Tensor or leaf.is_nested:
                raise NotRecordable(f"a batch holds a {type(leaf).__name__} of layout {leaf.layout}")
            key.append((tuple(leaf.shape), leaf.stride(), leaf.dtype))
            tensors.append(leaf)
        elif leaf is None or isinstance(leaf, (bool, int, float, str, torch.device, torch.dtype)):
            key.append((type(leaf), leaf))
        else:
            raise NotRecordable(f"a batch holds a {type(leaf).__name__}, whose contents are unknown")
        return leaf

    mapped(batch, note, key.append)
    return tuple(key), tensors


def record(objective: Objective, snapshot: Snapshot, batch: Any) -> Recording:
    """Records the product for batches like this one, as `shape_of` has it. Use within `objective.evaluating()`.

    Raises NotRecordable.
    """
    names = list(snapshot.constants)
    found: dict[str, Any] = {}

    def product(parameters: list[Tensor], constants: list[Tensor], tensors: list[Tensor], v: Tensor) -> list[Any]:
        remaining = iter(tensors)
        stand_in = mapped(batch, lambda leaf: next(remaining) if isinstance(leaf, Tensor) else leaf)
        primal = tuple(p.detach().requires_grad_() for p in parameters)
        values = Snapshot(primal, dict(zip(names, constants, strict=True)))
        with objective.raw_loss_with(stand_in, values) as evaluate:
            return derivatives(evaluate(), primal, v)

    def derivatives(result: Any, primal: tuple[Tensor, ...], v: Tensor) -> list[Any]:
        loss, weight = result if isinstance(result, (tuple, list)) and len(result) == 2 else (result, None)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise NotRecordable("the loss is not a scalar tensor")
        found["pair"] = isinstance(result, (tuple, list))
        found["weight"] = _COMPUTED if isinstance(weight, Tensor) else weight
        gradients = torch.autograd.grad(loss, primal, create_graph=True, allow_unused=True)
        curved = [(i, g) for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        if not curved:
            raise NotRecordable("the loss has no curvature")
        pieces = objective.space.pieces(v)
        second = torch.autograd.grad(
            [g for _, g in curved], primal, [pieces[i] for i, _ in curved], allow_unused=True, materialize_grads=True
        )
        weight = weight.detach() if isinstance(weight, Tensor) else loss.detach()
        return [torch.cat([piece.reshape(-1) for piece in second]), loss.detach().reshape(()), weight]

    _, tensors = shape_of(batch)
    parameters = [p.detach() for p in snapshot.parameters]
    v = parameters[0].new_zeros(objective.space.n)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments = (parameters, list(snapshot.constants.values()), tensors, v)
            graph = _recorded(product, arguments)
            if any(_writes(node) for node in graph.graph.nodes):
                functional = torch.func.functionalize(graph, remove="mutations")
                with torch.no_grad():
                    graph = _recorded(functional, arguments)
    except (NotRecordable, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model may do anything
        raise NotRecordable(f"recording failed: {described(error)}") from error
    _refuse_what_changes(graph, objective)
    if not any(_writes(node) for node in graph.graph.nodes):
        simplify(graph.graph)
    prepare, apply = _split(graph)
    return Recording(prepare, apply, graph, found["weight"], found["pair"])


def _refuse_what_changes(graph: fx.GraphModule, objective: Objective) -> None:
    """Random numbers would be drawn once and kept; parameters reached past the model would be constants."""
    own = {parameter.untyped_storage().data_ptr() for parameter in objective.model.parameters()}
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise NotRecordable(f"the loss draws random numbers ({node.target})")
        if node.op == "get_attr":
            held = getattr(graph, node.target)
            if isinstance(held, Tensor) and (held.requires_grad or held.untyped_storage().data_ptr() in own):
                raise NotRecordable("the loss reaches parameters by another way than through the model")


def _recorded(function: Callable[..., Any], arguments: tuple[Any, ...]) -> fx.GraphModule:
    graph = make_fx(function, decompositions(), tracing_mode="fake", _allow_non_fake_inputs=True)(*arguments)
    assert isinstance(graph, fx.GraphModule)
    return graph


def _split(
    graph: fx.GraphModule, again: Callable[[fx.Node], bool] = lambda node: False
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """`prepare` and `apply`. Nodes for which `again` is true are computed in `apply` too, not handed over."""
    nodes = list(graph.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    v = inputs[-1]
    reached = {v}
    for node in nodes:
        if any(parent in reached for parent in node.all_input_nodes):
            reached.add(node)
    (output,) = (node for node in nodes if node.op == "output")
    product, loss, weight = output.args[0]
    if product not in reached:
        raise NotRecordable("the loss has no curvature")
    for node in nodes:  # the split could separate it from operations that read what it writes
        if _writes(node):
            raise NotRecordable(f"{node.target} writes in place")
    body = {node for node in nodes if node in reached and node is not output and node is not v}
    cut: dict[fx.Node, None] = {}
    for node in reversed(nodes):  # users before what they use
        if node in body:
            for parent in node.all_input_nodes:
                if parent not in reached:
                    (body.add if again(parent) else cut.setdefault)(parent)

    before, after = fx.Graph(), fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node not in reached and node.op != "output":
            known[node] = before.node_copy(node, known.__getitem__)
    before.output(([known[node] for node in cut], known[loss], known[weight]))
    before.eliminate_dead_code()

    known = {}
    for number, node in enumerate(cut):
        known[node] = after.placeholder(f"saved_{number}")
        known[node].meta = dict(node.meta)
    for node in nodes:
        if node is v or node in body:
            known[node] = after.node_copy(node, known.__getitem__)
    after.output(known[product])
    after.eliminate_dead_code()
    return fx.GraphModule(graph, before), fx.GraphModule(graph, after)


def _is_free(node: fx.Node) -> bool:
    """Whether a node is a view or a constant, which costs no time to compute again and no memory if not saved."""
    return node.op == "call_function" and node.target in _VIEWS_AND_CONSTANTS


def _writes(node: fx.Node) -> bool:
    """Whether an operation writes to one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
