"""Loads a state dict through torch, with the modules' own loading code, and sees what has arrived.

A module may rename, split or convert entries when it loads (hooks, `_load_from_state_dict`, `load_state_dict`), so that
names and shapes in a file need not be those of the model.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hvpspec.checkpoint.formats.files import one_line
from hvpspec.checkpoint.matching import COUNTERS, Fit, names_in_model, tied, versions_in_model
from hvpspec.checkpoint.state_dict import EXTRA_STATE, SavedState
from hvpspec.checkpoint.undo import ModelState


@dataclass(frozen=True)
class Way:
    """A way to give what a file holds to a model.

    entries: by the names that torch is given. origin: {such a name: the name in the file}. versions: as in SavedState.
    """

    entries: dict[str, Any]
    origin: dict[str, str]
    versions: Mapping[str, Mapping[str, Any]] | None


@dataclass(frozen=True)
class Answer:
    """What torch says after loading: names in the model, names in the file, and the error where there was one."""

    missing: list[str]
    unexpected: list[str]
    error: str | None = None

    @property
    def complaints(self) -> int:
        """0: everything was loaded."""
        return len(self.missing) + len(self.unexpected) + (self.error is not None)


def as_saved(saved: SavedState) -> Way:
    """Under the names that the file has."""
    entries = {**saved.tensors, **saved.others}
    return Way(entries, {name: name for name in entries}, saved.versions)


def fitted(saved: SavedState, fit: Fit, model: nn.Module) -> Way:
    """Under the model's names, where the file's have prefixes or wrappers that the model has not."""
    modules = [name for name, _ in model.named_modules(remove_duplicate=False)]
    content = {**saved.tensors, **saved.others}
    names = names_in_model(fit, content, modules)
    versions = saved.versions
    if versions is not None and any(entry != name for entry, name in names.items()):
        versions = versions_in_model(fit, versions, modules)
    return Way({names[entry]: content[entry] for entry in content}, {name: e for e, name in names.items()}, versions)


def as_level(level: Any) -> Way:
    """A level of a file as it is, for models whose state dict is nested."""
    entries = dict(level) if isinstance(level, Mapping) else {}
    return Way(entries, {name: name for name in entries}, None)


def loads_itself(model: nn.Module) -> bool:
    """Whether a module has loading code that is not torch's own."""
    return overrides_loading(model) or any(map(_has_own_code, model.modules()))


def overrides_loading(model: nn.Module) -> bool:
    """Whether the model as a whole has its own `load_state_dict`."""
    return "load_state_dict" in vars(model) or type(model).load_state_dict is not nn.Module.load_state_dict


def _has_own_code(module: nn.Module) -> bool:
    hooks = (getattr(module, name, None) for name in ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"))
    code: Any = getattr(module, "_load_from_state_dict", nn.Module._load_from_state_dict)
    return (
        any(hooks)
        or not str(code.__module__).startswith("torch.nn.modules.")
        or type(module).set_extra_state is not nn.Module.set_extra_state
    )


def load(model: nn.Module, way: Way, expected: Mapping[str, Any]) -> Answer:
    """Loads, and says what is missing and unexpected; what need not be there, or is there under another name, is not.

    The model may be left with a part of the entries where there is an error. expected: the model's state dict.
    """
    own = loads_itself(model)  # such code may change the tensors that it is given
    state = OrderedDict(
        (name, entry.clone() if own and isinstance(entry, Tensor) else entry) for name, entry in way.entries.items()
    )
    if way.versions is not None:
        state._metadata = OrderedDict((name, dict(entry)) for name, entry in way.versions.items())  # type: ignore[attr-defined]
    try:
        said = _torchs_answer(model, state)
    except Exception as error:  # a module's own code may fail in any way
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        return Answer([], [], f"{kind}{one_line(error)}")
    missing = list(getattr(said, "missing_keys", ()))
    return Answer(
        _needed(missing, expected), _unknown(list(getattr(said, "unexpected_keys", ())), way, model, expected)
    )


def _torchs_answer(model: nn.Module, state: Mapping[str, Any]) -> Any:
    if not overrides_loading(model):
        return model.load_state_dict(state, strict=False)  # which says what is missing and unexpected
    takes = inspect.signature(model.load_state_dict).parameters.values()
    if not any(one.name == "strict" or one.kind is one.VAR_KEYWORD for one in takes):
        return model.load_state_dict(state)
    try:
        return model.load_state_dict(state, strict=True)  # which need not say anything
    except Exception:
        said = model.load_state_dict(state, strict=False)
        if not hasattr(said, "missing_keys"):
            raise
        return said


def _needed(missing: list[str], expected: Mapping[str, Any]) -> list[str]:
    """Without those that are loaded under another name, BatchNorm's counter, which old files lack, and extra states of
    which there are none. Of several names of one tensor, the first."""
    absent = set(missing)
    by_name = {name: names for names in tied(expected) for name in names}
    found = []
    for name in missing:
        others = by_name.get(name, [name])
        nothing = name.endswith(EXTRA_STATE) and _is_nothing(expected.get(name))
        if not name.endswith(COUNTERS) and not nothing and name == others[0] and absent.issuperset(others):
            found.append(name)
    return found


def _is_nothing(state: Any) -> bool:
    return state is None or (state.numel() == 0 if isinstance(state, Tensor) else state in ({}, [], (), b""))


def _unknown(unexpected: list[str], way: Way, model: nn.Module, expected: Mapping[str, Any]) -> list[str]:
    """The names in the file, without buffers that the model makes itself, and counters."""
    made = {name for name, _ in model.named_buffers(remove_duplicate=False) if name not in expected}
    return [
        way.origin.get(name, name)
        for name in unexpected
        if isinstance(entry := way.entries.get(name), Tensor)
        and name not in made
        and not (entry.numel() == 1 and name.endswith(COUNTERS))
    ]


# --- what has arrived -----------------------------------------------------------------------------------------------


def kept_values(
    model: nn.Module, load_again: Callable[[], Answer], before: ModelState, way: Way, missing: list[str]
) -> list[str]:
    """Names of parameters and saved buffers that still depend on the values the model was built with.

    Called after loading, with what is known to be missing. A tensor that is not what the file holds under its name may
    come from other entries, by the model's own code: it is loaded again over other values, and must be the same.
    Raises what `load_again` raises. Where a name is returned, the model is to be loaded again or restored.
    """
    now = held_tensors(model)
    fine = {id(now[name]) for name in now if name in missing or _arrived(now[name], way.entries.get(name))}
    first = {
        name: tensor.detach().clone()
        for name, tensor in now.items()
        if id(tensor) not in fine and not name.endswith(COUNTERS)
    }
    if not first:
        return []
    before.restore()
    built = held_tensors(model)
    for name in first.keys() & built.keys():
        if not is_lazy(built[name]):
            built[name].data.copy_(_other(built[name].data))
    load_again()
    again = held_tensors(model)
    return [name for name, tensor in first.items() if name not in again or not _same(tensor, again[name])]


def held_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters, and the buffers that a state dict has, under all their names."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for prefix, module in model.named_modules(remove_duplicate=False):
        made: Any = getattr(module, "_non_persistent_buffers_set", ())
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if name not in made:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def _arrived(tensor: Tensor, given: Any) -> bool:
    if not isinstance(given, Tensor) or given.is_meta or is_lazy(tensor) or given.numel() != tensor.numel():
        return False
    dense = given if given.layout == torch.strided else given.to_dense()
    return _same(tensor, dense.reshape(tensor.shape).to(tensor.device, tensor.dtype))


def _same(tensor: Tensor, other: Tensor) -> bool:
    """With NaN equal to NaN."""
    tensor, other = tensor.detach(), other.detach()
    if tensor.shape != other.shape or tensor.dtype != other.dtype:
        return False
    return torch.equal(tensor, other) or bool(((tensor == other) | ((tensor != tensor) & (other != other))).all())


def _other(values: Tensor) -> Tensor:
    """Values of which none is the same."""
    if values.dtype == torch.bool:
        return ~values
    return torch.where(values == 1, 2, 1).to(values.dtype)
