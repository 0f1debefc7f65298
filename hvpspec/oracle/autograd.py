"""The reference engine: torch.autograd.grad twice, batch by batch. It is exact; all other engines are checked with it.

For each batch the gradient g(p) is computed once and its graph kept. Each vector v then costs one backward pass through
that graph, since d(gᵀv)/dp = Hv (Pearlmutter, doi:10.1162/neco.1994.6.1.147).
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hvpspec.errors import InputError, NotTwiceDifferentiable, ZeroHessianWarning
from hvpspec.kernels.deferred import Deferred, Doubtful, not_finite
from hvpspec.kernels.torch_kernels import vector_jacobian_product
from hvpspec.objective.objective import Objective
from hvpspec.oracle.repeats import check_repeats
from hvpspec.system.out_of_memory import is_out_of_memory
from hvpspec.validation import all_finite, not_finite_in
from hvpspec.wording import raised

OnBatch = Callable[[int, float, Tensor | None], None]
"""Is told each batch's number, its weight and its own product, shape (n, b); None stands for a product of zero."""

_MAX_MESSAGE_LENGTH = 160  # characters of an error in a line of the plan


@dataclass
class BatchGraph:
    """The gradient of a batch's mean loss with its graph, in which each product is one backward pass.

    `curved`: those parameters' numbers whose gradient depends on the parameters, each with that gradient or the place
    of it in the graph. `inputs`: the parameters, or their places. `gradients`: None where only places are held.
    `depends`: whether the loss depends on the parameters. `kept`: whether the graph is of an earlier product.
    """

    index: int
    weight: float
    loss: Tensor  # without its graph
    depends: bool
    curved: list[tuple[int, Tensor | GradientEdge]]
    inputs: Any
    gradients: tuple[Tensor | None, ...] | None
    kept: bool = False


class StaleGraph(Exception):
    """A kept graph cannot be used: what it refers to was written to, or its product is not finite."""


Graphs = Callable[[Objective, tuple[Tensor, ...], Deferred | None], Iterator[BatchGraph]]
"""Gives the graph of each batch of weight > 0, in one pass over the data, of which checks may be deferred."""


def fresh_graphs(
    objective: Objective, parameters: tuple[Tensor, ...], deferred: Deferred | None = None
) -> Iterator[BatchGraph]:
    """Each batch's graph, computed when it is asked for. Raises InputError, as `hvp` does."""
    first = True
    for index, loss, weight in objective.losses(deferred):
        if first:
            refuse_once_differentiable(index, loss)
            first = False
        yield graph_of(index, loss, weight, parameters)


def graph_of(index: int, loss: Tensor, weight: float, parameters: tuple[Tensor, ...]) -> BatchGraph:
    """A batch's graph from its loss. Raises NotTwiceDifferentiable."""
    if not loss.requires_grad:
        return BatchGraph(index, weight, loss.detach(), False, [], parameters, None)
    with _naming(index):
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    # A parameter that the loss does not use has no gradient; one in which it is affine has a constant gradient.
    curved: list[tuple[int, Tensor | GradientEdge]] = [
        (i, g) for i, g in enumerate(gradients) if g is not None and g.requires_grad
    ]
    return BatchGraph(index, weight, loss.detach(), True, curved, parameters, gradients)


def hvp(
    objective: Objective, columns: Tensor, on_batch: OnBatch | None = None, graphs: Graphs = fresh_graphs
) -> Tensor:
    """H @ columns, for vectors of shape (n, b) in the objective's dtype and on its device.

    Costs b HVPs: for each batch one gradient with its graph, and b backward passes through that. Raises InputError,
    naming the batch, when the loss has no second derivative (NotTwiceDifferentiable) or a product is not finite; and
    StaleGraph for a graph of an earlier product.

    From the second pass over the data on, what has to be checked of each batch is read at the end, at once. If anything
    is wrong then, the product is computed again with each check in its place: that says what and where.
    """
    deferred = Deferred()
    try:
        with objective.evaluating(deferred) as parameters:
            return _one_pass(objective, columns, on_batch, graphs, parameters, deferred)
    except Doubtful:
        pass
    with objective.evaluating() as parameters:
        return _one_pass(objective, columns, on_batch, graphs, parameters, None)


def _one_pass(
    objective: Objective,
    columns: Tensor,
    on_batch: OnBatch | None,
    graphs: Graphs,
    parameters: tuple[Tensor, ...],
    deferred: Deferred | None,
) -> Tensor:
    """H @ columns. Raises Doubtful where something is wrong of what was deferred."""
    rows = (columns.clone() if columns.is_inference() else columns).T.contiguous()
    total, weights = torch.zeros_like(rows), list[float]()
    losses, depends = list[Tensor](), False
    try:
        for graph in graphs(objective, parameters, deferred):
            depends |= graph.depends
            product = _batch_hvp(objective, graph, rows, at_once=deferred is None)
            if product is not None:
                total.add_(product, alpha=graph.weight)
            if on_batch is not None:
                on_batch(graph.index, graph.weight, None if product is None else product.T)
            weights.append(graph.weight)
            losses.append(graph.loss)
            del graph  # unless it is kept, it is freed before the next batch's is computed
    except InputError:
        if deferred is not None:
            deferred.read()  # what was wrong before that
        raise
    check_repeats(objective, list(zip(weights, _read(losses, total, deferred), strict=True)))
    if not depends:
        warnings.warn(
            "the loss does not depend on the chosen parameters, so that its Hessian is zero; if it should depend on "
            "them, look for torch.no_grad() or .detach() in the model or the loss.",
            ZeroHessianWarning,
            stacklevel=3,
        )
    return total.div_(sum(weights)).T


def _read(losses: Sequence[Tensor], total: Tensor, deferred: Deferred | None) -> list[float]:
    """The losses, after all checks that were deferred, and that of the product."""
    last = Deferred() if deferred is None else deferred
    values = list[float]()
    if deferred is not None:
        last.forbid(not_finite(total))  # as it is where a batch's product is not
    for loss in losses:
        last.note(loss, values.append)
    last.read()
    return values


def _batch_hvp(objective: Objective, graph: BatchGraph, rows: Tensor, *, at_once: bool) -> Tensor | None:
    """One batch's Hessian times each of the rows, shape (b, n); None where the Hessian is zero.

    at_once: whether to check that it is finite.
    """
    if graph.kept:
        try:
            product = _through(objective, graph.curved, graph.inputs, rows)
        except Exception as error:  # autograd's own check of what was written to, for one
            if is_out_of_memory(error):
                raise
            raise StaleGraph(first_line(error)) from error
        if at_once and product is not None and not all_finite(product):
            raise StaleGraph("its product is not finite")
        return product
    with _naming(graph.index):
        product = _through(objective, graph.curved, graph.inputs, rows)
    if at_once and product is not None and not all_finite(product):
        assert graph.gradients is not None
        _refuse(objective, graph.index, graph.gradients, product, rows)
    return product


@contextlib.contextmanager
def _naming(index: int) -> Iterator[None]:
    """Raises NotTwiceDifferentiable, which names batch and operation, for what autograd raises."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a Function of the user's own may raise anything in its backward
        if is_out_of_memory(error):
            raise
        reason = said_of_derivative(error)
        raise NotTwiceDifferentiable(index, operation_named(reason), reason) from error


def products(
    objective: Objective, gradients: Sequence[Tensor | None], parameters: Sequence[Tensor], rows: Tensor
) -> Tensor | None:
    """The derivative of gradients with a graph along each of the rows, shape (b, n); None where it is zero."""
    curved = [(i, g) for i, g in enumerate(gradients) if g is not None and g.requires_grad]
    return _through(objective, curved, parameters, rows)


def _through(
    objective: Objective,
    curved: Sequence[tuple[int, Tensor | GradientEdge]],
    inputs: Any,
    rows: Tensor,
) -> Tensor | None:
    """The same for those gradients that depend on the parameters."""
    if not curved:
        return None
    outputs: Any = [g for _, g in curved]
    result = torch.empty_like(rows)
    for row, vector in zip(result, rows, strict=True):
        pieces = objective.space.pieces(vector)
        second = vector_jacobian_product(outputs, inputs, [pieces[i] for i, _ in curved])
        found = [torch.zeros_like(v) if piece is None else piece for piece, v in zip(second, pieces, strict=True)]
        torch.cat([piece.reshape(-1) for piece in found], out=row)
    return result


def refuse_once_differentiable(index: int, loss: Tensor) -> None:
    """Refuses a loss with a custom Function whose backward is marked @once_differentiable.

    torch.autograd.grad silently treats the result of such a backward as a constant, so that the Hessian would be
    wrong. The mark can be recognised: `backward` is then a wrapper defined in torch.autograd.function.
    """
    for node in graph_nodes([loss]):
        function: Any = getattr(node, "_forward_cls", None)
        code = getattr(getattr(function, "backward", None), "__code__", None)
        if code is not None and code.co_filename == torch.autograd.function.__file__:
            name = function.__name__
            raise NotTwiceDifferentiable(index, name, f"the backward of '{name}' is marked @once_differentiable")


def graph_nodes(tensors: Iterable[Tensor]) -> set[Any]:
    """All nodes of the autograd graph behind the tensors."""
    stack: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [parent for parent, _ in node.next_functions]
    return seen


def said_of_derivative(error: Exception) -> str:
    """What torch says, or what a Function of the user's own has raised in its backward."""
    return first_line(error) if isinstance(error, RuntimeError) else raised(error)


def operation_named(message: str) -> str:
    """The operation that torch says has no derivative; the whole message where it names none."""
    found = re.search(r"derivative for '?([\w:.]+)'? is not implemented|backward through (\S+) but", message)
    return next(filter(None, found.groups())) if found else message


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def described(error: BaseException) -> str:
    """The type of an error and the first line of its message, for a line of the plan."""
    return f"{type(error).__name__}: {first_line(error)[:_MAX_MESSAGE_LENGTH]}"


def _refuse(
    objective: Objective, index: int, gradients: Sequence[Tensor | None], product: Tensor, rows: Tensor
) -> NoReturn:
    """Raises InputError, naming batch and parameter, for a product that is not finite."""
    if not all_finite(rows):
        raise InputError("the vector to multiply has NaN or Inf entries.")
    space = objective.space
    row = next(row for row in product if not all_finite(row))
    where = not_finite_in(zip(space.names, space.split(row), strict=True))
    known = [(name, gradient) for name, gradient in zip(space.names, gradients, strict=True) if gradient is not None]
    of_gradient = not_finite_in(known)
    also = "" if of_gradient is None else f", and so has the gradient ({of_gradient})"
    raise InputError(
        f"batch {index}: the Hessian-vector product is not finite, although the loss is: it has {where}{also}; look "
        "for a square root, a norm or a logarithm of 0 in that batch, or try float64."
    )
