"""What a user's model or loss raised, as an error that says in which batch, where in the code, and what to do."""

from __future__ import annotations

import re
import traceback
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.errors import InputError
from hvpspec.objective.losses.described import described
from hvpspec.raised import place, said, text_of
from hvpspec.wording import dtype_name

MODULE_CALLS = ("_wrapped_call_impl", "_call_impl")  # the methods of nn.Module through which a forward is called
_ALONE = ", a tensor alone (of a pair, for one batch: data=[(inputs, targets)])"


def of_batch(
    index: int, error: BaseException, model: nn.Module, batch: Any, dtype: torch.dtype, hint: str
) -> InputError:
    """What a model or a loss raised, as an error that names the batch. hint: what may be done about it."""
    if isinstance(error, InputError):  # hvpspec's own, of what it was given there
        told = str(error)
        ended = f"{told.removesuffix('.')}; {hint}." if hint else told
        return InputError(told if told.startswith("batch ") else f"batch {index}: {ended}")
    told, form = said_by(model, error), f"the batch is {described(batch)}{_ALONE if isinstance(batch, Tensor) else ''}"
    if hint:
        return InputError(f"batch {index}: {told}; {hint}.")
    if remedy := _remedy(error, model, dtype):
        return InputError(f"batch {index}: {told}; {remedy}. {form[0].upper()}{form[1:]}.")
    return InputError(f"batch {index}: {told}; {form}.")


def said_by(model: nn.Module, error: BaseException) -> str:
    """What an error says, and where it arose: in the loss or in the model's forward, in which module, in which line."""
    names = {id(module): name for name, module in model.named_modules()}
    running = [
        names[id(frame.f_locals["self"])]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name in MODULE_CALLS and id(frame.f_locals.get("self")) in names
    ]
    module = f"in module '{running[-1]}'" if running and running[-1] else ""
    where = "; ".join(filter(None, (module, place(error))))
    what = f"{said(error)} ({where})" if where else said(error)
    return f"the model's forward raised {what}" if running else f"the loss raised {what}"


def is_of_dtype(error: BaseException) -> bool:
    """Whether an error says that tensors of different precisions do not go together."""
    return re.search(r"\b(Double|Float|dtype|scalar type)\b|[Ii]nput type \(", text_of(error)) is not None


# What torch's words mean most often, and what is to be done about it. The first that fits is said.
_REMEDIES = (
    (
        r"Target -?\d+ is out of bounds",
        "class labels are whole numbers from 0 to the number of outputs − 1, and −100 for those that are left out",
    ),
    (
        r"expected target dtype|multi-target|class probabilities|scalar type Long",
        "the targets of a cross-entropy are class indices (int64, without an axis of classes), or probabilities "
        "(floating-point, in the shape of the outputs)",
    ),
    (
        r"one element tensors|to Scalar|Boolean value of Tensor",
        "a tensor of several elements is no single number: reduce it first, as by .mean() or .all()",
    ),
    (
        r"numpy\(\) on Tensor that requires grad",
        "compute it with torch from the parameters to the loss, as what NumPy computes cannot be differentiated",
    ),
    (r"expected np\.ndarray", "arrays of a batch are tensors here, on the device of the model"),
    (
        r"should be between 0 and 1",
        "that loss is of probabilities: apply a sigmoid first, or take a loss of logits (bce_with_logits)",
    ),
    (r"'indices' to have|indices.* scalar type", "indices are whole numbers: give them as int64 in the data"),
    (r"index out of range in self", "an index in the batch is larger than the embedding has rows"),
    (
        r"must be Tensor, not (tuple|dict|\w+Output)",
        "take the tensor that is meant out of what the model returns, or the batch holds",
    ),
    (
        r"must be Tensor, not (list|str|int|float|NoneType|numpy)",
        "a tensor is needed there: lists, numbers, texts and None stay what they are in the data",
    ),
    (
        r"leaf [Vv]ariable that requires grad",
        "the loss must leave the model's parameters as they are",
    ),
    (
        r"type.*\b(Long|Int|Short|Char|Byte|Bool|long|int|unsigned char|bool)(Tensor)?\b",
        "whole numbers stay as the data give them: make inputs floating-point there, or in the model (x.float())",
    ),
)  # fmt: skip


def _remedy(error: BaseException, model: nn.Module, dtype: torch.dtype) -> str:
    """What to do about what torch says; "" where its words do not tell."""
    text = text_of(error)
    if re.search(r"forward\(\) (missing|takes|got an unexpected)", text):
        if place(error):
            return "the loss must call the model as its forward is defined"
        return "inputs in a tuple are the forward's arguments, in a dict its keyword arguments, and all else is one"
    for words, remedy in _REMEDIES:
        if re.search(words, text):
            return remedy
    if re.search(r"with CUDA enabled|same device|expected device|device type", text):
        device = next((parameter.device for parameter in model.parameters()), "the CPU")
        return (
            f"model and batches are on {device}: what the loss or the model makes or holds itself has to be there too "
            "(device=x.device)"
        )
    if is_of_dtype(error):
        return (
            f"model and batches are in {dtype_name(dtype)}: what the loss holds itself has to be so too, and a "
            "model that makes tensors of its own dtype may need the other one"
        )
    return ""
