"""How each optimizer of torch.optim makes a step from a gradient g, as far as stability depends on it.

With the second moments fixed, every one of them is x ← (1 − p) x − r D⁻¹ m for each entry of the parameters, where m is
a running mean or sum of H x: D is what the moments say, r the learning rate with its corrections, and p = ηλ that of a
decoupled weight decay. A weight decay that is part of the gradient (L2) adds its λ to the diagonal of H instead.

The step grows without bound in some direction as soon as z = −1 solves the characteristic equation, which is where
H x = c (2 − p) D x / r for some x, with c by the kind of momentum: (1 + β)/(1 − β) for a running mean (Adam), 1 + μ for
heavy-ball momentum, which a dampening τ divides by 1 − τ, and (1 + μ)/(1 + 2μ) for Nesterov's. The other solutions stay
inside the unit circle up to there, as their product is β (1 − p) < 1, or less. arXiv:2207.14484 has Adam's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvpspec.checkpoint.optimizers.kinds import Kind
from hvpspec.checkpoint.optimizers.saved import number
from hvpspec.errors import InputError
from hvpspec.wording import dtype_name


@dataclass(frozen=True)
class Rule:
    """The step for one parameter.

    denominator: D, in float64; None for 1. lr: η. rate: r. decay: λ of a decoupled weight decay. shift: λ of one that
    is part of the gradient. step: how many were made; None where the optimizer does not count them.
    """

    denominator: Tensor | None
    lr: float
    rate: float
    decay: float = 0.0
    shift: float = 0.0
    step: int | None = None

    @property
    def shrinkage(self) -> float:
        """p: what a step takes off a parameter, apart from the gradient."""
        return self.lr * self.decay


def momentum_factor(kind: Kind, group: Mapping[str, Any]) -> float:
    """c: how many times more curvature the momentum allows."""
    if kind in ("Adam", "AdamW"):
        beta = _betas(group)[0]
        return (1 + beta) / (1 - beta)
    momentum = _option(group, "momentum") if kind in ("RMSprop", "SGD") else 0.0
    if kind == "RMSprop" or not momentum:
        return 1 + momentum
    if group.get("nesterov"):
        return (1 + momentum) / (1 + 2 * momentum)
    return (1 + momentum) / (1 - _option(group, "dampening"))


def rule(kind: Kind, group: Mapping[str, Any], state: Mapping[str, Any], name: str) -> Rule:
    """The step for parameter `name`, of a group with these options. Raises InputError where moments are missing."""
    lr, decay = _option(group, "lr"), _option(group, "weight_decay")
    if kind == "SGD":
        return Rule(None, lr, lr, shift=decay)
    step = _step(state, name)
    if kind == "RMSprop":
        variance = _moment(state, "square_avg", name)
        if group.get("centered"):
            variance = variance - _moment(state, "grad_avg", name) ** 2
        return Rule(variance.sqrt() + _option(group, "eps"), lr, lr, shift=decay, step=step)
    if kind == "Adagrad":
        rate = lr / (1 + (step - 1) * _option(group, "lr_decay"))
        return Rule(_moment(state, "sum", name).sqrt() + _option(group, "eps"), lr, rate, shift=decay, step=step)
    beta1, beta2 = _betas(group)
    variance = _moment(state, "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq", name)
    denominator = variance.sqrt() / math.sqrt(1 - beta2**step) + _option(group, "eps")
    decoupled = {"decay": decay} if kind == "AdamW" else {"shift": decay}
    return Rule(denominator, lr, lr / (1 - beta1**step), step=step, **decoupled)


@dataclass(frozen=True)
class Moments:
    """What the next step for one parameter is made from: the options of its group, and its state."""

    kind: Kind
    group: Mapping[str, Any]
    state: Mapping[str, Any]

    @classmethod
    def copied(cls, kind: Kind, group: Mapping[str, Any], state: Mapping[str, Any]) -> Moments:
        """With a copy of the state, which a live optimizer goes on changing."""
        own = {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
        return cls(kind, group, own)


def next_update(of: Moments, name: str, gradient: Tensor, parameter: Tensor) -> Tensor:
    """What the optimizer's next step adds to parameter `name` when it is given this gradient, in float64.

    As torch.optim computes it: with the gradient in the moments already, and all weight decay. Raises InputError where
    the state lacks a moment.
    """
    group, state, p = of.group, of.state, parameter.detach().double()
    g, lr, decay = gradient.detach().double(), _option(group, "lr"), _option(group, "weight_decay")

    def moment(entry: str) -> Tensor:
        return _moment(state, entry, name).to(p.device)

    if decay and of.kind != "AdamW":
        g = g + decay * p
    if of.kind in ("Adam", "AdamW"):
        return _adam(group, _step(state, name) + 1, g, moment) - (lr * decay * p if of.kind == "AdamW" else 0)
    if of.kind == "SGD":
        return -lr * _heavy_ball(group, state.get("momentum_buffer") is not None, g, moment)
    if of.kind == "Adagrad":
        rate = lr / (1 + _step(state, name) * _option(group, "lr_decay"))
        return -rate * g / ((moment("sum") + g**2).sqrt() + _option(group, "eps"))
    alpha = _option(group, "alpha")
    variance = alpha * moment("square_avg") + (1 - alpha) * g**2
    if group.get("centered"):
        variance = variance - (alpha * moment("grad_avg") + (1 - alpha) * g) ** 2
    scaled = g / (variance.sqrt() + _option(group, "eps"))
    if momentum := _option(group, "momentum"):
        scaled = momentum * moment("momentum_buffer") + scaled
    return -lr * scaled


def _adam(group: Mapping[str, Any], step: int, g: Tensor, moment: Callable[[str], Tensor]) -> Tensor:
    beta1, beta2 = _betas(group)
    mean = beta1 * moment("exp_avg") + (1 - beta1) * g
    variance = beta2 * moment("exp_avg_sq") + (1 - beta2) * g**2
    if group.get("amsgrad"):
        variance = torch.maximum(variance, moment("max_exp_avg_sq"))
    denominator = variance.sqrt() / math.sqrt(1 - beta2**step) + _option(group, "eps")
    return -_option(group, "lr") / (1 - beta1**step) * mean / denominator


def _heavy_ball(group: Mapping[str, Any], moving: bool, g: Tensor, moment: Callable[[str], Tensor]) -> Tensor:
    """moving: whether there is a momentum buffer already; the first step puts the gradient into it as it is."""
    momentum = _option(group, "momentum")
    if not momentum:
        return g
    buffer = momentum * moment("momentum_buffer") + (1 - _option(group, "dampening")) * g if moving else g
    return g + momentum * buffer if group.get("nesterov") else buffer


def _step(state: Mapping[str, Any], name: str) -> int:
    step = number(state.get("step"))
    if step is None:
        raise InputError(f"the optimizer does not say how many steps it has made with {name}, which its rule needs.")
    if not 1 <= step < math.inf:
        raise InputError(
            f"the optimizer has made no step with {name} yet (its step count is {step:g}): there are no moments; give "
            "it after a step."
        )
    return int(step)


def _moment(state: Mapping[str, Any], entry: str, name: str) -> Tensor:
    """A moment, in float64."""
    moment = state.get(entry)
    if not isinstance(moment, Tensor):
        raise InputError(f"the optimizer's state for {name} has no {entry}.")
    if moment.layout != torch.strided:
        raise InputError(f"the optimizer's {entry} for {name} is sparse, where a value for each entry is needed.")
    if not moment.is_floating_point() or moment.dtype.itemsize < 2:
        raise InputError(
            f"the optimizer's {entry} for {name} is stored as {dtype_name(moment.dtype)} (an 8-bit optimizer); hvpspec "
            "reads moments of 16 bits or more: save them dequantised."
        )
    return moment.detach().double()


def _option(group: Mapping[str, Any], name: str) -> float:
    """A number among the options of a group; 0 where torch of that time had none."""
    value = number(group.get(name, 0.0))
    if value is None or not math.isfinite(value):
        raise InputError(f"the optimizer's {name} is {group.get(name)!r}, which is no finite number.")
    return value


def _betas(group: Mapping[str, Any]) -> tuple[float, float]:
    betas = group.get("betas")
    found = [number(beta) for beta in betas] if isinstance(betas, (tuple, list)) else []
    if len(found) != 2 or any(beta is None or not 0 <= beta < 1 for beta in found):
        raise InputError(f"the optimizer's betas are {betas!r}, and must be two numbers at least 0 and less than 1.")
    return found[0] or 0.0, found[1] or 0.0
