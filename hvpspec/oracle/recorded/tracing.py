"""Records the Hessian-vector product of one batch as two graphs: what does not depend on the vector v, and what does.

    prepare(parameters, constants, batch) -> activations, loss, weight        apply(activations, v) -> H v

`make_fx` records (parameters, constants, batch, v) ↦ d(gᵀv)/dp with g = dL/dp, for one batch shape. Operations that
depend on v go to `apply`, all others to `prepare`; the values that `prepare` hands to `apply` are the activations.
Parameters and data stay the same from product to product, so that `prepare` runs once and `apply` costs little more
than the linear part of the arithmetic. Which values are handed over, and which `apply` computes again, is for
`splitting` to say, at several levels: at level 0 products are fastest, at the last one the least is saved.

Recording uses fake tensors, which have no values: control flow that depends on the data cannot be frozen by mistake, it
raises an error. Where it does, a batch can be recorded with its own values and the model's: branches, sizes and numbers
that are read from tensors are constants then, as they are for autograd, and the recording is good for these values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from hvpspec.kernels.comparison import same
from hvpspec.objective.batches import Unknown, contents, mapped
from hvpspec.objective.losses.outputs import Heard, listening
from hvpspec.objective.objective import Objective
from hvpspec.objective.parameters import Snapshot, joined
from hvpspec.oracle.autograd import described
from hvpspec.oracle.chains import chain
from hvpspec.oracle.recorded.fake_values import has_unknown_size, share_memory
from hvpspec.oracle.recorded.graph_rewrites import (
    channels_last,
    decompositions,
    made_in_their_dtypes,
    simplify,
    without_write_backs,
)
from hvpspec.oracle.recorded.private_writes import without_private_writes
from hvpspec.oracle.recorded.quiet_torch import functional_conversions, vmapped, without_logs
from hvpspec.oracle.recorded.splitting import Choice, NotSplittable, Parts, choices, parts, split


class NotRecordable(Exception):
    """Why a product cannot be recorded, in one line."""


class NeedsValues(NotRecordable):
    """The same, where it may be possible with the values of the batch and the model."""


@dataclass(frozen=True)
class Values:
    """What a recording was made with, where it is good for nothing else."""

    snapshot: Snapshot
    batch: list[Tensor]  # copies of its tensors

    def are_of(self, snapshot: Snapshot) -> bool:
        """Whether the model's values are these."""
        if snapshot is self.snapshot:
            return True
        names = snapshot.constants.keys() == self.snapshot.constants.keys()
        return names and same(snapshot.tensors(), self.snapshot.tensors())


@dataclass(frozen=True)
class Recording:
    """The graph of a product for batches of one shape, and what there is to choose of what is saved (`levels`)."""

    whole: fx.GraphModule
    parts: Parts
    levels: tuple[Choice, ...]  # from what makes products fastest to what takes the least memory
    nothing: Choice  # stands for saving nothing
    weight: Any  # what the loss returned as its weight: a number, None, or _COMPUTED for a tensor
    pair: bool  # whether it returned (loss, weight)
    key: Hashable  # of the batch, as `shape_of` has it
    values: Values | None = None  # those that it is good for; None: any

    def halves(self, level: int, *, for_compiler: bool = False) -> tuple[fx.GraphModule, fx.GraphModule]:
        """`prepare` and `apply`; for the compiler without views between them, which it would copy."""
        halves = split(self.whole, self.parts, self.levels[level], views_again=for_compiler)
        if for_compiler:
            channels_last(*halves)
        return halves

    def result(self, loss: Tensor, weight: Tensor) -> Any:
        """What the loss function returned, from the outputs of `prepare`: the mean loss, or (mean loss, weight)."""
        if not self.pair:
            return loss
        return loss, (weight if self.weight is _COMPUTED else self.weight)

    def is_for(self, snapshot: Snapshot, key: Hashable = None, tensors: Sequence[Tensor] | None = None) -> bool:
        """Whether it is good for these values of the model, and for a batch, if one is given."""
        if tensors is not None and (key != self.key or not (self.values is None or same(tensors, self.values.batch))):
            return False
        return self.values is None or self.values.are_of(snapshot)

    @property
    def operations(self) -> int:
        """Number of operations."""
        return len(self.whole.graph.nodes)

    def constants(self) -> list[Tensor]:
        """The tensors that the graph itself holds."""
        held = [getattr(self.whole, str(node.target)) for node in self.parts.fixed if node.op == "get_attr"]
        return [constant for constant in held if isinstance(constant, Tensor)]


@dataclass
class Program:
    """What runs for batches of one shape: the two halves of a recording, as recorded, compiled or captured."""

    recording: Recording
    level: int
    prepare: Callable[..., Any]
    apply: Callable[..., Tensor]
    apply_columns: Callable[[list[Tensor], Tensor], Tensor]  # for several vectors together, rows of shape (b, n)


def eager(recording: Recording, level: int) -> Program:
    """The program that runs a recording without compilation."""
    prepare, apply = recording.halves(level)
    return Program(recording, level, prepare, apply, vectorised(apply))


def vectorised(apply: Callable[..., Tensor]) -> Callable[[list[Tensor], Tensor], Tensor]:
    """`apply` for several vectors together."""
    return lambda activations, rows: vmapped(lambda v: apply(*activations, v), rows)


_COMPUTED = object()  # stands for a weight that is a tensor


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
        else:
            key.append(contents(leaf))
        return leaf

    try:
        mapped(batch, note, key.append)
    except Unknown as what:
        raise NotRecordable(f"a batch holds a {what}, whose contents are unknown") from what
    return tuple(key), tensors


def record(objective: Objective, snapshot: Snapshot, batch: Any, *, with_values: bool = False) -> Recording:
    """Records the product for batches like this one, as `shape_of` has it. Use within `objective.evaluating()`.

    with_values: for this batch and the values of the snapshot only. Raises NotRecordable, or NeedsValues.
    """
    names = list(snapshot.constants)
    if sparse := [name for name, constant in snapshot.constants.items() if constant.layout != torch.strided]:
        raise NotRecordable(f"the model holds the sparse tensor '{sparse[0]}'")
    found: dict[str, Any] = {}

    def product(parameters: list[Tensor], constants: list[Tensor], tensors: list[Tensor], v: Tensor) -> list[Any]:
        remaining = iter(tensors)
        stand_in = mapped(batch, lambda leaf: next(remaining) if isinstance(leaf, Tensor) else leaf)
        primal = tuple(p.detach().requires_grad_() for p in parameters)
        values = Snapshot(primal, dict(zip(names, constants, strict=True)))
        with objective.raw_loss_with(stand_in, values) as evaluate, listening() as heard:
            return derivatives(evaluate(), heard, primal, v)

    def derivatives(result: Any, heard: Heard, primal: tuple[Tensor, ...], v: Tensor) -> list[Any]:
        loss, weight = result if isinstance(result, (tuple, list)) and len(result) == 2 else (result, None)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise NotRecordable("the loss is not a scalar tensor")
        found["pair"] = isinstance(result, (tuple, list))
        found["weight"] = _COMPUTED if isinstance(weight, Tensor) else weight
        links = chain(objective.matrix, loss, heard, primal)
        if not links.links:
            raise NotRecordable("the loss has no curvature")
        pieces = objective.space.pieces(v)
        found_pieces = links(pieces, _through)
        second = [
            torch.zeros_like(p) if piece is None else piece for piece, p in zip(found_pieces, pieces, strict=True)
        ]
        weight = weight.detach() if isinstance(weight, Tensor) else loss.detach()
        return [joined(second), loss.detach().reshape(()), weight]

    key, tensors = shape_of(batch)
    parameters = [p.detach() for p in snapshot.parameters]
    v = torch.zeros(objective.space.n, dtype=objective.dtype, device=objective.device)
    try:
        with warnings.catch_warnings(), functional_conversions(), without_logs():
            warnings.simplefilter("ignore")
            arguments = (parameters, list(snapshot.constants.values()), tensors, v)
            graph = _without_writes(_recorded_with_values if with_values else _recorded, product, arguments)
    except (NotRecordable, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model may do anything
        kind = NotRecordable if with_values else NeedsValues
        raise kind(f"recording failed: {described(error)}") from error
    _refuse_what_changes(graph, objective)
    if not with_values and any(has_unknown_size(node) for node in graph.graph.nodes):
        raise NeedsValues("a size depends on the data")
    values = Values(snapshot, [tensor.clone() for tensor in tensors]) if with_values else None
    return _with_levels(graph, found["weight"], found["pair"], key, values)


def _through(outputs: Sequence[Any], inputs: Sequence[Any], vectors: Sequence[Tensor]) -> Sequence[Tensor | None]:
    return torch.autograd.grad(outputs, inputs, vectors, retain_graph=True, allow_unused=True)


def _with_levels(graph: fx.GraphModule, weight: Any, pair: bool, key: Hashable, values: Values | None) -> Recording:
    """The recording of a graph, simplified."""
    for node in graph.graph.nodes:  # to be split, it could be separated from operations that read what it writes
        if _writes(node):
            raise NotRecordable(f"{node.target} writes in place")
    simplify(graph.graph)
    try:
        of = parts(graph.graph)
        *levels, nothing = choices(graph.graph, of)
    except NotSplittable as error:
        raise NotRecordable(str(error)) from error
    return Recording(graph, of, tuple(levels), nothing, weight, pair, key, values)


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


def _without_writes(
    how: Callable[..., fx.GraphModule], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> fx.GraphModule:
    """The graph of a function, recorded again without operations that write in place where it has some."""
    graph = how(function, arguments)
    made_in_their_dtypes(graph)
    without_private_writes(graph)
    if any(_writes(node) for node in graph.graph.nodes):
        with torch.no_grad():
            graph = how(torch.func.functionalize(graph, remove="mutations"), arguments)
        without_write_backs(graph.graph, sum(len(values) for values in arguments[:2]))
    return graph


def _recorded(function: Callable[..., Any], arguments: tuple[Any, ...]) -> fx.GraphModule:
    graph = make_fx(function, decompositions(), tracing_mode="fake", _allow_non_fake_inputs=True)(*arguments)
    assert isinstance(graph, fx.GraphModule)
    return graph


def _recorded_with_values(function: Callable[..., Any], arguments: tuple[Any, ...]) -> fx.GraphModule:
    # Copies, as the loss may write to them, and as tensors that it reaches by another way are no inputs.
    arguments = pytree.tree_map(torch.clone, arguments)
    trace = make_fx(function, decompositions(), tracing_mode="real", _error_on_data_dependent_ops=False)
    graph = trace(*arguments)
    assert isinstance(graph, fx.GraphModule)
    share_memory(graph, pytree.tree_leaves(arguments))
    return graph


def _writes(node: fx.Node) -> bool:
    """Whether an operation writes to one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
