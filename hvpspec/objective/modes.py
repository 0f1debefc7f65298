"""Eval and training mode of the user's model, and what its modules keep as attributes: set, renewed, put back.

This runs before each batch of each product, over all modules, of which a small model may have as many as operations.
So what nearly every module has (no override of `train`, hooks that are empty, attributes that stay the same objects)
is settled in few steps; the rest is looked at one by one.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import is_
from typing import Any

from torch import Tensor, nn

from hvpspec.errors import InputError
from hvpspec.kernels.layouts import parts
from hvpspec.objective.live_model import modules_of, named_tensors
from hvpspec.raised import raised
from hvpspec.system.undoing import run_all, set_entry
from hvpspec.wording import listed

_DICTS = (dict, OrderedDict, defaultdict)  # hooks are in OrderedDicts
_CONTAINERS = frozenset({*_DICTS, list, deque, set})
_RESTORED_OTHERWISE = frozenset({"_parameters", "_buffers", "_modules", "training"})
_NEVER_CHANGED = frozenset({bool, int, float, str, type(None)})
_ABSENT = object()


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool = False) -> Iterator[Callable[[], None]]:
    """Eval or training mode, by the modules' own `train`; modes and attributes are as before when it ends.

    What the context gives is to be called before each evaluation: it forgets what the last one left in attributes.
    `train()` comes first: some modules cache in eval mode what depends on their parameters, and drop it in training.
    """
    modules = modules_of(model)
    held = _hold(modules)
    modes = [module.training for module in modules]
    plain = _only_set_an_attribute(modules)

    attributes = map(set_entry, map(vars, modules if plain else []), repeat("training"), modes)

    def as_before() -> None:
        for module, mode in () if plain else zip(modules, modes, strict=True):
            if module.training != mode:  # parents first: what they set in their children is set right after
                module.train(mode)
        held.restore()

    def afresh() -> None:
        held.restore()
        if plain:
            for module in modules:
                vars(module)["training"] = training
            return
        model.train()
        if not training:
            model.eval()

    try:
        afresh()
        yield afresh
    finally:
        run_all(attributes)
        try:
            as_before()
        except BaseException:  # an alarm, perhaps before anything was done
            as_before()
            raise


def _only_set_an_attribute(modules: Sequence[nn.Module]) -> bool:
    """Whether `train` and `eval` do no more than that, and it is an ordinary attribute."""
    classes: set[Any] = set(map(type, modules))
    for cls in classes:
        if cls.__setattr__ is not nn.Module.__setattr__ or hasattr(cls, "training"):
            return False
        if (cls.train, cls.eval) not in ((nn.Module.train, nn.Module.eval), _of_transformers()):
            return False
    return all(
        "training" in own and "train" not in own and "eval" not in own and not own.get("_use_kernels")
        for own in map(vars, modules)
    )


def _of_transformers() -> tuple[Any, Any]:
    """The methods of its PreTrainedModel, which do more only where kernels of its hub are used."""
    known: Any = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", nn.Module)
    return known.train, known.eval


def training_hint(model: nn.Module, evaluate: Callable[[], object]) -> str:
    """What to add to an error in eval mode; nothing where the loss fails in training mode, too.

    Detectors and Gaussian processes return their losses in training mode, and in eval mode predictions.
    """
    try:
        with in_mode(model, training=True):
            evaluate()
    except (Exception, SystemExit):
        return ""
    return "the model is in eval mode; in training mode this loss can be evaluated: train_mode=True or --train-mode"


def active_dropout(model: nn.Module) -> list[str]:
    """Names of the layers that are known to draw random numbers in training mode."""
    return [name for name, module in model.named_modules() if _drops(module)]


def _drops(module: nn.Module) -> bool:
    own: Any = module
    if isinstance(module, nn.RNNBase):
        return module.dropout > 0 and module.num_layers > 1
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if not re.search(r"Drop|StochasticDepth", type(module).__name__):
        return False
    rate = getattr(own, "p", getattr(own, "drop_prob", 0))  # of torch and torchvision; of timm and transformers
    return isinstance(rate, (int, float)) and rate > 0


def check_modes(model: nn.Module, *, dropout: bool = True) -> None:
    """Raises InputError where `train()` or `eval()` change the model's values, and for layers of dropout unless they
    are off or their random numbers fixed (`dropout`)."""
    if not dropout and (random := active_dropout(model)):
        raise InputError(
            f"in training mode the loss is random: dropout in {listed(random, 3)}; fix its random numbers with "
            "noise_seed=0 (--noise-seed 0), or build the model without it."
        )
    try:
        changed = changed_by_modes(model)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"the model's train() or eval() raised {raised(error)}; both have to work, as the mode is set for each "
            "evaluation, and put back."
        ) from error
    if changed:
        raise InputError(
            f"train() and eval() change the model's values ({listed(changed, 3)}), as layers that merge weights "
            "do, so that the loss in eval mode is another function of the parameters; turn the merging off."
        )


def changed_by_modes(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that `train()` or `eval()` change, as layers that merge weights do.

    The values are those of before when it returns. Needs memory for a copy of the model's values.
    """
    before = [(name, tensor, tensor.detach().clone()) for name, tensor in named_tensors(model)]
    with in_mode(model):
        changed = [name for name, tensor, copy in before if not _equal(tensor, copy)]
    for _, tensor, copy in before:
        if not _equal(tensor, copy):
            tensor.data.copy_(copy)
    return changed


def _equal(tensor: Tensor, other: Tensor) -> bool:
    """With NaN equal to NaN."""
    return all(
        one.shape == two.shape and bool(((one == two) | ((one != one) & (two != two))).all())
        for one, two in zip(parts(tensor.detach()), parts(other), strict=True)
    )


# --- attributes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Held:
    """The attributes of modules as they were: the objects, and what was in those that can change."""

    modules: list[tuple[nn.Module, int, dict[str, Any]]]  # how many attributes it had in all, and those held here
    empty: list[Any]  # containers with nothing in them
    contents: list[tuple[Any, Any]]  # the others, and tensors, each with what `_contents` has seen

    def restore(self) -> None:
        for module, count, own in self.modules:
            now = vars(module)
            if len(now) != count or not all(map(is_, map(now.get, own, repeat(_ABSENT)), own.values())):
                _put_back(now, own)
        if any(self.empty):
            for container in self.empty:
                container.clear()
        for value, contents in self.contents:
            _refill(value, contents)


def _hold(modules: Sequence[nn.Module]) -> _Held:
    held = _Held([], [], [])
    for module in modules:
        own = vars(module).copy()
        held.modules.append((module, len(own), own))
        for name in _RESTORED_OTHERWISE:
            own.pop(name, None)
        for value in own.values():
            if (kind := type(value)) in _NEVER_CHANGED:
                continue
            if kind in _CONTAINERS and not value:
                held.empty.append(value)
            elif _can_change(value):
                held.contents.append((value, _contents(value)))
    return held


def _put_back(now: dict[str, Any], own: dict[str, Any]) -> None:
    for name in [name for name in now if name not in _RESTORED_OTHERWISE and name not in own]:
        del now[name]
    for name, value in own.items():
        if now.get(name, _ABSENT) is not value:
            now[name] = value


def _can_change(value: Any) -> bool:
    """Plain containers, and tensors that are no parameters: cached masks, the states of recurrent layers."""
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter)
    return type(value) in _CONTAINERS


def _contents(value: Any) -> Any:
    """What is in it, however nested: pairs of an object and its own contents; of a tensor its version and a copy."""
    if isinstance(value, Tensor):
        return value._version, value.detach().clone()
    if type(value) is set:
        return set(value)
    entries = value.items() if type(value) in _DICTS else enumerate(value)
    return [(key, entry, _contents(entry) if _can_change(entry) else None) for key, entry in entries]


def _refill(value: Any, contents: Any) -> None:
    """Puts back what `_contents` has seen."""
    if isinstance(value, Tensor):
        version, copy = contents
        if value._version != version:
            value.data.copy_(copy)
        return
    if type(value) is set:
        if value != contents:
            value.clear()
            value.update(contents)
        return
    if type(value) in _DICTS:
        if list(value) != [key for key, _, _ in contents] or any(value[key] is not entry for key, entry, _ in contents):
            value.clear()
            value.update({key: entry for key, entry, _ in contents})
    elif len(value) != len(contents) or any(value[key] is not entry for key, entry, _ in contents):
        value.clear()
        value.extend(entry for _, entry, _ in contents)
    for _, entry, inside in contents:
        if inside is not None:
            _refill(entry, inside)
