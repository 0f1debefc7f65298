"""The packaged example: a small classifier of handwritten digits, with its checkpoint and its data.

Trained by `scripts/train_demo.py` on scikit-learn's digits (UCI ML hand-written digits, CC BY 4.0, 1,797 images).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

_HERE = Path(__file__).parent
CHECKPOINT = _HERE / "digits.pt"
DATA = _HERE / "digits.npz"


def build() -> nn.Module:
    """The network: 64 pixels, two hidden layers of 32, ten classes; 3,466 parameters."""
    return nn.Sequential(
        nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)
    )  # fmt: skip


def batches(size: int = 600) -> list[tuple[Tensor, Tensor]]:
    """The training data: pixels scaled to [0, 1], shape (b, 64), and labels, shape (b,)."""
    with np.load(DATA) as data:
        images = torch.from_numpy(data["images"]).float() / 16
        labels = torch.from_numpy(data["labels"]).long()
    return list(zip(torch.split(images, size), torch.split(labels, size), strict=True))
