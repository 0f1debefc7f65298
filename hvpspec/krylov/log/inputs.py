"""All that the figures of a run depend on, by names that a message can give; and how two runs differ in that."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.krylov.operator_view import Symmetric
from hvpspec.options import SpectrumOptions
from hvpspec.wording import device_name, dtype_name, listed

_MAX_LISTED_DIFFERENCES = 4
_OF_RANKS = ("threads", "start")  # what each rank has its own of; the vectors of a start are compared by what they give
_ROUNDED = ("loss on the data", "weight of the data")  # sums over the ranks
_SAME_LOSS = 1e-5  # relative: sums that differ by less are equal but for the order of their terms
_FREE = ("time_limit",)  # a run that goes on may be given more or less time
_MAX_SHOWN_LENGTH = 32  # characters of an input that a message gives; longer ones are only named


def inputs_of(A: Symmetric, options: SpectrumOptions, start: Any = None) -> dict[str, Any]:
    """What a spectrum depends on: JSON-ready.

    start: vectors of a warm start. An operator without a fingerprint is told apart by its size alone.
    """
    blocks = options.blocks
    rows = {name: _digest(np.arange(A.n)[rows]) for name, rows in blocks.items()} if isinstance(blocks, Mapping) else {}
    versions = {f"version of {name}": metadata.version(name) for name in ("hvpspec", "torch", "numpy", "scipy")}
    return {
        **({} if A.fingerprint is None else A.fingerprint()),
        "rows": A.n,
        "dtype": dtype_name(A.dtype),
        "device": device_name(A.device),
        **{name: value for name, value in options.to_dict().items() if name not in _FREE},
        **{f"rows of block {name}": digest for name, digest in rows.items()},
        "start": None if start is None else _digest(start),
        "threads": torch.get_num_threads(),
        **versions,
    }


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Names the inputs that differ, with their values where these are short: "k: 5 then, 3 now"; "" where none does."""
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return listed((_described(name, then.get(name), now.get(name)) for name in names), _MAX_LISTED_DIFFERENCES)


def on_other_ranks(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of another number of ranks, with those of now where they may differ between numbers of ranks."""
    return {
        name: now.get(name) if _same_on_ranks(name, value, now.get(name)) else value for name, value in then.items()
    }


def _same_on_ranks(name: str, *values: Any) -> bool:
    if name in _OF_RANKS:
        return len({value is None for value in values}) == 1
    if name == "device":
        return len({re.sub(r":\d+", "", str(value)) for value in values}) == 1
    try:
        return name in _ROUNDED and math.isclose(*map(float, values), rel_tol=_SAME_LOSS)
    except (TypeError, ValueError):
        return False


def _described(name: str, *values: Any) -> str:
    then, now = (
        "none" if value is None else json.dumps(value, ensure_ascii=False).strip('"').replace('"', "")
        for value in values
    )
    return name if max(len(then), len(now)) > _MAX_SHOWN_LENGTH else f"{name}: {then} then, {now} now"


def _digest(values: Any) -> str:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return f"{array.dtype}{array.shape}{zlib.crc32(np.ascontiguousarray(array).tobytes()):08x}"
