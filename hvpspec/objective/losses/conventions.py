"""How losses are called, and where in what they and models return the outputs or the loss are.

A user's loss is `loss(model, batch)` or, as torch's criteria, `loss(outputs, targets)`. Which one is found by trying.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hvpspec.errors import InputError
from hvpspec.objective.batches import named_leaves, tensors
from hvpspec.objective.data_errors import LATER_PASS
from hvpspec.objective.live_model import named_tensors
from hvpspec.objective.losses.calls import call_model
from hvpspec.objective.losses.described import described
from hvpspec.objective.losses.outputs import announce, announce_samples, each
from hvpspec.raised import raised, said
from hvpspec.validation import not_finite_in
from hvpspec.wording import a_kind, dtype_name


def logits_of(outputs: Any) -> Tensor:
    """The model's output tensor, or the `logits` of a Hugging Face style output or of a dict."""
    logits = entry(outputs, "logits")
    if not isinstance(logits, Tensor):
        raise InputError(
            f"the model returned {described(outputs)}, not a tensor or an object with .logits; give a function "
            "loss(model, batch) that uses the right part of it."
        )
    return logits


def loss_of(output: Any) -> Tensor | None:
    """The loss in what a model returns: its `loss`, or the only scalar tensor of a tuple; None where there is none."""
    if isinstance(output, Tensor):
        return output if output.numel() == 1 else None
    if isinstance(output, (tuple, list)) and not hasattr(output, "loss"):
        scalars = [part for part in output if isinstance(part, Tensor) and part.numel() == 1]
        return scalars[0] if len(scalars) == 1 else None
    loss = entry(output, "loss")
    return loss if isinstance(loss, Tensor) else None


def entry(output: Any, name: str) -> Any:
    """An attribute or an entry of that name; the output itself where it has neither."""
    found = getattr(output, name, None)
    if found is None and isinstance(output, Mapping):
        found = output.get(name)
    return output if found is None else found


def returned(index: int, result: Any) -> tuple[Tensor, float | None]:
    """The mean loss and the weight, or None, that a loss function returned. Raises InputError, naming the batch."""
    loss, weight = returned_unread(index, result)
    return loss, float(weight) if isinstance(weight, Tensor) else weight


def returned_unread(index: int, result: Any) -> tuple[Tensor, float | Tensor | None]:
    """The same with a weight that is a tensor, if the loss function returned one: what it is need not be waited for."""
    loss, weight = result, None
    if isinstance(result, (tuple, list)):
        if len(result) != 2:
            raise InputError(
                f"batch {index}: the loss returned {len(result)} values; it must return (mean loss, weight)."
            )
        loss, weight = result
    if not isinstance(loss, Tensor):
        raise InputError(f"batch {index}: {_no_tensor(loss)}.")
    if loss.numel() != 1 or loss.is_complex():
        kind = "complex" if loss.is_complex() else f"of shape {tuple(loss.shape)}"
        raise InputError(f"batch {index}: the loss is {kind}; it must be a real scalar (the mean over the batch).")
    if not loss.is_floating_point():
        raise InputError(
            f"batch {index}: the loss is of dtype {dtype_name(loss.dtype)}; it must be floating-point, as what "
            "counts (right answers, say) cannot be differentiated."
        )
    if weight is None:
        return loss.reshape(()), None
    if isinstance(weight, Tensor) and weight.numel() == 1 and not weight.is_complex():
        return loss.reshape(()), weight.detach().reshape(())
    try:
        return loss.reshape(()), float(weight.detach() if isinstance(weight, Tensor) else weight)
    except (TypeError, ValueError, RuntimeError):
        kind = f"a tensor of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        raise InputError(
            f"batch {index}: the second value that the loss returned is {kind}; return the mean loss alone, or with "
            "its weight, a number."
        ) from None


def _no_tensor(loss: Any) -> str:
    """What is wrong with a loss that is no tensor, and what to do."""
    if loss is None:
        return "the loss returned None; it must return a scalar tensor (is there a return in it?)"
    what = f"the loss is {a_kind(loss)}; it must be a scalar tensor"
    if isinstance(loss, (int, float)):
        return f"{what}: return the tensor itself, without .item() or float()"
    if isinstance(loss, (np.ndarray, np.generic)):
        return f"{what}: compute it with torch, as NumPy cannot be differentiated"
    return what if isinstance(loss, (tuple, list)) or loss_of(loss) is None else f"{what}: return its loss"


def check_weights(index: int, *weights: float) -> None:
    """Raises InputError, naming the batch, for what is no weight."""
    for weight in weights:
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"batch {index}: the loss's weight is {weight}; it must be finite and not negative.")


class NoWeight(InputError):
    """There is no mean."""

    def __init__(self) -> None:
        super().__init__(
            "every batch has weight 0, so that there is no mean (are all targets ignored, or the batches empty?)."
        )


def check_pass(weights: Sequence[float], before: float | None) -> None:
    """Raises InputError where a pass over the data gave no batches, or another total weight than the one before."""
    if not weights:
        if before is None:
            raise InputError("data has no batches; look at what they are read from.")
        raise InputError(LATER_PASS)
    total = sum(weights)
    if total and before is not None and not math.isclose(total, before, rel_tol=1e-6):
        raise InputError(
            f"data changed between two passes (total weight {before:g}, then {total:g}); give the same batches each "
            "time (list(data), --freeze-data)."
        )


def refuse_not_finite(model: nn.Module, index: int, loss: float, batch: Any = None) -> None:
    """Raises InputError, naming the batch, for a loss that is NaN or Inf. batch: is looked at for such values."""
    if not math.isfinite(loss):
        why = "look at that batch, and at the checkpoint's values"
        if (where := not_finite_in(named_tensors(model))) is not None:
            why = f"the model has {where}"
        elif (where := not_finite_in(named_leaves(batch))) is not None:
            why = f"the data have {where}; correct them, or leave that batch out"
        elif any(tensor.numel() == 0 for tensor in tensors(batch)):
            why = f"the batch is empty ({described(batch)}); leave it out"
        raise InputError(f"batch {index}: the loss is {loss}; {why}.")


# --- losses of users ------------------------------------------------------------------------------------------------


class UserLoss:
    """A user's function or module as `loss(model, batch)`, whichever of the two ways it is to be called.

    The first call tries. A function that evaluates the model is `loss(model, batch)`, whatever else goes wrong in it;
    one that fails before it does is `loss(outputs, targets)`. A module is tried the other way round.
    """

    def __init__(self, loss: Callable[..., Any]) -> None:
        self.loss = loss
        self._call: Callable[[nn.Module, Any], Any] | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        if self._call is not None:
            return self._call(model, batch)
        of_outputs_first = isinstance(self.loss, nn.Module)
        ways = [self._of_model, self._of_outputs] if _is_pair(batch) or of_outputs_first else [self._of_model]
        failed: dict[str, Exception] = {}
        values = [(tensor, tensor.data) for _, tensor in named_tensors(model)]
        for way in reversed(ways) if of_outputs_first else ways:
            with _watching(model) as evaluated:
                try:
                    result = way(model, batch)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # a user's function may raise anything
                    if not (evaluated or _is_pair(batch)) and isinstance(error, (TypeError, AttributeError)):
                        _refuse_tuple(batch, error)
                    if len(ways) == 1 or (way == self._of_model and evaluated):
                        raise
                    failed[way.__name__] = error
                    for tensor, data in values:  # `outputs.float()` of what was the model has converted it
                        tensor.data = data
                    continue
            self._call = way
            return result
        first, second = failed["_of_model"], failed["_of_outputs"]
        if said(first) == said(second):
            raise first  # whatever it is given
        raise InputError(
            f"called as loss(model, batch), the loss raises {raised(first)}; called as loss(outputs, targets), it "
            f"raises {raised(second)}. The batch is {described(batch)}."
        ) from second

    def _of_model(self, model: nn.Module, batch: Any) -> Any:
        return self.loss(model, batch)

    def _of_outputs(self, model: nn.Module, batch: Any) -> Any:
        if not _is_pair(batch):
            raise InputError(
                "a loss(outputs, targets) needs batches that are pairs (inputs, targets); give a function "
                "loss(model, batch) for other ones."
            )
        inputs, targets = batch
        outputs = call_model(model, inputs)
        if not isinstance(outputs, Tensor) and isinstance(found := entry(outputs, "logits"), Tensor):
            outputs = found
        announce(outputs)
        announce_samples(partial(each, self.loss, outputs, targets))
        return self.loss(outputs, targets)


def _refuse_tuple(batch: Any, error: Exception) -> None:
    """Raises InputError for a function that fails before it evaluates the model, where that may be as batches are no
    pairs."""
    if isinstance(batch, (tuple, list)):
        raise InputError(
            f"called as loss(model, batch), the loss raised {raised(error)}, before it evaluated the model; a "
            "loss(outputs, targets) needs batches that are pairs (inputs, targets), and this one is "
            f"a {type(batch).__name__} of {len(batch)}."
        ) from error


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2


@contextlib.contextmanager
def _watching(model: nn.Module) -> Iterator[list[str]]:
    """Fills with the names of the model's modules that are called meanwhile."""
    names = {id(module): name for name, module in model.named_modules()}
    called: list[str] = []

    def note(module: nn.Module, arguments: Any) -> None:
        if id(module) in names:
            called.append(names[id(module)])

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield called
    finally:
        handle.remove()
