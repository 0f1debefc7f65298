"""How losses are called, and where in what they and models return the outputs or the loss are.

A user's loss is `loss(model, batch)` or, as torch's criteria, `loss(outputs, targets)`. Which one is found by trying.
"""

from __future__ import annotations

import contextlib
import math
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.errors import InputError
from hvpspec.objective.live_model import named_tensors
from hvpspec.objective.losses.calls import call_model
from hvpspec.objective.losses.outputs import announce, announce_samples, each
from hvpspec.validation import not_finite_in
from hvpspec.wording import dtype_name, raised

MODULE_CALLS = ("_wrapped_call_impl", "_call_impl")  # the methods of nn.Module through which a forward is called


def logits_of(outputs: Any) -> Tensor:
    """The model's output tensor, or the `logits` of a Hugging Face style output or of a dict."""
    logits = entry(outputs, "logits")
    if not isinstance(logits, Tensor):
        raise InputError(
            f"the model returned {type(outputs).__name__}, not a tensor or an object with .logits; give a function "
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
        advice = "" if isinstance(loss, (tuple, list)) or loss_of(loss) is None else ": return its loss"
        raise InputError(f"batch {index}: the loss is a {type(loss).__name__}; it must be a scalar tensor{advice}.")
    if loss.numel() != 1 or loss.is_complex():
        kind = "complex" if loss.is_complex() else f"of shape {tuple(loss.shape)}"
        raise InputError(f"batch {index}: the loss is {kind}; it must be a real scalar (the mean over the batch).")
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


def check_weights(index: int, *weights: float) -> None:
    """Raises InputError, naming the batch, for what is no weight."""
    for weight in weights:
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"batch {index}: the loss's weight is {weight}; it must be finite and not negative.")


class NoWeight(InputError):
    """There is no mean."""

    def __init__(self) -> None:
        super().__init__("every batch has weight 0, so that there is no mean (are all targets ignored?).")


def check_pass(weights: Sequence[float], before: float | None) -> None:
    """Raises InputError where a pass over the data gave no batches, or another total weight than the one before."""
    if not weights:
        if before is None:
            raise InputError("data has no batches.")
        raise InputError(
            "data gave no batches on a later pass; it must be re-iterable, such as a list or a DataLoader."
        )
    total = sum(weights)
    if total and before is not None and not math.isclose(total, before, rel_tol=1e-6):
        raise InputError(
            f"data changed between two passes (total weight {before:g}, then {total:g}); give the same batches each "
            "time."
        )


def refuse_not_finite(model: nn.Module, index: int, loss: float) -> None:
    """Raises InputError, naming the batch, for a loss that is NaN or Inf."""
    if not math.isfinite(loss):
        where = not_finite_in(named_tensors(model))
        why = "look at that batch, and at the checkpoint's values" if where is None else f"the model has {where}"
        raise InputError(f"batch {index}: the loss is {loss}; {why}.")


def of_batch(index: int, error: BaseException, model: nn.Module, dtype: torch.dtype, hint: str) -> InputError:
    """What a model or a loss raised, as an error that names the batch. hint: what may be done about it."""
    if isinstance(error, InputError):  # hvpspec's own, of what it was given there
        said = str(error)
        ended = f"{said.removesuffix('.')}{hint}." if hint else said
        return InputError(said if said.startswith("batch ") else f"batch {index}: {ended}")
    hints = f"{precision_hint(error, dtype)}{_conversion_hint(error)}{hint}"
    return InputError(f"batch {index}: {said_by(model, error)}{hints}")


def said_by(model: nn.Module, error: BaseException) -> str:
    """What an error says, and whether the loss raised it or the model's forward; of the latter, in which module."""
    names = {id(module): name for name, module in model.named_modules()}
    running = [
        names[id(frame.f_locals["self"])]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name in MODULE_CALLS and id(frame.f_locals.get("self")) in names
    ]
    what = raised(error)
    if not running:
        return f"the loss raised {what}"
    return f"the model's forward raised {what}" + (f" (in '{running[-1]}')" if running[-1] else "")


def is_of_dtype(error: BaseException) -> bool:
    """Whether an error says that tensors of different precisions do not go together."""
    return re.search(r"\b(Double|Float|dtype|scalar type)\b", str(error)) is not None


def _conversion_hint(error: BaseException) -> str:
    if "expected np.ndarray" not in str(error):
        return ""
    return " (arrays of a batch are tensors here, on the device of the model)"


def precision_hint(error: BaseException, dtype: torch.dtype) -> str:
    """What to do where something stayed in another precision than the model and the batches."""
    if not is_of_dtype(error):
        return ""
    return (
        f" (model and batches are in {dtype_name(dtype)}: what the loss holds itself has to be so too, and a "
        "model that makes tensors of its own dtype may need the other one)"
    )


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
        if (type(first), str(first)) == (type(second), str(second)):
            raise first  # whatever it is given
        raise InputError(
            f"called as loss(model, batch), the loss raises {type(first).__name__}: {first}; called as "
            f"loss(outputs, targets), it raises {type(second).__name__}: {second}."
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
