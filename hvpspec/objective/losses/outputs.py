"""Where a loss can be taken apart: the model's outputs z, and the loss as a function of them, ℓ(z).

The Gauss-Newton matrix Jᵀ ∇²ℓ J, with J = dz/dp, depends on where that is. A loss says so while it is evaluated
(`announce`), and an engine that wants to know listens (`listening`): the outputs that it hears of are part of the
loss's own graph. The empirical Fisher matrix needs the loss of each sample, which is announced in the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.errors import InputError
from hvpspec.objective.cutting import FIRST, CannotCut, cut, length
from hvpspec.system.undoing import scoped

Samples = tuple[Tensor, Tensor]
"""The mean loss of each sample of a batch, shape (samples,), and the weight of each."""
Elements = tuple[Tensor, Tensor | None]
"""The losses of all elements of a batch, times their weights; and these."""


@dataclass
class Heard:
    """What a loss has announced in its last evaluation. `outputs`: None where it cannot be taken apart.

    `samples`: computes the losses of the samples; None where the loss does not tell them apart.
    """

    outputs: tuple[Tensor, ...] | None = None
    samples: Callable[[], Samples] | None = None


_LISTENING: ContextVar[Heard | None] = ContextVar("listening", default=None)


@contextlib.contextmanager
def listening() -> Iterator[Heard]:
    """Collects what the loss that is evaluated meanwhile announces."""
    heard = Heard()
    with scoped(_LISTENING, heard):
        yield heard


def announce(outputs: Any) -> None:
    """Says that the loss depends on the parameters through these outputs only: a tensor, or several in tuples, lists
    and dicts."""
    heard = _LISTENING.get()
    if heard is not None:
        heard.outputs, heard.samples = tuple(_tensors(outputs)), None


def announce_samples(elements: Callable[[], Elements], samples: int | None = None) -> None:
    """Says how the mean is made up of samples.

    elements: gives the losses of all elements and their weights, in one shape, so that the sum of the former over that
    of the latter is the loss; None for weights of 1. It is called only where samples are asked for. samples: how many
    there are; by default as many as the first axis is long.
    """
    heard = _LISTENING.get()
    if heard is not None:
        heard.samples = lambda: _by_sample(*elements(), samples)


def _by_sample(elements: Tensor, weights: Tensor | None, samples: int | None) -> Samples:
    count = samples or (len(elements) if elements.ndim else 1)
    sums = elements.reshape(count, -1).sum(1)
    totals = (torch.ones_like(elements) if weights is None else weights.to(elements.dtype)).reshape(count, -1).sum(1)
    return torch.where(totals > 0, sums / torch.where(totals > 0, totals, 1.0), 0.0), totals


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        if outputs.requires_grad:
            yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, (tuple, list)):
        for value in outputs:
            yield from _tensors(value)


def each(loss: Callable[[Any, Any], Any], outputs: Any, batch: Any) -> Elements:
    """The loss of each sample, from its part of the outputs and of the batch."""
    found, weights = [], []
    try:
        count = length(batch, FIRST)
    except CannotCut as reason:
        raise InputError(
            f"the samples of a batch cannot be told apart ({reason}); give batches of tensors with a row for each "
            "sample."
        ) from None
    for number in range(count):
        result = loss(cut(outputs, FIRST, number, number + 1), cut(batch, FIRST, number, number + 1))
        one, weight = result if isinstance(result, (tuple, list)) else (result, 1.0)
        found.append(one.reshape(()) * weight)
        weights.append(torch.as_tensor(weight, dtype=one.dtype, device=one.device).reshape(()))
    return torch.stack(found), torch.stack(weights)


class SplitLoss:
    """A loss as two functions: of the model and a batch, and of what that gives and the batch.

    It is called as ``loss(model, batch)``, and can be used wherever a loss is.

    Parameters
    ----------
    outputs : callable
        ``outputs(model, batch)`` returns the outputs: a tensor, or tensors in tuples, lists and dicts.
    loss : callable
        ``loss(outputs, batch)`` returns the mean loss, or (mean loss, weight). It may depend on the parameters only
        through the outputs.

    Examples
    --------
    >>> import torch
    >>> from hvpspec import GGNOperator, SplitLoss
    >>> loss = SplitLoss(lambda model, batch: model(batch), lambda outputs, batch: (outputs**4).mean())
    >>> G = GGNOperator(torch.nn.Linear(2, 1), loss, [torch.ones(3, 2)], dtype="float64")
    >>> G.shape
    (3, 3)
    """

    def __init__(self, outputs: Callable[[nn.Module, Any], Any], loss: Callable[[Any, Any], Any]) -> None:
        self.outputs, self.loss = outputs, loss
        self.__qualname__ = getattr(loss, "__qualname__", type(loss).__name__)

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """The mean loss, or (mean loss, weight).

        Parameters
        ----------
        model : nn.Module
            What `outputs` is called with.
        batch : object
            What both functions are called with.

        Returns
        -------
        Tensor or tuple
            What the second function returns.
        """
        outputs = self.outputs(model, batch)
        announce(outputs)
        announce_samples(partial(each, self.loss, outputs, batch))
        return self.loss(outputs, batch)


def as_split(loss: Any) -> SplitLoss | None:
    """The loss that two functions make, as a pair or as an object's `outputs` and `loss`; None for anything else."""
    if isinstance(loss, SplitLoss):
        return loss
    if isinstance(loss, tuple) and len(loss) == 2 and all(map(callable, loss)):
        return SplitLoss(*loss)
    if isinstance(loss, nn.Module):
        return None
    outputs, of_outputs = getattr(loss, "outputs", None), getattr(loss, "loss", None)
    if callable(outputs) and callable(of_outputs):
        return SplitLoss(outputs, of_outputs)
    return None
