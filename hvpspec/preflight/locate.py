"""Where in a model an operation lies that torch can derive only once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.errors import InputError
from hvpspec.objective.batches import tensors
from hvpspec.objective.objective import Objective
from hvpspec.oracle.autograd import first_line


def once_differentiable(objective: Objective, error: str) -> str | None:
    """The innermost module whose own derivative, taken twice, raises torch's `error`; None where that is none.

    Each module is tried as it is left, on the first batch: its outputs' derivative in its own parameters and inputs.
    Torch passes over a Function that is marked @once_differentiable in silence: that is looked for by its name.
    """
    marked = re.search(r"backward of '(\w+)'", error)
    names = {module: name for name, module in objective.model.named_modules()}
    found: list[str] = []

    def has(outputs: Any, sources: Iterable[Tensor]) -> bool:
        if marked is not None:
            return any(node.name() == f"{marked[1]}Backward" for node in _nodes(outputs) - _nodes(list(sources)))
        message = _twice(list(tensors(outputs)), sources)
        return message is not None and message in error

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and has(output, [*tensors(inputs), *module.parameters()]):
            found.append(names[module])

    handles = [module.register_forward_hook(look) for module in names]
    try:
        with objective.evaluating():
            snapshot = objective.snapshot()
            _, loss, _ = next(objective.losses(snapshot))
            if found:
                return found[0] or "the model's own forward"
            return "the loss" if has(loss, snapshot.parameters) else None
    except (InputError, StopIteration):
        return None
    finally:
        for handle in handles:
            handle.remove()


def _twice(outputs: Sequence[Tensor], sources: Iterable[Tensor]) -> str | None:
    """What torch says where the outputs' squares cannot be derived twice in the sources; None where they can."""
    outputs = [tensor for tensor in outputs if tensor.requires_grad]
    leaves = list({id(tensor): tensor for tensor in sources if tensor.requires_grad}.values())
    if not outputs or not leaves:
        return None
    try:
        total = torch.stack([tensor.abs().square().sum() for tensor in outputs]).sum()
        gradients = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
        curved = [gradient for gradient in gradients if gradient is not None and gradient.requires_grad]
        if curved:
            ones = [torch.ones_like(gradient) for gradient in curved]
            torch.autograd.grad(curved, leaves, ones, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        return first_line(error)
    return None


def _nodes(value: Any) -> set[Any]:
    """All nodes of the graph behind the tensors in a value."""
    stack = [tensor.grad_fn for tensor in tensors(value)]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [parent for parent, _ in node.next_functions]
    return seen
