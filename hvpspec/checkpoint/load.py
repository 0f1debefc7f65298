"""Matching a state dict with a model by name, and loading it whole or not at all."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hvpspec.checkpoint.dtypes import dense, dequantised, of_another_kind, without_rounding
from hvpspec.checkpoint.formats.files import one_line
from hvpspec.checkpoint.formats.torch_pickle import Trust
from hvpspec.checkpoint.matching import fitting_parts, match_names, tied
from hvpspec.checkpoint.read import read_model, read_state
from hvpspec.errors import CheckpointError, CheckpointWarning
from hvpspec.wording import listed

_LISTED = 20  # names that a message spells out

Model = TypeVar("Model", bound=nn.Module)


@overload
def load_checkpoint(
    path: str | os.PathLike[str],
    model: Model,
    *,
    key: str | None = ...,
    strict: bool = ...,
    allow_classes: Sequence[str] = ...,
    trust_pickle: bool = ...,
    main_modules: Sequence[ModuleType] = ...,
) -> Model: ...


@overload
def load_checkpoint(
    path: str | os.PathLike[str],
    model: None = ...,
    *,
    key: str | None = ...,
    strict: bool = ...,
    allow_classes: Sequence[str] = ...,
    trust_pickle: bool = ...,
    main_modules: Sequence[ModuleType] = ...,
) -> nn.Module: ...


def load_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    key: str | None = None,
    strict: bool = True,
    allow_classes: Sequence[str] = (),
    trust_pickle: bool = False,
    main_modules: Sequence[ModuleType] = (),
) -> nn.Module:
    """Loads the parameters and buffers in a checkpoint into `model`, in place, and returns it.

    path: a file that torch.save wrote (nested or not, Lightning's too), safetensors (single or an index), a directory
        of Hugging Face or torch.distributed.checkpoint, a TorchScript or torch.export archive.
    model: None takes the model that the checkpoint brings: a Hugging Face directory, a TorchScript archive, or a
        torch.export archive that is trusted.
    key: where the state dict is nested, "ema" say; None looks under the usual keys ("state_dict", "model", …).
    strict: every entry of the model and of the file must have its partner; False loads those that have, and names what
        of the model stays as it was in a CheckpointWarning.
    allow_classes: "package.module.Class" of objects that the file may hold beside tensors.
    trust_pickle: reads the file whatever it holds, which runs its code; with a CheckpointWarning.
    main_modules: the modules in which classes of the script that wrote the file (`__main__.Config`) are looked for.

    Prefixes that wrappers leave (`module.`, `_orig_mod.`, `_fsdp_wrapped_module.` …), at any level, are ignored when
    names are matched, and so is one that all names share (`model.`), where that makes them match.
    No value is rounded: a model in half precision is raised to the file's float32. Half-precision and quantised
    parameters in a file are cast to the model's. Either way with a CheckpointWarning.
    Raises CheckpointError, listing missing, unexpected and misshapen entries by name; the model is then unchanged.
    """
    trust = Trust(tuple(allow_classes), trust_pickle, tuple(main_modules))
    if model is None:
        return read_model(path, key, trust)
    path = Path(path)
    found, at = read_state(path, key, trust)
    expected = model.state_dict()
    packed = [name for name, own in expected.items() if isinstance(own, tuple)]
    if packed:
        raise CheckpointError(
            f"the model ({type(model).__name__}) is quantised ({listed(packed, _LISTED)}), and {path} cannot be loaded "
            "into it; build the network as it was before quantisation."
        )
    buffers = dict(model.named_buffers())
    fit = match_names(found, expected, buffers)
    entries = {name: found[entry] for name, entry in fit.matched.items()}
    misshapen = [
        f"{name} (file {tuple(tensor.shape)}, model {tuple(expected[name].shape)})"
        for name, tensor in entries.items()
        if not is_lazy(expected[name]) and tensor.shape != expected[name].shape
    ]
    complaints = {"misshapen": misshapen}
    if not misshapen:  # only then is it known how much memory their values will take
        entries = dense(dequantised(path, entries))
        complaints["of another kind"] = of_another_kind(entries, model, expected)
        complaints["tied in the model but different in the file"] = _torn(entries, expected)
    if strict or not fit.matched:
        complaints = {"missing": fit.missing, "unexpected": fit.unexpected, **complaints}
    if any(complaints.values()) or not fit.matched:
        said = "; ".join(f"{what}: {listed(names, _LISTED)}" for what, names in complaints.items() if names)
        remedy = "check that --model builds the network that was saved" if fit.matched else "no name in common"
        if parts := fitting_parts(found, expected, buffers):
            keys = " or ".join(f"--key {at}.{part}" if at else f"--key {part}" for part in parts)
            remedy = f"what is under {' and '.join(parts)} fits {'each ' * (len(parts) > 1)}by itself: add {keys}"
        elif complaints.get("of another kind"):
            remedy = "of a quantised model, give the checkpoint from before quantisation"
        raise CheckpointError(f"{path} does not fit the model ({type(model).__name__}): {said} ({remedy}).")
    if fit.missing:
        found_not = f"{path} does not hold {listed(fit.missing, _LISTED)}"
        warnings.warn(
            CheckpointWarning("missing", found_not, "there the model keeps the values it was built with"), stacklevel=2
        )
    without_rounding(path, entries, model, expected)
    try:
        model.load_state_dict(entries, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path} cannot be loaded into {type(model).__name__} ({one_line(error)}).") from error
    return model


def _torn(entries: Mapping[str, Tensor], expected: Mapping[str, Any]) -> list[str]:
    """Names of one tensor of the model for which the file has several."""
    return [
        " and ".join(present)
        for names in tied(expected)
        if len(present := [name for name in names if name in entries]) > 1
        and not all(torch.equal(entries[present[0]], entries[name]) for name in present[1:])
    ]
