"""The state dict of an optimizer in what people have: a live one, a dict, a file or folder with one inside."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvpspec.checkpoint.formats.torch_pickle import Trust
from hvpspec.checkpoint.optimizers.partitioned import refuse_zero, refuse_zero_file, refuse_zero_folder
from hvpspec.checkpoint.read import read_content
from hvpspec.errors import CheckpointError, InputError
from hvpspec.wording import listed

_NEXT_TO_A_MODEL = ("optimizer.pt", "optimizer.bin", "optimizer_0")  # of the Trainer of Hugging Face, and Accelerate
_MAX_DEPTH = 5  # of keys and lists around a state dict


@dataclass(frozen=True)
class SavedOptimizer:
    """The state dict of an optimizer.

    place: what messages call it. groups: the options of each parameter group that has parameters. members: their keys
    in each group, numbers or names. names: those of the parameters, key by key, where the file has them. state: by key.
    Keys are texts, whatever the file has.
    """

    place: str
    groups: tuple[Mapping[str, Any], ...]
    members: tuple[tuple[str, ...], ...]
    names: Mapping[str, str]
    state: Mapping[str, Mapping[str, Any]]

    @property
    def keys(self) -> list[str]:
        """Those of all parameters, in the optimizer's order."""
        return [key for members in self.members for key in members]

    def group(self, key: str) -> Mapping[str, Any]:
        """The options for a parameter."""
        return next(group for group, members in zip(self.groups, self.members, strict=True) if key in members)

    def moments(self, key: str) -> Mapping[str, Any]:
        """The state of a parameter; empty for one that was never given a gradient."""
        return self.state.get(key, {})


def saved_optimizer(source: Any, trust: Trust | None = None) -> SavedOptimizer:
    """From a torch.optim.Optimizer, what its state_dict() returns, or the path of a file or folder that has that.

    Raises InputError where there is none, or more than one; CheckpointError where a file cannot be read safely.
    """
    if isinstance(source, torch.optim.Optimizer):
        return _normal(source.state_dict(), f"the optimizer ({type(source).__name__})")
    if isinstance(source, Mapping):
        return _only(source, "the optimizer's state dict")
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(
            "expected a torch.optim optimizer, its state dict, or the path of a file that holds it; got "
            f"{type(source).__name__}."
        )
    path = Path(source)
    refuse_zero_file(path)
    for file in _files(path):
        content = read_content(file, trust)
        if next(_found(content), None) is not None:
            return _only(content, str(file))
    refuse_zero_folder(path)
    raise InputError(
        f"{path} holds no state of an optimizer; give the file that does, such as optimizer.pt (--optimizer), or one "
        'saved as torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path).'
    )


def _files(path: Path) -> Iterator[Path]:
    """Where the state may be: in the path itself, or next to the model in a directory of Hugging Face."""
    distributed = (path / ".metadata").is_file()
    if not path.is_dir() or distributed:
        yield path
    folders = [path, path.parent] if path.is_dir() else [path.parent]
    for folder in folders:
        if (path.is_dir() and not distributed) or (folder / "config.json").is_file():
            yield from (folder / name for name in _NEXT_TO_A_MODEL if (folder / name).exists())


def _only(content: Any, place: str) -> SavedOptimizer:
    """The one state dict in some content."""
    refuse_zero(content, place)
    found = dict(_found(content))
    if not found:
        raise InputError(
            f"{place} is no state dict of an optimizer: it lacks state and param_groups; give what "
            "optimizer.state_dict() returns."
        )
    if len(found) > 1:
        raise InputError(
            f"{place} holds the states of {len(found)} optimizers ({listed(found)}); load it, and give the state dict "
            "of one of them."
        )
    ((at, state),) = found.items()
    return _normal(state, f"{place} ({at})" if at else place)


def _found(content: Any, at: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every state dict of an optimizer, with the keys that lead to it."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(content, Mapping):
        if _is_state_dict(content):
            yield at, content
            return
        inner = [(str(name), value) for name, value in content.items()]
    elif isinstance(content, (list, tuple)):
        inner = [(str(number), value) for number, value in enumerate(content)]
    else:
        return
    for name, value in inner:
        yield from _found(value, f"{at}.{name}" if at else name, depth + 1)


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    if isinstance(content.get("state"), Mapping) and isinstance(content.get("param_groups"), (list, tuple, Mapping)):
        return True
    return any(isinstance(name, str) and name.startswith("param_groups.") for name in content)


def _normal(content: Mapping[str, Any], place: str) -> SavedOptimizer:
    """With keys and groups in one form, of the several that torch writes."""
    if "param_groups" not in content:
        content = _nested(content)
    groups = content["param_groups"]
    if isinstance(groups, Mapping):  # torch.distributed.checkpoint has lists as dicts of positions
        numbered = {int(position): group for position, group in groups.items() if str(position).isdecimal()}
        groups = [numbered[position] for position in sorted(numbered)]
    state = {str(key): entry for key, entry in content.get("state", {}).items() if isinstance(entry, Mapping)}
    options: list[dict[str, Any]] = []
    members: list[tuple[str, ...]] = []
    names: dict[str, str] = {}
    for group in groups:
        keys = group.get("params") if isinstance(group, Mapping) else None
        if not isinstance(keys, (list, tuple)):
            raise CheckpointError(f"{place}: a group of its parameters does not say which they are.")
        if not keys:
            continue
        options.append({name: value for name, value in group.items() if name not in ("params", "param_names")})
        members.append(tuple(str(key) for key in keys))
        own = keys if all(isinstance(key, str) for key in keys) else group.get("param_names")
        if isinstance(own, (list, tuple)) and len(own) == len(keys):
            names.update(zip(members[-1], map(str, own), strict=True))
    if not members:
        raise InputError(f"{place} has no parameters; give the state of an optimizer that has made a step.")
    return SavedOptimizer(place, tuple(options), tuple(members), names if _all(names, members) else {}, state)


def _all(names: Mapping[str, str], members: Sequence[tuple[str, ...]]) -> bool:
    return all(key in names for keys in members for key in keys)


def _nested(content: Mapping[str, Any]) -> dict[str, Any]:
    """From "state.fc.weight.exp_avg" and "param_groups.fc.weight.lr", as torch.distributed writes a flat state dict."""
    state: dict[str, dict[str, Any]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for name, value in content.items():
        kind, _, rest = name.partition(".")
        parameter, _, entry = rest.rpartition(".")
        if kind in ("state", "param_groups") and parameter:
            (state if kind == "state" else groups).setdefault(parameter, {})[entry] = value
    return {"state": state, "param_groups": [{**options, "params": [name]} for name, options in groups.items()]}


def number(value: Any) -> float | None:
    """An option or a count of steps, which may be a tensor; None for anything else."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 and not value.is_complex() else None
    return float(value) if isinstance(value, (int, float)) else None
