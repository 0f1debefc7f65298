"""Losses that couple the samples of a batch: no means, so that they need a weight of the user's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from programs.program import Case, Program, mlp, refused, split


def contrastive(m: nn.Module, batch: Any) -> Tensor:
    """InfoNCE."""
    a, b = (F.normalize(m(x), dim=1) for x in batch)
    return F.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)))


def root_of_a_mean(m: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(m(batch[0]), batch[1][:, :3]).sqrt()


def statistics_of_the_batch(m: nn.Module, batch: Any) -> Tensor:
    outputs = m(batch[0])
    return ((outputs - outputs.mean(0)) / outputs.std(0)).pow(4).mean() + outputs.pow(2).mean()


def pairs_ranked(m: nn.Module, batch: Any) -> Tensor:
    scores = m(batch[0])[:, 0]
    better = (batch[1][:, :1] > batch[1][:, 0]).double()
    return (better * F.softplus(scores[None] - scores[:, None])).sum() / better.sum()


def coupled(loss: Any, weigh: bool) -> Case:
    a, b = torch.randn(9, 4), torch.randn(9, 4)
    data = split(a, b, sizes=(4, 5))
    if not weigh:
        return Case(mlp(), loss, data)
    return Case(
        mlp(),
        lambda m, batch: (loss(m, batch), len(batch[0])),
        data,
        lambda m: sum(len(batch[0]) * loss(m, batch) for batch in data) / 9,
    )


def in_one_batch(loss: Any) -> Case:
    a, b = torch.randn(9, 4), torch.randn(9, 4)
    return Case(mlp(), loss, [(a, b)], lambda m: loss(m, (a, b)))


LOSSES = {
    "contrastive": contrastive,
    "root of a mean": root_of_a_mean,
    "statistics of the batch": statistics_of_the_batch,
    "ranked pairs": pairs_ranked,
}
PROGRAMS = tuple(
    program
    for name, loss in LOSSES.items()
    for program in (
        Program(f"{name}, no weight", lambda loss=loss: coupled(loss, False), refused("weight")),
        Program(f"{name}, with a weight", lambda loss=loss: coupled(loss, True)),
        Program(f"{name}, one batch", lambda loss=loss: in_one_batch(loss)),
    )
)
