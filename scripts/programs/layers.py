"""Layers whose kernels, precision or number format need care."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from programs.program import Case, Program, points, refused, split
from programs.shared import classified


class Fourier(nn.Module):
    """A Fourier neural operator with complex weights kept as pairs of real numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 3, 1, bias=False), nn.Conv2d(3, 1, 1)
        self.weight = nn.Parameter(0.3 * torch.randn(3, 3, 3, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        f = torch.fft.rfft2(self.first(x))
        g = torch.zeros_like(f)
        weight = torch.view_as_complex(self.weight)
        g[:, :, :3, :3] = torch.einsum("bixy,ioxy->boxy", f[:, :, :3, :3], weight)
        return self.last(F.gelu(torch.fft.irfft2(g, s=x.shape[-2:])))


def fourier() -> Case:
    x, y = torch.randn(5, 1, 8, 8), torch.randn(5, 1, 8, 8)
    return Case(Fourier(), "mse", split(x, y, sizes=(2, 3)), lambda m: F.mse_loss(m(x), y))


def sequence(make: Any, width: int = 3) -> Case:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = make(), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out = self.layer(x)
            return self.head((out[0] if isinstance(out, tuple) else out).mean(1))

    x, y = torch.randn(8, 5, width), torch.randint(0, 3, (8,))
    return classified(Sequence(), x, y)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def embedded(make: Any, shape: tuple[int, ...]) -> Case:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = make(), nn.Linear(4, 3)

        def forward(self, ids: Tensor) -> Tensor:
            rows = self.table(ids)
            return self.head((rows if rows.ndim == 2 else rows.mean(1)).tanh())

    ids, y = torch.randint(0, 7, shape), torch.randint(0, 3, shape[:1])
    x = ids

    def whole(m: nn.Module) -> Tensor:
        weight = m.table.weight
        if getattr(m.table, "padding_idx", None) is not None:
            row = m.table.padding_idx
            weight = torch.cat([weight[:row], weight[row : row + 1].detach(), weight[row + 1 :]])
        rows = weight[x]
        rows = rows.mean(1) if rows.ndim == 3 else rows
        return F.cross_entropy(m.head(rows.tanh()), y)

    return Case(Embedded(), "cross_entropy", split(x, y), whole)


class Single(nn.Module):
    """A norm that is computed in single precision whatever the model's, as in T5 and Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        single = x.float()
        return self.weight * (single * (single.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)


def single_inside() -> Case:
    return classified(nn.Sequential(nn.Linear(4, 5), Single(), nn.Tanh(), nn.Linear(5, 3)), *points())


def convolutional(norm: nn.Module) -> Case:
    with torch.no_grad():
        for name, buffer in norm.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape) + (0.5 if "var" in name else 0.0))
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    x, y = torch.randn(8, 1, 6, 6), torch.randint(0, 3, (8,))
    return classified(model, x, y)


def batch_statistics() -> Case:
    """A BatchNorm that the forward sets to training: the loss of a batch is no mean over its samples."""

    class Always(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, None, None, self.weight, self.bias, True)

    return Case(
        nn.Sequential(nn.Linear(4, 5), Always(5), nn.Tanh(), nn.Linear(5, 3)),
        lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        split(*points()),
    )


def autocast_inside() -> Case:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return self.body(x)

    return classified(Mixed(), *points())


PROGRAMS = (
    Program("a Fourier neural operator", fourier),
    Program("nn.LSTM", lambda: sequence(lambda: nn.LSTM(3, 8, batch_first=True))),
    Program("nn.GRU, bidirectional", lambda: sequence(lambda: nn.GRU(3, 4, batch_first=True, bidirectional=True))),
    Program(
        "nn.TransformerEncoderLayer",
        lambda: sequence(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 8),
    ),
    Program("nn.MultiheadAttention", lambda: sequence(SelfAttention, 8)),
    Program("a sparse embedding", lambda: embedded(lambda: nn.Embedding(7, 4, sparse=True), (8,))),
    Program("a padding row", lambda: embedded(lambda: nn.Embedding(7, 4, padding_idx=2), (8, 5))),
    Program("nn.EmbeddingBag", lambda: embedded(lambda: nn.EmbeddingBag(7, 4), (8, 5))),
    Program("a norm in single precision", single_inside, tolerance=1e-6),
    Program("batch norm in eval mode", lambda: convolutional(nn.BatchNorm2d(4))),
    Program("group norm", lambda: convolutional(nn.GroupNorm(2, 4))),
    Program("instance norm", lambda: convolutional(nn.InstanceNorm2d(4, affine=True))),
    Program("statistics of the batch in a norm", batch_statistics, refused("weight")),
    Program("autocast turned off inside", autocast_inside),
)
