"""Which optimizer a state dict is of, by the options of its groups and the entries of its state: files say no name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from hvpspec.checkpoint.optimizers.saved import SavedOptimizer
from hvpspec.errors import InputError
from hvpspec.wording import listed

Kind = Literal["Adam", "AdamW", "RMSprop", "Adagrad", "SGD"]
KindName = Literal["adam", "adamw", "rmsprop", "adagrad", "sgd"]

_KINDS: dict[str, Kind] = {kind.lower(): kind for kind in get_args(Kind)}
# By kind, what every group has, what it may have besides `_COMMON`, and what the state of a parameter may have.
_OPTIONS: dict[str, tuple[set[str], set[str], set[str]]] = {
    "Adam": (
        {"betas", "eps", "weight_decay", "amsgrad"}, {"decoupled_weight_decay"},
        {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    ),
    "RMSprop": ({"alpha", "eps", "momentum", "centered"}, set(), {"step", "square_avg", "grad_avg", "momentum_buffer"}),
    "Adagrad": ({"lr_decay", "eps"}, {"initial_accumulator_value"}, {"step", "sum"}),
    "SGD": ({"momentum", "dampening", "nesterov"}, set(), {"momentum_buffer"}),
}  # fmt: skip
_COMMON = {"lr", "weight_decay", "maximize", "foreach", "capturable", "differentiable", "fused"}
# What schedulers and training scripts write next to a group's options, and no optimizer of torch reads.
_OF_SCHEDULERS = {
    "initial_lr", "max_lr", "min_lr", "swa_lr", "lr_scale", "lr_mult", "max_momentum", "base_momentum", "name",
    "group_name", "layer_id",
}  # fmt: skip
_OF_BITSANDBYTES = {"state1", "qmap1", "absmax1"}  # entries of its states
# Entries of groups or states by which other optimizers are known.
_OTHERS = {
    "momentum_decay": "NAdam", "mu_product": "NAdam", "exp_inf": "Adamax", "ns_steps": "Muon", "rho": "Adadelta",
    "ns_coefficients": "Muon",
    "exp_avg_sq_row": "Adafactor", "row_var": "Adafactor", "beta2_decay": "Adafactor", "acc_delta": "Adadelta",
    "lambd": "ASGD", "etas": "Rprop", "tolerance_grad": "LBFGS", "correct_bias": "the AdamW of Transformers",
    "bias_correction": "Apex or DeepSpeed", "precond": "Shampoo", "exp_avg_slow": "AdEMAMix", "z": "schedule-free",
}  # fmt: skip


def kind_of(saved: SavedOptimizer, kind: KindName | None = None) -> Kind:
    """The optimizer. kind: as the user says it is, which the file must not contradict.

    Raises InputError for optimizers of other kinds, and where a file of an older torch does not say whether Adam's
    weight decay is decoupled.
    """
    if kind is not None and kind not in _KINDS:
        raise InputError(f"kind must be one of {', '.join(_KINDS)}; got {kind!r}.")
    found = _rule(saved, strict=kind is None)
    if any(group.get("maximize") for group in saved.groups):
        raise InputError(f"{saved.place} maximises (maximize=True), where the edge of stability is of minimisation.")
    if found != "Adam":
        if kind is not None and _KINDS[kind] != found:
            raise InputError(f"{saved.place} is of {found}, not {_KINDS[kind]}; name no kind, or its own.")
        return found
    return _decoupled_or_not(saved, kind)


def _rule(saved: SavedOptimizer, *, strict: bool) -> Kind:
    """The optimizer, with Adam for AdamW. strict: with no entries that its torch.optim class does not write."""
    options = set().union(*saved.groups)
    entries = set().union(*saved.state.values())
    if entries & _OF_BITSANDBYTES:
        raise InputError(
            f"{saved.place} is of bitsandbytes, whose moments are in a form of their own (8-bit blocks, each with a "
            "scale); make some steps with torch.optim.AdamW from this checkpoint, or save the moments dequantised, by "
            "the names that torch.optim has for them (exp_avg_sq)."
        )
    for entry, name in _OTHERS.items():
        if entry in options | entries:
            raise _unknown(saved, name)
    kinds: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
    for name, (needed, more, of_state) in _OPTIONS.items():
        known = needed | more | _COMMON | _OF_SCHEDULERS
        if all(needed <= set(group) for group in saved.groups) and entries <= of_state:
            if strict and options - known:
                raise InputError(
                    f"{saved.place} looks like {name}'s, but its groups also have {listed(sorted(options - known))}, "
                    f"which torch.optim.{name} does not write; if it is of {name} all the same, say kind="
                    f"{name.lower()!r}."
                )
            return kinds[name]
    if {"betas", "weight_decay"} <= options and "eps" not in options:
        raise _unknown(saved, "Lion, or one like it")
    if {"betas", "eps"} <= options and "amsgrad" not in options:
        raise _unknown(saved, "RAdam, Adamax or another relative of Adam")
    has = f"an unknown kind: its groups have {listed(sorted(options))}"
    raise _unknown(saved, f"{has}, its state {listed(sorted(entries))}" if entries else has)


def _unknown(saved: SavedOptimizer, what: str) -> InputError:
    return InputError(
        f"{saved.place} is of an optimizer whose edge of stability is not known here ({what}); it is for Adam, AdamW, "
        "RMSprop, Adagrad and SGD of torch.optim."
    )


def _decoupled_or_not(saved: SavedOptimizer, kind: KindName | None) -> Kind:
    said = {group.get("decoupled_weight_decay") for group in saved.groups}
    if len(said) > 1:
        raise InputError(f"{saved.place} has groups of Adam and groups of AdamW, which have no common edge.")
    (decoupled,) = said
    if decoupled is None and kind is None and any(_decays(group) for group in saved.groups):
        raise InputError(
            f"{saved.place} is of an older torch, which does not say whether it is of Adam or of AdamW, whose weight "
            'decays differ; say kind="adam" or kind="adamw" (--precondition adam-l2 or adamw).'
        )
    if decoupled is None:
        return "AdamW" if kind == "adamw" else "Adam"
    own: Kind = "AdamW" if decoupled else "Adam"
    if kind is not None and _KINDS[kind] != own:
        raise InputError(f"{saved.place} is of {own}, not {_KINDS[kind]}; name no kind, or its own.")
    return own


def _decays(group: Mapping[str, Any]) -> bool:
    return bool(group.get("weight_decay"))
