"""The form of what a user gives, as errors show it: what there is to compare with what the code expects."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from hvpspec.wording import dtype_name

_MAX_PARTS = 6  # of a container that are shown
_MAX_KEY_LETTERS = 40


def described(value: Any) -> str:
    """A batch, an output or a part of them, in one line: "(float32[20, 6], int64[20])"."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"{dtype_name(value.dtype)}{list(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"{kind} of {value.dtype}{list(value.shape)}"
    if isinstance(value, PackedSequence):
        return f"{kind} of {described(value.data)}"
    if isinstance(value, Mapping):
        parts = _in_short(f"{key!r:.{_MAX_KEY_LETTERS}}: {described(part)}" for key, part in value.items())
        return f"{kind if kind != 'dict' else ''}{{{parts}}}"
    if isinstance(value, list):
        return f"{kind if kind != 'list' else ''}[{_in_short(map(described, value))}]"
    if isinstance(value, tuple):
        return f"{kind if kind != 'tuple' else ''}({_in_short(map(described, value))})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return f"{kind}({_in_short(f'{name}={described(getattr(value, name, None))}' for name in names)})"
    return "None" if value is None else kind


def _in_short(parts: Iterable[str]) -> str:
    """With several parts in a row that are alike as one."""
    runs = [(part, len(list(run))) for part, run in groupby(parts)]
    shown = [part if number == 1 else f"{number} × {part}" for part, number in runs]
    more = [f"{len(shown) - _MAX_PARTS} more"] if len(shown) > _MAX_PARTS else []
    return ", ".join([*shown[:_MAX_PARTS], *more])
