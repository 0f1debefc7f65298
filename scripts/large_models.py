"""The networks that scripts/gpu measures on: GPT-2, ResNet-50 and ViT-B as plain modules, with random weights and data.

Each takes the number of samples or batches, and `tiny`, which gives layers of the same kinds at a size for a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models import GPT, Block, Problem
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolution, with the stride in the second (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(width), nn.BatchNorm2d(width), nn.BatchNorm2d(4 * width)
        self.short = nn.Sequential()
        if stride > 1 or inside != 4 * width:
            self.short = nn.Sequential(nn.Conv2d(inside, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.short(x))


def resnet50(first: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000) -> nn.Module:
    """25.6 million parameters."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, first, 7, 2, 3, bias=False), nn.BatchNorm2d(first), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    inside = first
    for stage, depth in enumerate(depths):
        width = first * 2**stage
        for number in range(depth):
            layers.append(Bottleneck(inside, width, 2 if stage and not number else 1))
            inside = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))


class ViT(nn.Module):
    """A vision transformer that reads its first token (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1 + (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.head(self.norm(self.blocks(tokens)[:, 0]))


def gpt_124m(samples: int, tiny: bool = False) -> Problem:
    """GPT-2, 124 million parameters, on sequences of 1,024 tokens."""
    length, vocabulary = (16, 50) if tiny else (1024, 50257)
    model = GPT(vocabulary, 16, 1, length, 2, True) if tiny else GPT(vocabulary, 768, 12, length, 12, True)
    tokens = torch.randint(0, vocabulary, (samples, length + 1))
    return Problem(model, [(tokens[:, :-1].contiguous(), tokens[:, 1:].flatten())], nn.CrossEntropyLoss())


def gpt_11m(batches: int, tiny: bool = False) -> Problem:
    """A GPT of 10.9 million parameters in 78 tensors, 8 × 128 tokens a batch."""
    samples, length = (2, 8) if tiny else (8, 128)
    model = GPT(50, 16, 0, length) if tiny else GPT(256, 384, 6, length, 6)
    vocabulary = model.tokens.num_embeddings
    data = [torch.randint(0, vocabulary, (samples, length + 1)) for _ in range(batches)]
    return Problem(model, [(t[:, :-1].contiguous(), t[:, 1:].flatten()) for t in data], nn.CrossEntropyLoss())


def resnet_50(samples: int, tiny: bool = False) -> Problem:
    """On images of 224 × 224."""
    model, size = (resnet50(4, (1,), 10), 16) if tiny else (resnet50(), 224)
    return _images(model, samples, size, 10 if tiny else 1000)


def vit_b(samples: int, tiny: bool = False) -> Problem:
    """ViT-B/16, 86.6 million parameters, on images of 224 × 224."""
    model, size = (ViT(16, 8, 16, 1, 2, 10), 16) if tiny else (ViT(224, 16, 768, 12, 12, 1000), 224)
    return _images(model, samples, size, 10 if tiny else 1000)


def _images(model: nn.Module, samples: int, size: int, classes: int) -> Problem:
    data = [(torch.randn(samples, 3, size, size), torch.randint(0, classes, (samples,)))]
    return Problem(model, data, nn.CrossEntropyLoss())
