"""What an optimizer makes of curvature: the scale of each parameter, and the eigenvalue at which its steps diverge."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.checkpoint.formats.torch_pickle import Trust
from hvpspec.checkpoint.optimizers.kinds import Kind, KindName, kind_of
from hvpspec.checkpoint.optimizers.names import keys_by_identity, keys_by_name
from hvpspec.checkpoint.optimizers.saved import SavedOptimizer, number, saved_optimizer
from hvpspec.errors import InputError
from hvpspec.objective.live_model import unwrapped
from hvpspec.objective.parameters import ParameterSpace, choose_parameters
from hvpspec.operators.update_rules import Moments, Rule, momentum_factor, next_update, rule
from hvpspec.results.spectrum import Preconditioned
from hvpspec.wording import listed

_MAX_LISTED_NAMES = 8  # in a message


@dataclass(frozen=True)
class Preconditioner:
    """The preconditioner D of an optimizer at some step, and where it becomes unstable.

    Attributes
    ----------
    scale : dict of str to Tensor
        D^(-1/2) of each parameter, by name: an update of Adam is −lr · scale² · m̂ (m̂: the mean of gradients).
    threshold : float
        The edge of stability: the largest eigenvalue of D^(-1/2) (H + shift I) D^(-1/2) at which the steps of the
        optimizer, with D as it is, still converge on a quadratic.
    step : int or None
        How many steps the optimizer has made; None for SGD, which does not count them.
    kind : {"Adam", "AdamW", "RMSprop", "Adagrad", "SGD"}
        The optimizer.
    lr : float
        The learning rate that `threshold` is for: the largest one among the groups of parameters.
    betas : tuple of float or None
        Adam's and AdamW's.
    momentum : float
        That of RMSprop or SGD.
    decay : float
        The decoupled weight decay that `threshold` is for: AdamW's.
    shift : float or dict of str to float
        What a weight decay adds to the diagonal of H where it is part of the gradient (L2), as in all other
        optimizers; by name where groups differ.
    moments : dict of str to Moments
        What the next step of each parameter is made from, by name: see `next_update`.
    """

    scale: dict[str, Tensor] = field(repr=False)
    threshold: float
    step: int | None
    kind: Kind
    lr: float
    betas: tuple[float, float] | None = None
    momentum: float = 0.0
    decay: float = 0.0
    shift: float | dict[str, float] = 0.0
    moments: dict[str, Moments] = field(default_factory=dict, repr=False)

    def of(self, names: Sequence[str]) -> Preconditioner:
        """The same for some of the parameters.

        Parameters
        ----------
        names : sequence of str
            Among those of `scale`.

        Returns
        -------
        Preconditioner

        Raises
        ------
        InputError
            For a parameter that the optimizer has no moments of.
        """
        if unknown := [name for name in names if name not in self.scale]:
            raise InputError(f"the preconditioner has no scale for {listed(unknown, _MAX_LISTED_NAMES)}.")
        shift = {name: self.shift[name] for name in names} if isinstance(self.shift, dict) else self.shift
        moments = {name: self.moments[name] for name in names if name in self.moments}
        return dataclasses.replace(self, scale={name: self.scale[name] for name in names}, shift=shift, moments=moments)

    def next_update(self, space: ParameterSpace, gradient: Tensor, values: Tensor) -> Tensor:
        """What the optimizer's next step adds to the parameters when it is given this gradient.

        Parameters
        ----------
        space : ParameterSpace
            Which parameters, and where in a vector each of them is: `parameters` of an operator.
        gradient : Tensor, shape (n,)
            The gradient of the loss, without any weight decay.
        values : Tensor, shape (n,)
            The parameters themselves, of which weight decay depends.

        Returns
        -------
        Tensor, shape (n,)
            In float64: as torch.optim makes the step, momentum, bias correction and weight decay included.

        Raises
        ------
        InputError
            For a parameter whose moments are not known.
        """
        if unknown := [name for name in space.names if name not in self.moments]:
            raise InputError(f"the preconditioner has no moments of {listed(unknown, _MAX_LISTED_NAMES)}.")
        each = zip(space.names, space.split(gradient), space.split(values), strict=True)
        return space.flatten([next_update(self.moments[name], name, g, p) for name, g, p in each])

    def described(self) -> Preconditioned:
        """What a spectrum says of it.

        Returns
        -------
        Preconditioned
            The optimizer, its step, learning rate and threshold.
        """
        return Preconditioned(self.kind, self.step, self.lr, self.threshold, self.decay)


def adam_preconditioner(
    path_or_optimizer: str | os.PathLike[str] | torch.optim.Optimizer | Mapping[str, Any],
    model: nn.Module,
    *,
    lr: float | None = None,
    betas: tuple[float, float] | None = None,
    eps: float | None = None,
    order: Sequence[str] | None = None,
    parameters: str | Sequence[str] | None = None,
    kind: KindName | None = None,
    allow_classes: Sequence[str] = (),
    trust_pickle: bool = False,
) -> Preconditioner:
    """The preconditioner of Adam, AdamW, RMSprop or Adagrad, from the moments that the optimizer has gathered.

    With ``PreconditionedOperator(H, found)``, its largest eigenvalue is to be compared with `found.threshold`.

    Parameters
    ----------
    path_or_optimizer : path, torch.optim.Optimizer or dict
        A file of torch.save that holds ``optimizer.state_dict()`` at any level, such as a training checkpoint,
        Lightning's `.ckpt` or the `optimizer.pt` of a Hugging Face Trainer; the directory of the latter, or one of
        torch.distributed.checkpoint; a live optimizer, or its state dict.
    model : nn.Module
        The network that was trained.
    lr : float, optional
        Learning rate of all groups. By default the optimizer's own.
    betas : tuple of float, optional
        Adam's (β₁, β₂). By default the optimizer's own.
    eps : float, optional
        By default the optimizer's own.
    order : sequence of str, optional
        Names of all parameters of the optimizer, in the order in which it was given them. By default the names in the
        file; without those, the order of the model, or that with biases and norms in the group without weight decay,
        as the shapes decide.
    parameters : str or sequence of str, optional
        Which parameters, as for `HessianOperator`. By default all that require a gradient.
    kind : {"adam", "adamw", "rmsprop", "adagrad", "sgd"}, optional
        The optimizer, where a file does not say it. Files of older versions of torch do not tell AdamW from Adam.
    allow_classes, trust_pickle
        As for `load_checkpoint`.

    Returns
    -------
    Preconditioner
        With the fields `scale`, `threshold`, `step`, `kind`, `lr`, `betas`, `momentum`, `decay`, `shift` and `moments`.

    Raises
    ------
    InputError
        For moments that fit another model, or this one in several ways; for chosen parameters without moments, and
        before the first step; for optimizers of other kinds, and where there is none.
    CheckpointError
        When a file cannot be read without running its code.

    Notes
    -----
    Bias correction and ε are those of torch.optim: Adam's D is √(v / (1 − β₂ᵗ)) + ε (with amsgrad, the largest v so
    far), RMSprop's √v + ε, and Adagrad's √sum + ε. SGD has D = 1, with or without momentum.

    The threshold is that of steps with D fixed (Cohen et al., arXiv:2207.14484), with learning rate η and ηλ taken off
    by a decoupled weight decay λ:

    - Adam and AdamW: (2 − ηλ)(1 + β₁)(1 − β₁ᵗ) / ((1 − β₁) η), which is 38/η for β₁ = 0.9 after many steps. The factor
      1 − β₁ᵗ is the bias correction of the first moment.
    - RMSprop: (2 + 2μ)/η with momentum μ; Adagrad: 2/η with η as `lr_decay` has left it.
    - SGD: (2 + 2μ)/((1 − τ) η) with dampening τ; Nesterov's (2 + 2μ)/((1 + 2μ) η).

    Where groups differ in learning rate, decoupled weight decay or number of steps, `threshold` is for those of the
    parameters with the most steps and, among them, the largest learning rate, then the smallest decay; the `scale` of
    the others has the ratio of ηᵢ/(2 − ηᵢλᵢ) (and of 1 − β₁ᵗ) to the reference's in it, which gives the same edge
    exactly. Groups with different momentum are refused: there is no such ratio.

    Examples
    --------
    >>> import torch, hvpspec
    >>> model = torch.nn.Linear(2, 1)
    >>> adam = torch.optim.Adam(model.parameters(), lr=0.01)
    >>> X, y = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.zeros(2, 1)
    >>> for _ in range(50):
    ...     adam.zero_grad()
    ...     ((model(X) - y) ** 2).mean().backward()
    ...     _ = adam.step()
    >>> found = hvpspec.adam_preconditioner(adam, model)
    >>> found.kind, found.step, round(found.threshold * found.lr, 1)
    ('Adam', 50, 37.8)
    >>> P = hvpspec.PreconditionedOperator(hvpspec.HessianOperator(model, "mse", [(X, y)]), found)
    >>> P.shape
    (3, 3)
    """
    model = unwrapped(model)
    chosen, trust = choose_parameters(model, parameters).names, Trust(tuple(allow_classes), trust_pickle)
    return find_preconditioner(
        path_or_optimizer, model, chosen, trust, lr=lr, betas=betas, eps=eps, order=order, kind=kind
    )


def find_preconditioner(
    source: Any,
    model: nn.Module,
    chosen: Sequence[str],
    trust: Trust,
    *,
    lr: float | None = None,
    betas: tuple[float, float] | None = None,
    eps: float | None = None,
    order: Sequence[str] | None = None,
    kind: KindName | None = None,
) -> Preconditioner:
    """As `adam_preconditioner`, for parameters that are chosen already."""
    saved = _with_options(saved_optimizer(source, trust), lr, betas, eps)
    found = kind_of(saved, kind)
    if isinstance(source, torch.optim.Optimizer):
        keys = keys_by_identity(source, saved, model)
    elif found == "SGD" and not saved.state and all(group == saved.groups[0] for group in saved.groups):
        keys = dict.fromkeys(chosen, saved.keys[0])  # all alike, without moments that would have to be told apart
    else:
        keys = keys_by_name(saved, model, chosen, order)
    _check_moments(saved, keys, chosen, needed=found != "SGD")
    rules = {name: rule(found, saved.group(keys[name]), saved.moments(keys[name]), name) for name in chosen}
    made = _assembled(found, saved, rules, [saved.group(keys[name]) for name in chosen], model)
    moments = {name: Moments.copied(found, saved.group(keys[name]), saved.moments(keys[name])) for name in chosen}
    return dataclasses.replace(made, moments=moments)


def _with_options(
    saved: SavedOptimizer, lr: float | None, betas: tuple[float, float] | None, eps: float | None
) -> SavedOptimizer:
    """With options that were given in place of the optimizer's own."""
    if lr is not None and not 0 < lr < float("inf"):
        raise InputError(f"lr={lr:g}: a learning rate is a finite number greater than 0.")
    if eps is not None and not 0 <= eps < float("inf"):
        raise InputError(f"eps={eps:g}: expected a finite number that is not negative.")
    given = {name: value for name, value in (("lr", lr), ("betas", betas), ("eps", eps)) if value is not None}
    if unknown := [name for name in given if any(name not in group for group in saved.groups)]:
        raise InputError(f"{saved.place} has no {listed(unknown)} that could be replaced.")
    return dataclasses.replace(saved, groups=tuple({**group, **given} for group in saved.groups))


def _check_moments(saved: SavedOptimizer, keys: Mapping[str, str], chosen: Sequence[str], *, needed: bool) -> None:
    """Raises InputError for chosen parameters that the optimizer does not have, or has no state of."""
    lacking = [name for name in chosen if name not in keys]
    if lacking:
        raise InputError(
            f"{saved.place} does not have {listed(lacking, _MAX_LISTED_NAMES)}; choose the parameters that it trains "
            "(parameters, --parameters), or freeze the others (requires_grad_(False))."
        )
    without = [name for name in chosen if not saved.moments(keys[name])]
    if without and needed:
        none = "no moments at all" if len(without) == len(chosen) else "no moments of"
        which = "" if len(without) == len(chosen) else f" {listed(without, _MAX_LISTED_NAMES)}"
        raise InputError(
            f"{saved.place} has {none}{which}: it has made no step with a gradient of them; choose other parameters "
            "(parameters, --parameters), or take a checkpoint from after a step."
        )


def _assembled(
    kind: Kind, saved: SavedOptimizer, rules: Mapping[str, Rule], groups: Sequence[Mapping[str, Any]], model: nn.Module
) -> Preconditioner:
    """One scale and one threshold for all parameters, see the notes of `adam_preconditioner`."""
    if still := [name for name, one in rules.items() if not one.lr > 0]:
        raise InputError(
            f"the learning rate of {listed(still, _MAX_LISTED_NAMES)} is {rules[still[0]].lr:g} in {saved.place} (of a "
            "schedule's first or last step?); give the one to judge by with lr (--lr)."
        )
    if wild := [name for name, one in rules.items() if not 0 <= one.shrinkage < 2]:
        raise InputError(f"weight decay times learning rate must be in [0, 2), and is not for {listed(wild)}.")
    factors = {momentum_factor(kind, group) for group in groups}
    if len(factors) > 1:
        remedy = " or give betas" if kind.startswith("Adam") else ""
        raise InputError(
            f"{saved.place} has groups that differ in momentum, for which no common edge of stability is known; choose "
            f"the parameters of one of them (parameters, --parameters){remedy}."
        )
    first = max(rules.values(), key=lambda one: (one.step or 0, one.lr, -one.decay))
    scale = {}
    for name, parameter in model.named_parameters():
        if name in rules:
            relative = rules[name].rate / first.rate * (2 - first.shrinkage) / (2 - rules[name].shrinkage)
            scale[name] = _scale(rules[name].denominator, relative, name, parameter)
    shifts = {name: one.shift for name, one in rules.items()}
    beta = groups[0].get("betas") if kind in ("Adam", "AdamW") else None
    return Preconditioner(
        {name: scale[name] for name in rules},
        factors.pop() * (2 - first.shrinkage) / first.rate,
        first.step,
        kind,
        first.lr,
        None if beta is None else (number(beta[0]) or 0.0, number(beta[1]) or 0.0),
        0.0 if beta is not None else number(groups[0].get("momentum", 0.0)) or 0.0,
        first.decay,
        shifts if len(set(shifts.values())) > 1 else next(iter(shifts.values())),
    )


def _scale(denominator: Tensor | None, relative: float, name: str, parameter: nn.Parameter) -> Tensor:
    """√(relative / D), in the parameter's precision, float32 at least."""
    like = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    if denominator is None:
        return torch.full(parameter.shape, relative**0.5, dtype=like, device=parameter.device)
    if denominator.shape != parameter.shape:
        raise InputError(
            f"the moments of {name} have shape {tuple(denominator.shape)}, and the parameter {tuple(parameter.shape)}: "
            "they are of another model."
        )
    scale = (relative / denominator).sqrt().to(parameter.device, like)
    if not bool(torch.isfinite(scale).all()) or not bool((scale > 0).all()):
        raise InputError(
            f"the optimizer's moments of {name} give no scale: they hold NaN, Inf or negative values, or zeros with "
            "eps = 0; give the eps to use (eps), or another checkpoint."
        )
    return scale
