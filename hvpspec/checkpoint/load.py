"""Loads a checkpoint into a model, completely or not at all."""

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

from hvpspec.checkpoint.dtypes import dense, dequantised, of_another_type, without_rounding
from hvpspec.checkpoint.formats.files import one_line
from hvpspec.checkpoint.formats.torch_pickle import Trust
from hvpspec.checkpoint.matching import Fit, fitting_parts, match_names, tied
from hvpspec.checkpoint.read import read_model, read_state
from hvpspec.errors import CheckpointError, CheckpointWarning
from hvpspec.wording import listed

_MAX_LISTED_NAMES = 20  # in a message

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
    """Loads the parameters and buffers of a checkpoint into a model, in place.

    Parameters
    ----------
    path : str or path-like
        A file of torch.save (a state dict, nested or not; a training checkpoint; Lightning's `.ckpt`), a safetensors
        file or the index of several, a directory of Hugging Face or of torch.distributed.checkpoint, or a TorchScript
        or torch.export archive. The format is recognised by the content.
    model : nn.Module, optional
        The network that was saved. None builds the model that the checkpoint includes, as a Hugging Face directory and
        a TorchScript archive do, and a torch.export archive that is trusted.
    key : str, optional
        Where the state dict is nested, such as "ema" or "state_dict.ema". By default under one of the usual names
        ("state_dict", "model", …) or at the top.
    strict : bool, optional
        Whether every entry of the model must be in the file and the other way round. False loads the entries that both
        have; a CheckpointWarning names those of the model that keep their values.
    allow_classes : sequence of str, optional
        Names "package.module.Class" of objects that the file may hold besides tensors and plain values.
    trust_pickle : bool, optional
        Reads the file whatever it holds, which runs any code in it. With a CheckpointWarning.
    main_modules : sequence of module, optional
        Modules in which classes of the script that wrote the file (``__main__.Config``) are looked up.

    Returns
    -------
    nn.Module
        `model`, or the model that the checkpoint includes.

    Raises
    ------
    CheckpointError
        When the file is missing, damaged or of an unknown format; when it holds classes that are not allowed; and when
        it does not fit the model, with the names of missing and unexpected entries and of those with different shapes.
        The model is then unchanged.

    Warns
    -----
    CheckpointWarning
        Where the file or the model is converted to another dtype, and as described above.

    Notes
    -----
    No code from the file is run, unless it is trusted. Prefixes that wrappers leave in names (``module.``,
    ``_orig_mod.``, ``_fsdp_wrapped_module.``, …) are ignored, and so is a prefix that all names share (``model.``),
    where more names match without it.

    No value is rounded: a model in half precision is converted to the file's float32. Half-precision and quantised
    parameters in the file are converted to the model's dtype.

    Examples
    --------
    >>> import tempfile, torch, hvpspec
    >>> trained, model = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"epoch": 7, "state_dict": trained.state_dict()}, f"{folder}/last.pt")
    ...     model = hvpspec.load_checkpoint(f"{folder}/last.pt", model)
    >>> torch.equal(model.weight, trained.weight)
    True
    """
    trust = Trust(tuple(allow_classes), trust_pickle, tuple(main_modules))
    if model is None:
        return read_model(path, key, trust)
    path = Path(path)
    found, at = read_state(path, key, trust)
    expected = model.state_dict()
    _refuse_quantised(path, model, expected)
    buffers = dict(model.named_buffers())
    fit = match_names(found, expected, buffers)
    entries, complaints = _entries(path, {name: found[entry] for name, entry in fit.matched.items()}, model, expected)
    if strict or not fit.matched:
        complaints = {"missing": fit.missing, "unexpected": fit.unexpected, **complaints}
    if any(complaints.values()) or not fit.matched:
        said = "; ".join(f"{what}: {listed(names, _MAX_LISTED_NAMES)}" for what, names in complaints.items() if names)
        advice = _advice(fit, complaints, fitting_parts(found, expected, buffers), at)
        raise CheckpointError(f"{path} does not fit the model ({type(model).__name__}): {said} ({advice}).")
    if fit.missing:
        absent = f"{path} does not hold {listed(fit.missing, _MAX_LISTED_NAMES)}"
        done = "there the model keeps the values that it was built with"
        warnings.warn(CheckpointWarning("missing", absent, done), stacklevel=2)
    without_rounding(path, entries, model, expected)
    try:
        model.load_state_dict(entries, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path} cannot be loaded into {type(model).__name__} ({one_line(error)}).") from error
    return model


def _refuse_quantised(path: Path, model: nn.Module, expected: Mapping[str, Any]) -> None:
    packed = [name for name, own in expected.items() if isinstance(own, tuple)]
    if packed:
        raise CheckpointError(
            f"the model ({type(model).__name__}) is quantised ({listed(packed, _MAX_LISTED_NAMES)}), so that {path} "
            "cannot be loaded into it; build the network from before quantisation."
        )


def _entries(
    path: Path, entries: dict[str, Tensor], model: nn.Module, expected: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The matched entries as they are to be loaded, and those that do not fit, by what is wrong with them."""
    complaints = {
        "different shape": [
            f"{name} (file {tuple(tensor.shape)}, model {tuple(expected[name].shape)})"
            for name, tensor in entries.items()
            if not is_lazy(expected[name]) and tensor.shape != expected[name].shape
        ]
    }
    if complaints["different shape"]:  # it is not known how much memory the values would take
        return entries, complaints
    entries = dense(dequantised(path, entries))
    complaints["different type"] = of_another_type(entries, model, expected)
    complaints["tied in the model but different in the file"] = _not_tied(entries, expected)
    return entries, complaints


def _advice(fit: Fit, complaints: Mapping[str, list[str]], parts: list[str], at: str) -> str:
    """What to do about a file that does not fit. parts: keys in the file under which the entries do fit."""
    if parts:
        keys = " or ".join(f"--key {at}.{part}" if at else f"--key {part}" for part in parts)
        verb = "each fit" if len(parts) > 1 else "fit"
        return f"the entries under {' and '.join(parts)} {verb}: add {keys}"
    if complaints.get("different type"):
        return "of a quantised model, give the checkpoint from before quantisation"
    return "check that --model builds the network that was saved" if fit.matched else "they have no name in common"


def _not_tied(entries: Mapping[str, Tensor], expected: Mapping[str, Any]) -> list[str]:
    """Names of one tensor of the model for which the file has different tensors."""
    return [
        " and ".join(present)
        for names in tied(expected)
        if len(present := [name for name in names if name in entries]) > 1
        and not all(torch.equal(entries[present[0]], entries[name]) for name in present[1:])
    ]
