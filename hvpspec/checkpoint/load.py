"""Loads a checkpoint into a model, completely or not at all."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hvpspec.checkpoint.dtypes import convert, dense, dequantised, of_another_type, precision
from hvpspec.checkpoint.formats.huggingface import names_by_transformers
from hvpspec.checkpoint.formats.torch_pickle import Trust
from hvpspec.checkpoint.matching import Fit, fitting_parts, possible_fits, tied
from hvpspec.checkpoint.own_code import (
    Answer,
    Way,
    as_level,
    as_saved,
    fitted,
    held_tensors,
    kept_values,
    load,
    loads_itself,
    overrides_loading,
)
from hvpspec.checkpoint.read import read_levels, read_model, read_state
from hvpspec.checkpoint.state_dict import EXTRA_STATE, SavedState
from hvpspec.checkpoint.undo import ModelState
from hvpspec.errors import CheckpointError, CheckpointWarning
from hvpspec.wording import listed

_MAX_LISTED_NAMES = 20  # in a message
_ABOUT_VALUES = ("different type", "tied in the model but different in the file")  # complaints on entries that match

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
        Names "package.module.Class" of objects that the file may hold besides tensors and plain values. Functions, and
        classes of Python itself that are not plain data, cannot be allowed. A class of an installed package that is not
        known to hold data is allowed with a CheckpointWarning.
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
    No code from the file is run, unless it is trusted; the program of a TorchScript archive is the model where all of
    it is known to compute with tensors and nothing else. Prefixes that wrappers leave in names (``module.``,
    ``_orig_mod.``, ``_fsdp_wrapped_module.``, …) are ignored, and so is a prefix that all names share (``model.``),
    where more names match without it.

    What the model's own loading code makes of a file is loaded, as by ``model.load_state_dict``: hooks and methods that
    rename, split or convert entries see the names, versions and extra states of the file. A trainable parameter that
    then still depends on the values the model was built with is refused, a frozen one named in a CheckpointWarning.

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
    nested = key is None and overrides_loading(model)
    try:
        saved = read_state(path, key, trust)
    except CheckpointError:
        if not nested:
            raise
        saved = SavedState({}, {}, None, "")  # the model may know the levels of the file itself
    saved = replace(saved, tensors=dequantised(path, saved.tensors))
    before = ModelState(model)
    try:
        target = _Target(path, model, _state_of(path, model), before)
        said = _load(target, saved, strict, lambda: read_levels(path, trust) if nested else [])
    except BaseException:
        before.restore()
        raise
    for warning in said:
        warnings.warn(warning, stacklevel=2)
    return model


@dataclass(frozen=True)
class _Target:
    """The model that a file is loaded into, its state dict, and all that it held before."""

    path: Path
    model: nn.Module
    expected: Mapping[str, Any]
    before: ModelState

    def __str__(self) -> str:
        return f"the model ({type(self.model).__name__})"


def _state_of(path: Path, model: nn.Module) -> Mapping[str, Any]:
    """The model's state dict, where it is one that a file's entries can be copied to."""
    expected = model.state_dict()
    expected = expected if isinstance(expected, Mapping) else {}
    packed = [name for name, own in expected.items() if isinstance(own, tuple) and not name.endswith(EXTRA_STATE)]
    if packed:
        raise CheckpointError(
            f"the model ({type(model).__name__}) is quantised ({listed(packed, _MAX_LISTED_NAMES)}), so that {path} "
            "cannot be loaded into it; build the network from before quantisation."
        )
    if empty := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise CheckpointError(
            f"the model ({type(model).__name__}) is built on the meta device, where tensors have no values "
            f"({listed(empty, _MAX_LISTED_NAMES)}), so that {path} cannot be loaded into it; build it on the CPU."
        )
    return expected


def _load(
    target: _Target, saved: SavedState, strict: bool, levels: Callable[[], Sequence[Any]]
) -> list[CheckpointWarning]:
    """Loads, and returns what the user should know. Where it raises CheckpointError, the model is to be restored.

    levels: reads the levels of the file, which are tried last.
    """
    model, expected = target.model, target.expected
    buffers = dict(model.named_buffers())
    fits = possible_fits(saved.tensors, expected, buffers)
    if fits[0].missing or fits[0].unexpected:
        renamed = names_by_transformers(model, target.path, saved.tensors)
        if renamed is not None:
            saved, fits = replace(saved, tensors=renamed), possible_fits(renamed, expected, buffers)
    fit = fits[0]
    way, complaints = _comparable(fitted(saved, fit, model), expected, model)
    unmatched = {"missing": fit.missing, "unexpected": fit.unexpected}
    if loads_itself(model) and (any(unmatched.values()) or complaints["different shape"] or not fit.matched):
        answers = []
        by_name = [as_saved(saved), *(fitted(saved, one, model) for one in fits)]
        for candidate in itertools.chain(by_name, (as_level(level) for level in _lazily(levels))):
            loaded, answer = _attempt(target, candidate)
            if not answer.complaints:
                return _finish(target, loaded, answer, strict)
            answers.append(answer)
            target.before.restore()
        said = min(answers, key=lambda answer: (answer.error is not None, answer.complaints))
        if said.error is None:
            unmatched = {"missing": said.missing, "unexpected": said.unexpected}
        elif not complaints["different shape"]:
            unmatched["its own loading code fails"] = [said.error]
    if strict or not fit.matched:
        complaints = {**unmatched, **complaints}
    if any(complaints.values()) or not fit.matched:
        advice = _advice(fit, complaints, fitting_parts(saved.tensors, expected, buffers), saved.key)
        raise _unfit(target, complaints, advice)
    loaded, answer = _attempt(target, way)
    if answer.error is not None:
        raise CheckpointError(f"{target.path} cannot be loaded into {type(model).__name__} ({answer.error}).")
    if strict and answer.complaints:
        said_by_torch = {"missing": answer.missing, "unexpected": answer.unexpected}
        raise _unfit(target, said_by_torch, "its load_state_dict does not take what its state_dict gives")
    return _finish(target, loaded, answer, strict)


def _lazily(make: Callable[[], Sequence[Any]]) -> Iterator[Any]:
    yield from make()


@dataclass(frozen=True)
class _Loaded:
    """What was given to the model, the dtype that it was converted to for that, and what the user should know."""

    way: Way
    dtype: torch.dtype | None
    warned: list[CheckpointWarning]


def _attempt(target: _Target, way: Way) -> tuple[_Loaded, Answer]:
    """Loads in one way, in a dtype that holds all values of the file."""
    way, complaints = _comparable(way, target.expected, target.model)
    loaded = _Loaded(way, *precision(target.path, *_counterparts(way.entries, target)))
    if refused := [f"{what}: {listed(complaints[what])}" for what in _ABOUT_VALUES if complaints[what]]:
        return loaded, Answer([], [], "; ".join(refused))
    return loaded, _repeat(target, loaded)


def _repeat(target: _Target, loaded: _Loaded) -> Answer:
    if loaded.dtype is not None:
        convert(target.model, loaded.dtype)
    return load(target.model, loaded.way, target.expected)


def _counterparts(entries: Mapping[str, Any], target: _Target) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a file, and for each one in the model: its own, or the least precise where it is not known which
    parameter it becomes."""
    found = dict(_tensors(entries))
    own = {name: tensor for name in found if isinstance(tensor := target.expected.get(name), Tensor)}
    if len(own) < len(found):
        others = [tensor for name, tensor in held_tensors(target.model).items() if name not in own]
        floating = [tensor for tensor in others if not is_lazy(tensor) and tensor.is_floating_point()]
        if floating:
            coarsest = min(floating, key=lambda tensor: tensor.dtype.itemsize)
            own = {**dict.fromkeys(found, coarsest), **own}
    return {name: found[name] for name in own}, own


def _tensors(entries: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Tensor]]:
    """Those at every level."""
    for name, value in entries.items():
        if isinstance(value, Tensor):
            yield f"{above}{name}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{above}{name}.")


def _finish(target: _Target, loaded: _Loaded, answer: Answer, strict: bool) -> list[CheckpointWarning]:
    """Sees that every value of the model is the file's. Those that are not are refused, or named in a warning."""
    model = target.model
    kept = kept_values(model, lambda: _repeat(target, loaded), target.before, loaded.way, answer.missing)
    if kept:
        target.before.restore()
        _repeat(target, loaded)
        trained = [name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
        if strict and (random := [name for name in kept if name in trained]):
            raise _unfit(
                target,
                {"missing": random},
                "its own loading code leaves the values that it was built with there; give the checkpoint that has "
                "them, or set requires_grad=False where they are not trained",
            )
    said = list(loaded.warned)
    if absent := [*answer.missing, *kept]:
        found = f"{target.path} does not hold {listed(absent, _MAX_LISTED_NAMES)}"
        said.append(CheckpointWarning("missing", found, "there the model keeps the values that it was built with"))
    return said


def _unfit(target: _Target, complaints: Mapping[str, list[str]], advice: str) -> CheckpointError:
    said = "; ".join(f"{what}: {listed(names, _MAX_LISTED_NAMES)}" for what, names in complaints.items() if names)
    return CheckpointError(f"{target.path} does not fit {target}: {said} ({advice}).")


def _comparable(way: Way, expected: Mapping[str, Any], model: nn.Module) -> tuple[Way, dict[str, list[str]]]:
    """With entries that the model has by name in a form to compare and load, and which of them do not fit, and why."""
    entries = {
        name: entry
        for name, entry in way.entries.items()
        if isinstance(entry, Tensor) and isinstance(expected.get(name), Tensor) and not name.endswith(EXTRA_STATE)
    }
    other_shape = [
        f"{name} (file {tuple(tensor.shape)}, model {tuple(expected[name].shape)})"
        for name, tensor in entries.items()
        if not is_lazy(expected[name]) and not _shapes_fit(tensor.shape, expected[name].shape)
    ]
    complaints: dict[str, list[str]] = {"different shape": other_shape, **{about: [] for about in _ABOUT_VALUES}}
    if other_shape:  # it is not known how much memory the values would take
        return way, complaints
    entries = dense(entries)
    complaints[_ABOUT_VALUES[0]] = of_another_type(entries, model, expected)
    complaints[_ABOUT_VALUES[1]] = _not_tied(entries, expected)
    return replace(way, entries={**way.entries, **entries}), complaints


def _advice(fit: Fit, complaints: Mapping[str, list[str]], parts: list[str], at: str) -> str:
    """What to do about a file that does not fit. parts: keys in the file under which the entries do fit."""
    if parts:
        keys = " or ".join(f"--key {at}.{part}" if at else f"--key {part}" for part in parts)
        verb = "each fit" if len(parts) > 1 else "fit"
        return f"the entries under {' and '.join(parts)} {verb}: add {keys}"
    if complaints.get("different type"):
        return "of a quantised model, give the checkpoint from before quantisation"
    if _new_weight_norm(complaints):
        return (
            "the file is of torch.nn.utils.parametrizations.weight_norm and the model of torch.nn.utils.weight_norm, "
            "the older one: use the newer one in the function of --model"
        )
    return "check that --model builds the network that was saved" if fit.matched else "they have no name in common"


def _shapes_fit(given: torch.Size, own: torch.Size) -> bool:
    """Whether torch copies one to the other. Before version 0.4 it saved single numbers as vectors."""
    return given == own or (given == (1,) and own == ())


def _new_weight_norm(complaints: Mapping[str, list[str]]) -> bool:
    """Whether the file has the newer names of weight normalisation, and the model the older ones."""
    newer = any(".parametrizations." in f".{name}" for name in complaints.get("unexpected", []))
    return newer and any(name.endswith(("_g", "_v")) for name in complaints.get("missing", []))


def _not_tied(entries: Mapping[str, Tensor], expected: Mapping[str, Any]) -> list[str]:
    """Names of one tensor of the model for which the file has different tensors."""
    return [
        " and ".join(present)
        for names in tied(expected)
        if len(present := [name for name in names if name in entries]) > 1
        and not all(torch.equal(entries[present[0]], entries[name]) for name in present[1:])
    ]
