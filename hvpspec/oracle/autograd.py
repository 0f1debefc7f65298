"""The reference engine: torch.autograd.grad twice, batch by batch. It is exact; all other engines are checked with it.

For each batch the gradient g(p) is computed once and its graph kept. Each vector v then costs one backward pass through
that graph, since d(gᵀv)/dp = Hv (Pearlmutter, doi:10.1162/neco.1994.6.1.147).
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from hvpspec.errors import InputError, NotTwiceDifferentiable, ZeroHessianWarning
from hvpspec.kernels.deferred import Deferred, Doubtful, not_finite
from hvpspec.objective.cutting import CannotCut, cut, length
from hvpspec.objective.losses.loss import BatchLoss
from hvpspec.objective.losses.outputs import Samples, listening
from hvpspec.objective.objective import Objective
from hvpspec.options import MATRIX_NAMES
from hvpspec.oracle.chains import NOTHING, Chain, chain
from hvpspec.oracle.checks.repeats import check_repeats
from hvpspec.oracle.columns import through
from hvpspec.oracle.derivative_errors import in_other_words, is_of_derivatives, line_of
from hvpspec.oracle.graph_memory import graph_nodes
from hvpspec.raised import place, said
from hvpspec.system.out_of_memory import as_torch_error, is_out_of_memory
from hvpspec.validation import all_finite, not_finite_in

OnBatch = Callable[[int, float, Tensor | None], None]
"""Is told each batch's number, its weight and its own product, shape (n, b); None stands for a product of zero."""

_MAX_MESSAGE_LENGTH = 160  # characters of an error in a line of the plan


@dataclass
class BatchGraph:
    """What a batch's products are computed with: for the Hessian, the gradient of its mean loss with its graph, in
    which each product is one backward pass.

    `depends`: whether the loss depends on the parameters. `kept`: whether the graph is of an earlier product.
    """

    index: int
    weight: float
    loss: Tensor  # without its graph
    depends: bool
    chain: Chain
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
    for index, one in objective.batch_losses(deferred):
        graph = graph_of(objective, index, one, parameters, first)
        if graph.weight > 0:
            first = False
            yield graph


def graph_of(
    objective: Objective, index: int, one: BatchLoss, parameters: tuple[Tensor, ...], first: bool
) -> BatchGraph:
    """A batch's graph. first: refuses a loss that can be differentiated only once. Raises InputError."""
    with listening() as heard:
        loss, weight = one()
    if weight == 0:
        return BatchGraph(index, 0.0, loss.detach(), False, NOTHING)
    if first:
        refuse_once_differentiable(index, loss, objective)
    if not loss.requires_grad:
        return BatchGraph(index, weight, loss.detach(), False, NOTHING)
    if objective.matrix == "empirical-fisher" and heard.samples is None:
        heard.samples = partial(losses_one_by_one, objective, index, one.batch)
    with _naming(objective, index, loss):
        links = chain(objective.matrix, loss, heard, parameters)
    return BatchGraph(index, weight, loss.detach(), True, links)


def losses_one_by_one(objective: Objective, index: int, batch: Any) -> Samples:
    """The loss of each sample of a batch, evaluated by itself, for losses that do not tell their samples apart."""
    axis, losses, weights = objective.counting.axis, [], []
    moved = objective.moved(index, batch)
    try:
        parts = [cut(moved, axis, number, number + 1) for number in range(length(moved, axis))]
    except CannotCut as reason:
        raise InputError(
            f"its samples cannot be told apart ({reason}); give batches of tensors with a row for each sample."
        ) from None
    for part in parts:
        loss, weight = objective.weighed(index, objective.raw(index, part), part)
        losses.append(loss if weight > 0 else torch.zeros_like(loss))
        weights.append(weight)
    found = torch.stack(losses)
    return found, torch.tensor(weights, dtype=found.dtype, device=found.device)


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
            f"the loss does not depend on the chosen parameters, so that its {MATRIX_NAMES[objective.matrix]} is zero; "
            "if it should depend on them, look for torch.no_grad() or .detach() in the model or the loss.",
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
    """One batch's matrix times each of the rows, shape (b, n); None where the matrix is zero.

    at_once: whether to check that it is finite.
    """
    if graph.kept:
        try:
            product = through(objective, graph.chain, rows)
        except Exception as error:  # autograd's own check of what was written to, for one
            if is_out_of_memory(error):
                raise
            raise StaleGraph(first_line(error)) from error
        if at_once and product is not None and not all_finite(product):
            raise StaleGraph("its product is not finite")
        return product
    with _naming(objective, graph.index):
        product = through(objective, graph.chain, rows)
    if at_once and product is not None and not all_finite(product):
        _refuse(objective, graph, product, rows)
    return product


@contextlib.contextmanager
def _naming(objective: Objective, index: int, loss: Tensor | None = None) -> Iterator[None]:
    """Raises NotTwiceDifferentiable, which names batch, operation and line, where autograd lacks a second derivative,
    and InputError, which names batch and line, for what else it raises. A device that fails or lacks memory is said as
    it is. loss: of which the gradient is computed, which may be what fails."""
    try:
        with as_torch_error(f"in batch {index}"):
            yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except InputError as error:
        if str(error).startswith("batch "):
            raise
        raise InputError(f"batch {index}: {error}") from error
    except Exception as error:  # a Function of the user's own may raise anything in its backward
        if not is_of_derivatives(error) or (loss is not None and not _has_gradient(objective, loss)):
            raise refused_derivative(objective, index, error) from error
        reason = said_of_derivative(error)
        line = place(error) or line_of(objective, index)
        raise NotTwiceDifferentiable(index, operation_named(reason), reason, line) from error


def _has_gradient(objective: Objective, loss: Tensor) -> bool:
    try:
        torch.autograd.grad(loss, objective.parameters, retain_graph=True, allow_unused=True)
    except Exception:
        return False
    return True


def refuse_once_differentiable(index: int, loss: Tensor, objective: Objective) -> None:
    """Refuses a loss with a custom Function whose backward is marked @once_differentiable.

    torch.autograd.grad silently treats the result of such a backward as a constant, so that the Hessian would be
    wrong. The mark can be recognised: `backward` is then a wrapper defined in torch.autograd.function.
    """
    for node in graph_nodes([loss]):
        function: Any = getattr(node, "_forward_cls", None)
        code = getattr(getattr(function, "backward", None), "__code__", None)
        if code is not None and code.co_filename == torch.autograd.function.__file__:
            name = function.__name__
            line = line_of(objective, index, name)
            reason = f"the backward of '{name}' is marked @once_differentiable"
            raise NotTwiceDifferentiable(index, name, reason, line)


def said_of_derivative(error: Exception) -> str:
    """What torch says, or what a Function of the user's own has raised in its backward."""
    return in_other_words(first_line(error)) if isinstance(error, RuntimeError) else said(error)


def refused_derivative(objective: Objective, index: int, error: Exception) -> InputError:
    """What to raise for what autograd raises while it computes a batch's gradient."""
    what = f"differentiating the loss raised {type(error).__name__}: {first_line(error)}"
    if is_of_derivatives(error):
        what = f"the loss cannot be differentiated: {said_of_derivative(error)}"
    line = place(error) or line_of(objective, index)
    return InputError(f"batch {index}: {what}{f' ({line})' if line else ''}.")


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


def _refuse(objective: Objective, graph: BatchGraph, product: Tensor, rows: Tensor) -> NoReturn:
    """Raises InputError, naming batch and parameter, for a product that is not finite."""
    if not all_finite(rows):
        raise InputError("the vector to multiply has NaN or Inf entries.")
    space = objective.space
    row = next(row for row in product if not all_finite(row))
    where = not_finite_in(zip(space.names, space.split(row), strict=True))
    known = [(space.names[i], g) for i, g in zip(graph.chain.entries, graph.chain.links[0].outputs, strict=True)]
    of_gradient = None if objective.matrix != "hessian" else not_finite_in(known)  # type: ignore[arg-type]
    name = MATRIX_NAMES[objective.matrix]
    what = "the Hessian-vector product" if objective.matrix == "hessian" else f"a product with the {name}"
    also = "" if of_gradient is None else f", and so has the gradient ({of_gradient})"
    raise InputError(
        f"batch {graph.index}: {what} is not finite, although the loss is: it has {where}{also}; "
        "look for a square root, a norm or a logarithm of 0 in that batch, or try float64."
    )
