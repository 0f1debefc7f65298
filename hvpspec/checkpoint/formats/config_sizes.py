"""Whether the config.json of a Hugging Face directory describes a model of about the size of its weights.

A number in it costs nothing, and what is built from it may cost anything: a billion labels are a dict of a billion
entries before the first parameter is made. It is compared with the weights first, then without memory for parameters.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.checkpoint.formats.files import one_line
from hvpspec.checkpoint.formats.limits import allowance
from hvpspec.errors import CheckpointError

_ALWAYS_ALLOWED = 1 << 18  # however few values the weights have
_NO_COUNTS = re.compile(r"(^|_)(ids?|token|seed|theta|base|freq|factor|rate|version|limit)(_|$)")
_POSITIONS = re.compile(r"position|length|len$|seq|ctx|context|window|tokens")
_MAX_POSITIONS = 1 << 24  # for which a model need not have weights

_MODULES_PER_WEIGHT = 100
_MIN_MODULES = 10_000  # that a model may have, however few its weights are


class _TooManyModules(Exception):
    pass


def check_numbers(content: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Raises CheckpointError for a number that counts more of something than the weights have values."""
    held = sum(tensor.numel() for tensor in weights.values())
    left = [("", content)]
    while left:
        name, value = left.pop()
        if isinstance(value, Mapping):
            left.extend((str(key), entry) for key, entry in value.items())
        elif isinstance(value, list):
            left.extend((name, entry) for entry in value)
        elif isinstance(value, int | float) and not _NO_COUNTS.search(name):
            largest = _MAX_POSITIONS if _POSITIONS.search(name) else max(held, _ALWAYS_ALLOWED)
            if abs(value) > largest and value != float("inf"):
                raise CheckpointError(
                    f"{folder}: config.json says {one_line(name, 80)} = {value:,}, but the weights have {held:,} "
                    "values in all; the two do not belong together: give "
                    "the config.json that was saved with the weights."
                )


def check_size(architecture: Any, config: Any, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuses a config.json that describes a far larger model than the weights fill, before any memory is allocated."""
    held = sum(tensor.numel() for tensor in weights.values())
    layers = getattr(config, "num_hidden_layers", None)
    size = f"{layers:,} layers" if isinstance(layers, int) and layers > len(weights) else None
    if size is None:
        try:
            with torch.device("meta"), _few_modules(_MIN_MODULES + _MODULES_PER_WEIGHT * len(weights)):
                model: nn.Module = architecture(config)
        except _TooManyModules as error:
            size = f"more than {error} modules"
        except Exception as error:
            raise CheckpointError(
                f"{folder}: {architecture.__name__} cannot be built from its config.json ({type(error).__name__}: "
                f"{one_line(error)}); correct config.json, or give the one that was saved with the weights."
            ) from error
        else:
            declared = sum(parameter.numel() for parameter in model.parameters())
            made = sum(buffer.numel() * buffer.itemsize for buffer in model.buffers())
            if declared > 2 * held or made > allowance(sum(tensor.nbytes for tensor in weights.values())):
                size = f"{declared:,} parameters" if declared > 2 * held else f"{made:,} bytes of buffers"
    if size is not None:
        raise CheckpointError(
            f"{folder}: config.json describes a model of {size}, but there are {len(weights):,} weight tensors with "
            f"{held:,} values in all; the two do not belong together: give "
            "the config.json that was saved with the weights."
        )


@contextlib.contextmanager
def _few_modules(limit: int) -> Iterator[None]:
    """Raises _TooManyModules where more modules than that become part of others."""
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > limit:
            raise _TooManyModules(f"{limit:,}")

    hook = nn.modules.module.register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()
