"""Matching a state dict with a model by name, and loading it whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from hvpspec.checkpoint.read import read_checkpoint
from hvpspec.errors import CheckpointError

_WRAPPERS = frozenset({"module", "_orig_mod"})  # DataParallel and DDP; torch.compile
_LISTED = 20  # names that a message spells out

Model = TypeVar("Model", bound=nn.Module)


def load_checkpoint(
    path: str | os.PathLike[str], model: Model, *, key: str | None = None, strict: bool = True
) -> Model:
    """Loads the parameters and buffers in a checkpoint file into `model`, in place, and returns it.

    path: a `.pt`/`.pth` file (read with weights_only=True) or a safetensors file.
    key: where the state dict is nested; None looks under the usual keys ("state_dict", "model", …).
    strict: every entry of the model and of the file must have its partner; False loads those that have.

    Prefixes that wrappers leave (`module.`, `_orig_mod.`), at any level, are ignored when names are matched.
    Raises CheckpointError, listing missing, unexpected and misshapen entries by name; the model is then unchanged.
    """
    found = read_checkpoint(path, key)
    expected = model.state_dict()
    matched, unexpected = match_names(found, expected)

    by_storage: dict[object, list[str]] = {}
    for name, tensor in expected.items():
        if isinstance(tensor, Tensor):
            by_storage.setdefault(_identity(tensor, name), []).append(name)
    missing = [
        names[0]
        for names in by_storage.values()
        # An entry tied to one that is there comes with it. Old files lack the counter that BatchNorm only trains with.
        if not any(name in matched for name in names) and not names[0].endswith("num_batches_tracked")
    ]
    misshapen = [
        f"{name} (file {tuple(found[entry].shape)}, model {tuple(expected[name].shape)})"
        for name, entry in matched.items()
        if found[entry].shape != expected[name].shape
    ]
    torn = [
        " and ".join(present)
        for names in by_storage.values()
        if len(present := [name for name in names if name in matched]) > 1
        and not all(torch.equal(found[matched[present[0]]], found[matched[name]]) for name in present[1:])
    ]

    complaints = {"misshapen": misshapen, "tied in the model but different in the file": torn}
    if strict or not matched:
        complaints = {"missing": missing, "unexpected": unexpected, **complaints}
    if any(complaints.values()) or not matched:
        said = "; ".join(f"{what}: {_list(names)}" for what, names in complaints.items() if names)
        remedy = "check that --model builds the network that was saved" if matched else "no name in common"
        raise CheckpointError(f"{path} does not fit the model ({type(model).__name__}): {said} ({remedy}).")
    model.load_state_dict({name: found[entry] for name, entry in matched.items()}, strict=False)
    return model


def match_names(found: Mapping[str, Tensor], expected: Mapping[str, object]) -> tuple[dict[str, str], list[str]]:
    """{model's name: file's name} and the file's names without a partner; wrapper prefixes are ignored."""
    plain: dict[str, list[str]] = {}
    for name in expected:
        plain.setdefault(_unwrapped(name), []).append(name)
    matched: dict[str, str] = {}
    unexpected = []
    # Exact matches first, so that a wrapped name never takes the place of an exact one.
    for entry in sorted(found, key=lambda entry: entry not in expected):
        candidates = [entry] if entry in expected else plain.get(_unwrapped(entry), [])
        if len(candidates) == 1 and candidates[0] not in matched:
            matched[candidates[0]] = entry
        else:
            unexpected.append(entry)
    return matched, unexpected


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _identity(tensor: Tensor, name: str) -> object:
    """Equal for tied entries: same memory, same shape."""
    if tensor.numel() == 0 or tensor.is_meta:
        return name
    return (tensor.device, tensor.data_ptr(), tensor.shape)


def _list(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
