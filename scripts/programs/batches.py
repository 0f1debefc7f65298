"""Batches of all forms, and losses that are means over something else than samples."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from programs.program import Case, Program, mlp, points, refused, split

PARTS = (slice(0, 3), slice(3, 8))


def lists_of_samples(entry: Any, read: Any) -> Case:
    x, y = torch.randn(8, 4), torch.randn(8)
    samples = [entry(a, b) for a, b in zip(x, y, strict=True)]

    def loss(m: nn.Module, batch: Any) -> Tensor:
        return torch.stack([(m(read(sample)[0]).sum() - read(sample)[1]) ** 2 for sample in batch]).mean()

    return Case(mlp(), loss, [samples[s] for s in PARTS], lambda m: (m(x).sum(1) - y).square().mean())


def images_of_different_sizes() -> Case:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

        def forward(self, images: Any) -> Tensor:
            pooled = [self.convolution(image[None]).tanh().mean((2, 3)) for image in images]
            return self.head(torch.cat(pooled))

    images = tuple(torch.randn(1, 5 + i % 3, 6) for i in range(8))
    y = torch.randint(0, 3, (8,))

    def loss(m: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(m(batch[0]), torch.stack(list(batch[1])))

    data = [(images[s], tuple(y[s])) for s in PARTS]
    return Case(Pooled(), loss, data, lambda m: F.cross_entropy(m(images), y))


def batches_of_different_image_sizes() -> Case:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    data = [(torch.randn(n, 1, s, s), torch.randint(0, 3, (n,))) for n, s in ((3, 5), (5, 7))]
    return Case(
        model,
        lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]),
        data,
        lambda m: sum(F.cross_entropy(m(x), y, reduction="sum") for x, y in data) / 8,
    )


def detection() -> Case:
    """Means over boxes, of which images have different numbers, plus a term that is a mean over images."""
    model = nn.Linear(4, 4)
    images = [torch.randn(4) for _ in range(8)]
    targets = [{"boxes": torch.rand(1 + i % 3, 4)} for i in range(8)]

    def loss(m: nn.Module, batch: Any) -> Tensor:
        off = [(m(image).tanh() - t["boxes"]).square().sum() for image, t in zip(*batch, strict=True)]
        entropy = torch.stack([m(image).logsumexp(0) for image in batch[0]]).mean()
        return torch.stack(off).sum() / sum(len(t["boxes"]) for t in batch[1]) + entropy

    return Case(model, loss, [(images[s], targets[s]) for s in PARTS])


class TimeFirst(nn.Module):
    """A recurrent network with the time first."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0])


def time_first(model: nn.Module) -> Case:
    x, y = torch.randn(6, 8, 3), torch.randn(6, 8, 2)
    data = [(x[:, s], y[:, s]) for s in PARTS]
    return Case(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), data, lambda m: F.mse_loss(m(x), y))


def masked_mean() -> Case:
    x, y = torch.randn(8, 5, 4), torch.randn(8, 5, 3)
    mask = torch.rand(8, 5) < 0.6

    def loss(m: nn.Module, batch: Any) -> Tensor:
        off = (m(batch["x"]) - batch["y"]).square().mean(2)
        return (off * batch["mask"]).sum() / batch["mask"].sum()

    data = [{"x": x[s], "y": y[s], "mask": mask[s]} for s in PARTS]
    return Case(mlp(), loss, data, lambda m: loss(m, {"x": x, "y": y, "mask": mask}))


def ignored_targets(ignored: int) -> Case:
    x, y = torch.randn(8, 5, 4), torch.randint(1, 3, (8, 5))
    y[torch.rand(8, 5) < 0.4] = ignored

    def loss(m: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(m(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=ignored)

    return Case(mlp(), loss, split(x, y), lambda m: loss(m, (x, y)))


def all_of_a_batch_ignored() -> Case:
    case = ignored_targets(-100)
    x, y = (torch.cat(parts) for parts in zip(*case.data, strict=True))
    y[2:5] = -100
    data = [(x[2:4], y[2:4]), (x[:2], y[:2]), (x[4:], y[4:])]
    return Case(case.model, case.loss, data, lambda m: case.loss(m, (x, y)))


def sample_weights() -> Case:
    x, y = points()
    w = torch.rand(8)

    def loss(m: nn.Module, batch: Any) -> Tensor:
        return (batch[2] * F.cross_entropy(m(batch[0]), batch[1], reduction="none")).sum() / batch[2].sum()

    return Case(mlp(), loss, split(x, y, w), lambda m: loss(m, (x, y, w)))


def class_weights() -> Case:
    weight = torch.tensor([0.2, 1.0, 3.0])
    return Case(mlp(), lambda m, b: F.cross_entropy(m(b[0]), b[1], weight), split(*points()))


def sequences_of_different_lengths(model: nn.Module) -> Case:
    data = [(torch.randn(4, t, 4), torch.randint(0, 3, (4, t))) for t in (5, 7)]

    def whole(m: nn.Module) -> Tensor:
        return sum(F.cross_entropy(m(x).flatten(0, 1), y.flatten(), reduction="sum") for x, y in data) / 48

    return Case(model, lambda m, b: F.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten()), data, whole)


class Attentive(nn.Module):
    """A network in which the elements of a sequence see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    y: Tensor
    note: str = "a batch"


class Graphs:
    """As torch_geometric.data.Batch, of one feature vector a graph."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.num_graphs = x, y, len(y)

    def to(self, device: Any) -> Graphs:
        return Graphs(self.x.to(device), self.y.to(device))


def of_form(make: Any) -> Case:
    x, y = points()

    def loss(m: nn.Module, batch: Any) -> Tensor:
        get = (lambda key: batch[key]) if hasattr(batch, "keys") else (lambda key: getattr(batch, key))
        return F.cross_entropy(m(torch.as_tensor(get("x"))), torch.as_tensor(get("y")))

    return Case(mlp(), loss, [make(x[s], y[s]) for s in PARTS], lambda m: F.cross_entropy(m(x), y))


def texts() -> Case:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(26, 3)

        def forward(self, words: list[str]) -> Tensor:
            rows = [self.table(torch.tensor([ord(c) - 97 for c in word])).tanh().sum(0) for word in words]
            return torch.stack(rows)

    words = ["trace", "norm", "lanczos", "ritz", "hessian", "probe", "vector", "basis"]
    y = torch.randint(0, 3, (8,))
    data = [(words[s], y[s]) for s in PARTS]
    return Case(Bag(), lambda m, b: F.cross_entropy(m(b[0]), b[1]), data, lambda m: F.cross_entropy(m(words), y))


PROGRAMS = (
    Program("lists of (x, y) samples", lambda: lists_of_samples(lambda a, b: (a, b), lambda s: s)),
    Program("lists of dicts", lambda: lists_of_samples(lambda a, b: {"x": a, "y": b}, lambda s: (s["x"], s["y"]))),
    Program("tuples of images of different sizes", images_of_different_sizes),
    Program("batches of different image sizes", batches_of_different_image_sizes),
    Program("detection, means over boxes and images", detection, refused("weight")),
    Program("recurrent, time first", lambda: time_first(TimeFirst())),
    Program("pointwise in time, time first", lambda: time_first(mlp(3, 5, 2))),
    Program("a mean under a mask", masked_mean),
    Program("ignore_index=0", lambda: ignored_targets(0)),
    Program("a batch without targets", all_of_a_batch_ignored),
    Program("weights of samples", sample_weights),
    Program("class weights in a function", class_weights, refused("weight")),
    Program("sequences of different lengths, pointwise", lambda: sequences_of_different_lengths(mlp())),
    Program(
        "sequences of different lengths, with attention",
        lambda: sequences_of_different_lengths(Attentive()),
        refused("weight"),
    ),
    Program("a NamedTuple", lambda: of_form(Pair)),
    Program("a frozen dataclass", lambda: of_form(Frozen)),
    Program("a UserDict (BatchEncoding)", lambda: of_form(lambda x, y: UserDict(x=x, y=y))),
    Program("NumPy arrays", lambda: of_form(lambda x, y: {"x": x.numpy(), "y": y.numpy()})),
    Program("batches of graphs", lambda: of_form(Graphs)),
    Program("texts", texts),
)
