"""How a model is called with a batch's inputs: as its arguments, or as the only one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.utils.rnn import PackedSequence


def call_model(model: nn.Module, inputs: Any) -> Any:
    """The model's output: a dict is its keyword arguments, a tuple or list its arguments, and all else its argument.

    A dict, tuple or list that the forward's parameters cannot be, as they are others or fewer, is its only argument.
    """
    if isinstance(inputs, Mapping):
        return model(inputs) if _is_one_argument(model, inputs) else model(**inputs)
    if isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence):
        return model(inputs) if _is_one_argument(model, inputs) else model(*inputs)
    return model(inputs)


def _is_one_argument(model: nn.Module, inputs: Any) -> bool:
    """Whether the forward can be called with them as one argument only.

    Not where a dict has some of its parameters: then the entry that the forward lacks is what the error is to name.
    """
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # of a function that Python does not know
        return False
    if isinstance(inputs, Mapping):
        named = not all(isinstance(key, str) for key in inputs), inputs.keys() & signature.parameters.keys()
        if named[0]:
            return True
        if named[1] or _binds(signature, **inputs):
            return False
    elif _binds(signature, *inputs):
        return False
    return _binds(signature, inputs)


def _binds(signature: inspect.Signature, /, *positional: Any, **named: Any) -> bool:
    try:
        signature.bind(*positional, **named)
    except TypeError:
        return False
    return True
