"""What an instance of the zoo is: a tiny model of a known architecture, its data and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model, its batches and a loss as hvpspec takes them.

    `joined`: all the data as one batch, where there are several. `train`: the loss exists in train mode only.
    `options`: of HessianOperator.
    """

    model: nn.Module
    batches: list[Any]
    loss: Any
    joined: Any = None
    train: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Instance:
    """`build()` gives the same case each time. `requires`: packages without which the instance is skipped."""

    name: str
    task: str
    build: Callable[[], Case]
    requires: tuple[str, ...] = ()


def registering(found: list[Instance], field_name: str) -> Callable[[str], Callable[[Callable[[], Case]], Any]]:
    """A decorator that makes instances of functions, which build a case after the seed is set."""

    def named(name: str) -> Callable[[Callable[[], Case]], Any]:
        def register(build: Callable[[], Case]) -> Callable[[], Case]:
            found.append(Instance(name, field_name, partial(_built, build)))
            return build

        return register

    return named


def _built(build: Callable[[], Case]) -> Case:
    torch.manual_seed(0)
    case = build()
    moved(case.model)
    return case


def seeded(seed: int) -> torch.Generator:
    """A generator of its own for each use, so that a case is the same each time it is built."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 5) -> Tensor:
    """Standard normal numbers in single precision, as data are."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float32)


def uniform(*shape: int, seed: int = 6) -> Tensor:
    """Numbers between 0 and 1."""
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float32)


def classes(*shape: int, count: int = 3, seed: int = 7) -> Tensor:
    """Class indices."""
    return torch.randint(0, count, shape, generator=seeded(seed))


def moved(model: nn.Module, seed: int = 1, by: float = 0.05) -> nn.Module:
    """The model with its parameters moved off their initial values, where many are 0 or 1 and hide what is wrong."""
    generator = seeded(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model.eval()


def mlp(*widths: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def whole_loss(loss: Any, batch: Any) -> Callable[[nn.Module], Tensor]:
    """The loss of one batch that holds all the data, written out plainly for the names that hvpspec knows."""
    if loss == "model":
        return lambda m: m(**batch).loss
    if isinstance(loss, str):
        by_name: dict[str, Any] = {
            "cross_entropy": F.cross_entropy,
            "mse": F.mse_loss,
            "bce_with_logits": F.binary_cross_entropy_with_logits,
        }
        return lambda m: by_name[loss](m(batch[0]), batch[1])
    if isinstance(loss, nn.modules.loss._Loss):
        return lambda m: loss(m(batch[0]), batch[1])
    return lambda m: loss(m, batch)
