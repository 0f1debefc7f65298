"""The networks that scripts/bench_peers.py runs every package on, each small enough for its dense Hessian to be known.

All learn from the digits that come with hvpspec, in float64 and three batches: of 600 for the packaged classifier, of
64 for the other two. Weights and dense Hessians are made once and kept in .cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvpspec
from hvpspec import demo

ROOT = Path(__file__).resolve().parent.parent
STEPS, STEP_SIZE = 400, 3e-3  # of Adam
IMAGES = 64  # in a batch of the U-Net and the mixer, whose dense Hessians take minutes


class UNet(nn.Module):
    """A U-Net with one level of skip connections for images of 8 × 8 (Ronneberger et al., arXiv:1505.04597)."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.last, self.out = nn.Conv2d(2 * width, width, 3, padding=1), nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.gelu(self.first(x))
        inner = F.gelu(self.middle(F.gelu(self.inner(F.avg_pool2d(skip, 2)))))
        return self.out(F.gelu(self.last(torch.cat([skip, self.up(inner)], 1))))


class Mixing(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, tokens), nn.GELU(), nn.Linear(tokens, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """An MLP-Mixer of two blocks on patches of 2 × 2 (Tolstikhin et al., arXiv:2105.01601)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.blocks = nn.Sequential(Mixing(16, width), Mixing(16, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


@dataclass(frozen=True)
class PeerProblem:
    """One network with its data, `criterion(model(x), y)` being the mean loss over a batch, and its dense Hessian."""

    name: str
    about: str
    loss: str  # hvpspec's name of the criterion
    criterion: nn.Module
    make: Callable[[], nn.Module]
    batches: Callable[[], list[tuple[Tensor, Tensor]]]

    def network(self) -> nn.Module:
        """The trained network, in float64."""
        model = self.make().double()
        if self.make is demo.build:
            return hvpspec.load_checkpoint(demo.CHECKPOINT, model).double()
        path = self._cached("pt")
        if not path.exists():
            torch.manual_seed(0)
            model = self.make().double()
            train(model, self.criterion, self.batches())
            torch.save(model.state_dict(), path)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()

    @cached_property
    def dense(self) -> np.ndarray[Any, Any]:
        """The Hessian, entry by entry: rows by autograd on the whole data as one batch."""
        path = self._cached("npy")
        if not path.exists():
            np.save(path, explicit_hessian(self.network(), self.criterion, self.batches()))
        return np.load(path)

    @cached_property
    def values(self) -> np.ndarray[Any, Any]:
        """Its eigenvalues, rising."""
        path = self._cached("values.npy")
        if not path.exists():
            np.save(path, np.linalg.eigvalsh(self.dense))
        return np.load(path)

    def _cached(self, suffix: str) -> Path:
        folder = ROOT / ".cache/peers"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{self.name.replace(' ', '-')}.{suffix}"


def train(model: nn.Module, criterion: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Adam, so that the Hessian is one of a model that has learnt something."""
    optimizer = torch.optim.Adam(model.parameters(), STEP_SIZE)
    for step in range(STEPS):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()


def explicit_hessian(
    model: nn.Module, criterion: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> np.ndarray[Any, Any]:
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(criterion(model(x), y), parameters, create_graph=True)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    rows = [
        torch.cat([piece.reshape(-1) for piece in torch.autograd.grad(entry, parameters, retain_graph=True)])
        for entry in flat
    ]
    H = torch.stack(rows).numpy()
    return (H + H.T) / 2


def classified() -> list[tuple[Tensor, Tensor]]:
    return [(x.double(), y) for x, y in demo.batches()]


def images() -> list[tuple[Tensor, Tensor]]:
    return [(x[:IMAGES].view(-1, 1, 8, 8), y[:IMAGES]) for x, y in classified()]


def noisy() -> list[tuple[Tensor, Tensor]]:
    """Images with noise, and without."""
    generator = torch.Generator().manual_seed(0)
    return [(x + 0.3 * torch.randn(x.shape, generator=generator).double(), x) for x, _ in images()]


PROBLEMS = (
    PeerProblem(
        "digits", "the digits checkpoint, a classifier", "cross_entropy", nn.CrossEntropyLoss(), demo.build, classified
    ),
    PeerProblem("U-Net", "a U-Net that removes noise from the images", "mse", nn.MSELoss(), UNet, noisy),
    PeerProblem("mixer", "an MLP-Mixer that classifies them", "cross_entropy", nn.CrossEntropyLoss(), Mixer, images),
)
