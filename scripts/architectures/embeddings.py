"""Embeddings, their bags, recommenders, and mixtures of experts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.instance import Case, Instance, classes, mlp, normal, registering, uniform
from architectures.sequences import WORDS, sentences

INSTANCES: list[Instance] = []
instance = registering(INSTANCES, "sequences by hand")


@instance("text classifier with EmbeddingBag")
def embedding_bag() -> Case:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.out = nn.EmbeddingBag(WORDS, 4), mlp(4, 5, 3)

        def forward(self, text: Tensor, offsets: Tensor) -> Tensor:
            return self.out(self.bag(text, offsets))

    batch = (sentences(1, 12)[0], torch.tensor([0, 3, 7]), classes(3))
    return Case(Bags(), [batch], lambda m, b: F.cross_entropy(m(b[0], b[1]), b[2]))


@instance("skip-gram with negative samples")
def skip_gram() -> Case:
    class SkipGram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Embedding(WORDS, 4), nn.Embedding(WORDS, 4)

        def forward(self, center: Tensor, context: Tensor, negative: Tensor) -> Tensor:
            v = self.inner(center)
            positive = F.logsigmoid((v * self.outer(context)).sum(-1))
            return -(positive + F.logsigmoid(-torch.bmm(self.outer(negative), v[:, :, None])).sum((1, 2))).mean()

    batch = (sentences(8, 1)[:, 0], sentences(8, 1, seed=2)[:, 0], sentences(8, 3, seed=3))
    return Case(SkipGram(), [batch], lambda m, b: m(*b))


class Experts(nn.Module):
    """Two of four experts for each token; index_add puts their outputs back. With a loss that balances the load."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.out = nn.Linear(4, 4), nn.Linear(4, 3)
        self.experts = nn.ModuleList([mlp(4, 5, 4, activation=nn.SiLU) for _ in range(4)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(0, 1)
        p = self.router(flat).softmax(-1)
        weights, chosen = p.topk(2, -1)
        y = torch.zeros_like(flat)
        for k, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == k)
            if rows.numel() == 0:
                continue
            y = y.index_add(0, rows, expert(flat[rows]) * weights[rows, slot, None])
        load = F.one_hot(chosen, 4).to(p.dtype).mean((0, 1))
        return self.out(y).view(*x.shape[:2], 3), 4 * (load * p.mean(0)).sum()


@instance("mixture of experts by hand")
def experts() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        logits, balance = m(batch[0])
        return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten()) + 0.01 * balance

    return Case(Experts(), [(normal(3, 5, 4), classes(3, 5))], loss)


@instance("DLRM (embedding bags, dot interactions)")
def dlrm() -> Case:
    class Recommender(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.top = mlp(3, 4), mlp(4 + 3, 5, 1)
            self.bags = nn.ModuleList([nn.EmbeddingBag(WORDS, 4, mode="sum") for _ in range(2)])

        def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
            x = self.dense(dense)
            every = torch.stack([x, *(bag(s) for bag, s in zip(self.bags, sparse.unbind(1), strict=True))], 1)
            i, j = torch.tril_indices(3, 3, -1)
            return self.top(torch.cat([x, (every @ every.mT)[:, i, j]], 1))[:, 0]

    batch = (normal(4, 3), classes(4, 2, 3, count=WORDS), uniform(4).round())
    return Case(Recommender(), [batch], lambda m, b: F.binary_cross_entropy_with_logits(m(b[0], b[1]), b[2]))
