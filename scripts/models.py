"""The networks that scripts/bench_oracle.py measures on, each with its data and loss; random but for CREPE."""

from __future__ import annotations

from dataclasses import dataclass

import crepe
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvpspec


@dataclass
class Problem:
    """`criterion(model(x), y)` is the mean loss over a batch (x, y)."""

    model: nn.Module
    data: list[tuple[Tensor, Tensor]]
    criterion: nn.Module


class Attention(nn.Module):
    """Written out, as the fused kernels have no second derivative."""

    def __init__(self, width: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / (d // self.heads) ** 0.5
        if self.causal:
            future = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    def __init__(self, width: int, heads: int = 4, causal: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A decoder; logits come flat, (b · t, vocabulary), as cross-entropy takes them.

    tied: the head has the tokens' weight and no bias, as in GPT-2.
    """

    def __init__(
        self,
        vocabulary: int = 256,
        width: int = 128,
        depth: int = 4,
        length: int = 128,
        heads: int = 4,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=not tied)
        if tied:
            nn.init.normal_(self.tokens.weight, std=0.02)
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(x) + self.positions[: x.shape[1]]))).flatten(0, 1)


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)
        self.short = nn.Sequential()
        if stride > 1:
            self.short = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.short(x))


def resnet20() -> nn.Module:
    """ResNet-20 for 32 × 32 images (He et al. 2016, arXiv:1512.03385), 0.27 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inside = 16
    for outside in (16, 32, 64):
        for number in range(3):
            layers.append(Residual(inside, outside, 2 if outside > inside and number == 0 else 1))
            inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def mlp(batches: int = 1, width: int = 256) -> Problem:
    model = nn.Sequential(
        nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)
    )  # fmt: skip
    data = [(torch.randn(1024, 64), torch.randint(0, 10, (1024,))) for _ in range(batches)]
    return Problem(model, data, nn.CrossEntropyLoss())


def gpt(batches: int = 1) -> Problem:
    tokens = [torch.randint(0, 256, (8, 129)) for _ in range(batches)]
    return Problem(GPT(), [(t[:, :-1].contiguous(), t[:, 1:].flatten()) for t in tokens], nn.CrossEntropyLoss())


def resnet(batches: int = 1) -> Problem:
    data = [(torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))) for _ in range(batches)]
    return Problem(resnet20(), data, nn.CrossEntropyLoss())


def crepe_tiny(batches: int = 1) -> Problem:
    model = hvpspec.load_checkpoint(crepe.fetch(), crepe.build())
    return Problem(model, crepe.batches()[:batches], nn.BCELoss())


class Recurrent(nn.Module):
    """Tokens, two layers of 96, and a head on the mean of their outputs."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.tokens, self.layers = nn.Embedding(200, 48), layer(48, 96, num_layers=2, batch_first=True)
        self.head = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.tokens(x))[0].mean(1))


def recurrent(layer: type[nn.RNNBase], steps: int) -> Problem:
    return Problem(
        Recurrent(layer), [(torch.randint(0, 200, (32, steps)), torch.randint(0, 5, (32,)))], nn.CrossEntropyLoss()
    )


PROBLEMS = {
    "MLP 85k, batch 1024": mlp,
    "GPT 0.94M, 8 × 128 tokens": gpt,
    "ResNet-20 0.27M, batch 64": resnet,
    "CREPE tiny 0.49M, batch 32": crepe_tiny,
    "LSTM 0.14M, 32 × 40 steps": lambda: recurrent(nn.LSTM, 40),
    "LSTM 0.14M, 32 × 200 steps": lambda: recurrent(nn.LSTM, 200),
    "GRU 0.11M, 32 × 40 steps": lambda: recurrent(nn.GRU, 40),
    "GRU 0.11M, 32 × 200 steps": lambda: recurrent(nn.GRU, 200),
}
