"""Images with other layers and losses: routing, metric learning, detection."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.instance import Case, Instance, classes, mlp, normal, registering, uniform
from architectures.vision import conv_bn

INSTANCES: list[Instance] = []
instance = registering(INSTANCES, "vision by hand")


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.where, self.out = mlp(36, 6, 6), nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        theta = 0.1 * self.where(x.flatten(1)).view(-1, 2, 3) + torch.eye(2, 3, dtype=x.dtype)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return self.out(F.grid_sample(x, grid, align_corners=False).flatten(1))


@instance("spatial transformer (grid_sample)")
def spatial_transformer() -> Case:
    return Case(SpatialTransformer(), [(normal(4, 1, 6, 6), classes(4))], "cross_entropy")


class Capsules(nn.Module):
    """Dynamic routing between capsules (arXiv:1710.09829)."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.weight = nn.Conv2d(1, 4, 3, 2), nn.Parameter(0.3 * torch.randn(8, 3, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        u = squashed(self.primary(x).reshape(len(x), 8, 2))
        votes = torch.einsum("bid,icdk->bick", u, self.weight)
        logits = votes.new_zeros(votes.shape[:3])
        for _ in range(2):
            out = squashed((logits.softmax(2)[..., None] * votes).sum(1))
            logits = logits + (votes * out[:, None]).sum(-1)
        return out.norm(dim=-1)


def squashed(x: Tensor) -> Tensor:
    square = x.square().sum(-1, keepdim=True)
    return x * square.sqrt() / (1 + square)


@instance("capsules with the margin loss")
def capsules() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        lengths, y = m(batch[0]), F.one_hot(batch[1], 3)
        return (y * F.relu(0.9 - lengths) ** 2 + 0.5 * (1 - y) * F.relu(lengths - 0.1) ** 2).sum(1).mean()

    return Case(Capsules(), [(normal(4, 1, 6, 6), classes(4))], loss)


@instance("Siamese network with the triplet margin loss")
def triplet() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        return F.triplet_margin_loss(*(F.normalize(m(x)) for x in batch), margin=0.5)

    model = nn.Sequential(nn.Conv2d(1, 3, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    return Case(model, [tuple(normal(5, 1, 6, 6, seed=s) for s in (1, 2, 3))], loss)


@instance("SimCLR (NT-Xent)")
def simclr() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        z = F.normalize(m(torch.cat(batch)), dim=1)
        n = len(batch[0])
        similar = (z @ z.T / 0.5).masked_fill(torch.eye(2 * n, dtype=torch.bool), float("-inf"))
        return F.cross_entropy(similar, (torch.arange(2 * n) + n) % (2 * n))

    x = normal(4, 1, 6, 6)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    return Case(model, [(x + 0.1 * normal(4, 1, 6, 6, seed=2), x)], loss)


class Detector(nn.Module):
    """Losses in train mode, as torchvision's detectors return them; boxes otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.score, self.box = conv_bn(3, 4, stride=2), nn.Conv2d(4, 1, 1), nn.Conv2d(4, 4, 1)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        y = self.body(torch.stack(images))
        score, box = self.score(y).flatten(1), self.box(y).flatten(2).mT
        if not self.training:
            return [{"boxes": b, "scores": s.sigmoid()} for b, s in zip(box, score, strict=True)]
        assert targets is not None
        off = [F.smooth_l1_loss(b[: len(t["boxes"])], t["boxes"]) for b, t in zip(box, targets, strict=True)]
        return {"objectness": F.softplus(-score).mean(), "boxes": torch.stack(off).mean()}


@instance("detector whose losses exist in train mode only")
def detector() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        return sum(m(*batch).values())

    targets = [{"boxes": uniform(k, 4, seed=k)} for k in (2, 1)]
    return Case(Detector(), [([*normal(2, 3, 8, 8)], targets)], loss, train=True)


@instance("focal loss over anchors of FPN levels")
def retinanet() -> Case:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.lateral = conv_bn(3, 4, stride=2), conv_bn(4, 4, stride=2), nn.Conv2d(4, 4, 1)
            self.head = nn.Conv2d(4, 2, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            low = self.first(x)
            high = self.second(low)
            low = self.lateral(low) + F.interpolate(high, scale_factor=2, mode="nearest")
            return torch.cat([self.head(y).flatten(2).mT for y in (low, high)], 1)

    def loss(m: nn.Module, batch: Any) -> Tensor:
        logits, y = m(batch[0]), batch[1]
        ce = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
        p = torch.exp(-ce)
        return ((1 - p) ** 2 * ce).sum() / max(1, int((y > 0).sum()))

    return Case(Pyramid(), [(normal(2, 3, 8, 8), (uniform(2, 20, 2) > 0.7).float())], loss)
