"""Which entry of an optimizer's state belongs to which parameter of a model.

By name, where the file has names. Otherwise by order: that of the model, as one group or one group after another; or
with the parameters that are usually left out of weight decay in a group of their own. What decides is that all shapes
fit. Where they fit in two ways that give a parameter different moments, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from hvpspec.checkpoint.matching import possible_fits
from hvpspec.checkpoint.optimizers.partitioned import refuse_flat
from hvpspec.checkpoint.optimizers.saved import SavedOptimizer, number
from hvpspec.errors import InputError
from hvpspec.wording import listed

_MAX_LISTED_NAMES = 8  # in a message
_REMEDY = "give the names of the parameters in the optimizer's order: adam_preconditioner(..., order=[...])"
_NOT_DECAYED = ("bias", "layernorm", "rmsnorm", "layer_norm", "norm")  # by Transformers, in names
_NO_NAMES = torch.empty(0)  # in place of an entry of which only the name matters


def keys_by_name(
    saved: SavedOptimizer, model: nn.Module, chosen: Sequence[str], order: Sequence[str] | None = None
) -> dict[str, str]:
    """{name of a chosen parameter: its key in the state}, for those that the optimizer has.

    order: names of all parameters of the optimizer, in its order. Raises InputError where the state fits in no way, or
    in several.
    """
    parameters = dict(model.named_parameters())
    if order is not None:
        ways = [_explicit(saved, model, order)]
    elif saved.names:
        ways = [_by_name(saved, model)]
    else:
        ways = [dict(zip(names, saved.keys, strict=True)) for names in _orders(saved, model)]
        if not ways:
            refuse_flat(saved.place, [moment for key in saved.keys for moment in _moments(saved, key)], model)
            raise _of_another_model(saved, model)
    fitting = [way for way in ways if not _misfits(saved, way, parameters)]
    if not fitting:
        refuse_flat(saved.place, [moment for key in saved.keys for moment in _moments(saved, key)], model)
        raise _other_shapes(saved, _misfits(saved, ways[0], parameters), order is not None)
    distinct: list[dict[str, str]] = []
    for way in fitting:
        of_chosen = {name: way[name] for name in chosen if name in way}
        if of_chosen not in distinct:
            distinct.append(of_chosen)
    if len(distinct) > 1:
        first, second = distinct[:2]
        unclear = [name for name in chosen if first.get(name) != second.get(name)]
        raise InputError(
            f"{saved.place} fits the model in {len(distinct)} ways, by shape, which differ in "
            f"{listed(unclear, _MAX_LISTED_NAMES)}; {_REMEDY}, or save it with names (torch.optim takes "
            "model.named_parameters())."
        )
    return distinct[0]


def keys_by_identity(optimizer: torch.optim.Optimizer, saved: SavedOptimizer, model: nn.Module) -> dict[str, str]:
    """The same for a live optimizer, which holds the model's own parameters."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    keys = {id(parameter): key for parameter, key in zip(held, saved.keys, strict=True)}
    found = {name: keys[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in keys}
    if not found:
        raise InputError(
            f"{saved.place} is of another model: it has none of this one's parameters; give the optimizer of this "
            "model, or optimizer.state_dict(), which is matched by order and shape."
        )
    return found


def _explicit(saved: SavedOptimizer, model: nn.Module, order: Sequence[str]) -> dict[str, str]:
    first = _first_names(model)
    if unknown := [name for name in order if name not in first]:
        raise InputError(f"order: the model has no parameter {listed(unknown, _MAX_LISTED_NAMES)}.")
    names = [first[name] for name in order]
    if len(set(names)) < len(names):
        raise InputError("order: name each parameter once.")
    if len(names) != len(saved.keys):
        raise InputError(f"order has {len(names)} names, and {saved.place} {len(saved.keys)} parameters.")
    return dict(zip(names, saved.keys, strict=True))


def _by_name(saved: SavedOptimizer, model: nn.Module) -> dict[str, str]:
    """Names may have prefixes of wrappers more or less, and be any of those of a tied parameter."""
    first = _first_names(model)
    keys = {name: key for key, name in saved.names.items()}
    fit = possible_fits(dict.fromkeys(keys, _NO_NAMES), dict(model.named_parameters(remove_duplicate=False)))[0]
    if not fit.matched:
        raise InputError(
            f"{saved.place} is of another model: it has {listed(keys, _MAX_LISTED_NAMES)}, and this one "
            f"{listed(dict.fromkeys(first.values()), _MAX_LISTED_NAMES)}; give the moments of this model."
        )
    return {first[name]: keys[entry] for name, entry in fit.matched.items()}


def _first_names(model: nn.Module) -> dict[str, str]:
    """{any name of a parameter: the first one}."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


def _orders(saved: SavedOptimizer, model: nn.Module) -> Iterator[list[str]]:
    """Names of all parameters of the optimizer in the orders that are usual: of all, or of those that are trained."""
    parameters = dict(model.named_parameters())
    pools = [list(parameters), [name for name, parameter in parameters.items() if parameter.requires_grad]]
    for pool in pools if pools[0] != pools[1] else pools[:1]:
        if len(pool) == len(saved.keys):
            yield pool
            if len(saved.groups) == 2:
                yield from _split(saved, pool, model)


def _split(saved: SavedOptimizer, pool: list[str], model: nn.Module) -> Iterator[list[str]]:
    """With the parameters without weight decay in the one group or in the other."""
    sizes = [len(members) for members in saved.members]
    decays = [number(group.get("weight_decay")) or 0.0 for group in saved.groups]
    for without_decay in _usual_choices(model):
        out = [name for name in pool if without_decay(name)]
        rest = [name for name in pool if not without_decay(name)]
        for halves, decay in (((rest, out), decays), ((out, rest), decays[::-1])):
            if [len(half) for half in halves] == sizes and decay[1] <= decay[0]:
                yield [*halves[0], *halves[1]]


def _usual_choices(model: nn.Module) -> list[Callable[[str], bool]]:
    """Which parameters training scripts leave out of weight decay, by name."""
    parameters = dict(model.named_parameters())
    norms = _inside(model, lambda module: "norm" in type(module).__name__.lower())
    embeddings = _inside(model, lambda module: isinstance(module, (nn.Embedding, nn.EmbeddingBag)))

    def bias(name: str) -> bool:
        return name.rpartition(".")[2] in ("bias", "bias_ih", "bias_hh")

    return [
        lambda name: parameters[name].ndim < 2,
        lambda name: "bias" in name or name in norms,
        lambda name: any(part in _NOT_DECAYED or part.endswith("_norm") for part in name.lower().split(".")),
        bias,
        lambda name: bias(name) or name in norms or name in embeddings,
        lambda name: parameters[name].ndim < 2 or name in embeddings,
    ]


def _inside(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> set[str]:
    """The first names of the parameters that belong to such modules themselves."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        first[id(parameter)]
        for module in model.modules()
        if wanted(module)
        for parameter in module.parameters(recurse=False)
    }


def _misfits(saved: SavedOptimizer, way: Mapping[str, str], parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Parameters whose moments have another shape."""
    return [
        f"{name} ({tuple(parameters[name].shape)}, moments {tuple(moment.shape)})"
        for name, key in way.items()
        for moment in _moments(saved, key)[:1]
        if moment.shape != parameters[name].shape
    ]


def _moments(saved: SavedOptimizer, key: str) -> list[Tensor]:
    """The tensors of the state that are shaped like the parameter."""
    return [value for name, value in saved.moments(key).items() if isinstance(value, Tensor) and name != "step"]


def _other_shapes(saved: SavedOptimizer, misfits: Sequence[str], ordered: bool) -> InputError:
    remedy = (
        "check the order that was given" if ordered or saved.names else f"or, if its order is another one, {_REMEDY}"
    )
    return InputError(
        f"{saved.place} does not fit the model: different shape: {listed(misfits, _MAX_LISTED_NAMES)}; give the "
        f"moments of this model, {remedy}."
    )


def _of_another_model(saved: SavedOptimizer, model: nn.Module) -> InputError:
    parameters = list(model.parameters())
    trained = sum(parameter.requires_grad for parameter in parameters)
    frozen = f", {trained} of them trainable" if trained < len(parameters) else ""
    return InputError(
        f"{saved.place} has {len(saved.keys)} parameters, and the model {len(parameters)}{frozen}; give the moments of "
        f"this model or, if the optimizer has some of its parameters only, {_REMEDY}."
    )
