"""What an exception that autograd raises is about: a derivative that does not exist, or something else; and where."""

from __future__ import annotations

import contextlib
import re
import warnings

import torch
from torch import Tensor

from hvpspec.objective.batches import numbered
from hvpspec.objective.losses.conventions import returned
from hvpspec.objective.objective import Objective
from hvpspec.oracle.graph_memory import from_outputs
from hvpspec.raised import place_in

_SAID_OF_DERIVATIVES = re.compile(
    r"derivative|differentiab|differentiat|backward|autograd|grad_fn|requires?[ _]grad|gradient|\.grad\(\)"
    r"|modified by an inplace operation|batching rule|sparse",
    re.IGNORECASE,
)
# That an operation is not deterministic, or has no kernel for a dtype, which may be one of a backward pass.
_SAID_OF_OTHERS = re.compile(
    r"deterministic (implementation|behavior|algorithm)|\" not implemented for '", re.IGNORECASE
)


def is_of_derivatives(error: Exception) -> bool:
    """Whether something cannot be differentiated, as torch says, or as a Function of the user's own has it.

    Such a Function says so by raising anything in its backward. A RuntimeError is torch's, until its words show more.
    """
    if not isinstance(error, RuntimeError) or isinstance(error, NotImplementedError):
        return True
    text = str(error)
    return _SAID_OF_DERIVATIVES.search(text) is not None and _SAID_OF_OTHERS.search(text) is None


def in_other_words(message: str) -> str:
    """What torch says, with what is to be done about it in place of its own advice, which is for other programs."""
    if "through the graph a second time" in message:
        return (
            "its graph is used up, as the loss calls backward() or autograd.grad() itself; take that out, or give it "
            "retain_graph=True"
        )
    if "modified by an inplace operation" in message:
        found = re.search(r"output \d+ of (\w+?)(Backward\d*)?,", message)
        what = f"what {found[1]} has returned" if found else "a tensor"
        return f"{what} is changed in place after it was used; write x = x + y there in place of x += y or x.add_(y)"
    return message


def line_of(objective: Objective, index: int, operation: str = "") -> str:
    """ "train.py:42, in loss": where the user's code calls what cannot be differentiated; "" where that is not found.

    Evaluates the loss of a batch once more, in torch's anomaly mode, which keeps a traceback for each operation.
    operation: the name of a Function that is to blame, where nothing is raised.
    """
    with contextlib.suppress(Exception), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with objective.evaluating() as parameters, torch.enable_grad(), torch.autograd.detect_anomaly(check_nan=False):
            batch = next(batch for number, batch in numbered(objective.data) if number == index)
            loss, _ = returned(index, objective.raw(index, objective.moved(index, batch)))
            for node in from_outputs([loss]) if operation else ():
                if node.name() == f"{operation}Backward":
                    return place_in("".join(node.metadata["traceback_"]))
            _differentiate_twice(loss, parameters)
    places = [place_in(str(warning.message)) for warning in told]
    return next(filter(None, reversed(places)), "")


def _differentiate_twice(loss: Tensor, parameters: tuple[Tensor, ...]) -> None:
    with contextlib.suppress(Exception):
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        curved = [gradient for gradient in gradients if gradient is not None and gradient.requires_grad]
        torch.autograd.grad(curved, parameters, [torch.ones_like(each) for each in curved], allow_unused=True)
