"""Finds the module of a model that holds an operation which torch can differentiate only once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.errors import InputError, NotTwiceDifferentiable
from hvpspec.objective.batches import tensors
from hvpspec.objective.objective import Objective
from hvpspec.oracle.autograd import said_of_derivative
from hvpspec.oracle.graph_memory import graph_nodes


def once_differentiable(objective: Objective, error: NotTwiceDifferentiable) -> str | None:
    """The name of the innermost module where `error` arises, "the loss" where it is outside the model, else None.

    Each module is checked when it returns, on the first batch: are its outputs twice differentiable in its own
    parameters and inputs? torch gives no error for a Function that is marked @once_differentiable, so such a Function
    is looked for by its name.
    """
    names = {module: name for name, module in objective.model.named_modules()}
    found: list[str] = []

    def arises(outputs: Any, sources: Iterable[Tensor]) -> bool:
        sources = list(sources)
        inside = graph_nodes(tensors(outputs)) - graph_nodes(tensors(sources))
        if any(node.name() == f"{error.operation}Backward" for node in inside):
            return True
        return _reason_against_twice(list(tensors(outputs)), sources) == error.reason

    def check(module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and arises(output, [*tensors(inputs), *module.parameters()]):
            found.append(names[module])

    handles = [module.register_forward_hook(check) for module in names]
    try:
        with objective.evaluating() as parameters:
            _, loss, _ = next(objective.losses())
            if found:
                return found[0] or "the model's own forward"
            return "the loss" if arises(loss, parameters) else None
    except (InputError, StopIteration):
        return None
    finally:
        for handle in handles:
            handle.remove()


def _reason_against_twice(outputs: Sequence[Tensor], sources: Iterable[Tensor]) -> str | None:
    """torch's message where the squared outputs cannot be differentiated twice in the sources; None where they can."""
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
    except Exception as error:
        return said_of_derivative(error)
    return None
