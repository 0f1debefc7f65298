"""Losses as criteria, as functions of outputs and targets, and inside models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from programs.program import Case, Program, mlp, points, refused, split


class Focal(nn.CrossEntropyLoss):
    """A subclass with a forward of its own."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        entropy = F.cross_entropy(input, target, reduction="none")
        return ((1 - (-entropy).exp()) ** 2 * entropy).mean()


class Tempered(nn.Module):
    """A criterion with a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(2.0, dtype=torch.float32))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs / self.temperature, targets)


def criterion(loss: Any, expected: Any = None) -> Case:
    x, y = points()
    whole = expected or loss
    return Case(mlp(), loss, split(x, y), lambda m: whole(m(x), y))


def regression(loss: Any, targets: Any = torch.rand, expected: Any = None) -> Case:
    x, y = torch.randn(8, 4), targets(8, 3)
    whole = expected or loss
    return Case(mlp(), loss, split(x, y), lambda m: whole(m(x), y))


def with_label_smoothing() -> Case:
    weight = torch.tensor([0.2, 1.0, 3.0])
    x, y = points()
    y[4] = -1
    loss = nn.CrossEntropyLoss(weight, ignore_index=-1, label_smoothing=0.1)
    return Case(mlp(), loss, split(x, y), lambda m: loss(m(x), y))


class WithLoss(nn.Module):
    """A model that computes its own loss where it gets targets."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.body, self.form = mlp(), form

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.body(x)
        loss = F.cross_entropy(logits, labels)
        if self.form == "nanoGPT":
            return logits, loss
        if self.form == "tuple":
            return loss, logits
        return {"loss": loss, "logits": logits} if self.form == "dict" else SimpleNamespace(loss=loss, logits=logits)


def own(form: str, keywords: bool = True) -> Case:
    x, y = points()
    batches = split(x, y)
    data: list[Any] = [{"x": a, "labels": b} for a, b in batches] if keywords else batches
    return Case(WithLoss(form), "model", data, lambda m: F.cross_entropy(m.body(x), y))


def sum_of(batches: tuple[int, ...]) -> Case:
    x, y = points()

    def loss(m: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(m(batch[0]), batch[1], reduction="sum")

    whole = (lambda m: loss(m, (x, y))) if len(batches) == 1 else None
    return Case(mlp(), loss, split(x, y, sizes=batches), whole)


def returning(second: Any) -> Case:
    x, y = points()

    def loss(m: nn.Module, batch: Any) -> Any:
        outputs = m(batch[0])
        return F.cross_entropy(outputs, batch[1]), second(outputs, batch[1])

    return Case(mlp(), loss, split(x, y), lambda m: F.cross_entropy(m(x), y))


def multi_task() -> Case:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.body(x).tanh()
            return self.a(h), self.b(h)

    def loss(outputs: Any, targets: Any) -> Tensor:
        return F.cross_entropy(outputs[0], targets["class"]) + 0.5 * F.mse_loss(outputs[1], targets["value"])

    x, y = points()
    value = torch.randn(8, 1)
    data = [(x[s], {"class": y[s], "value": value[s]}) for s in (slice(0, 3), slice(3, 8))]
    return Case(Heads(), loss, data, lambda m: loss(m(x), {"class": y, "value": value}))


def signs(*shape: int) -> Tensor:
    return torch.where(torch.rand(*shape) < 0.5, -1.0, 1.0)


PROGRAMS = (
    Program("a criterion's subclass (focal loss)", lambda: criterion(Focal())),
    Program("a criterion with a float32 buffer", lambda: criterion(Tempered())),
    Program("loss(outputs, targets)", lambda: criterion(lambda outputs, targets: F.cross_entropy(outputs, targets))),
    Program("F.cross_entropy itself", lambda: criterion(F.cross_entropy)),
    Program("class weights and label smoothing", with_label_smoothing),
    Program("nn.HuberLoss", lambda: regression(nn.HuberLoss())),
    Program("nn.PoissonNLLLoss", lambda: regression(nn.PoissonNLLLoss())),
    Program("nn.SoftMarginLoss", lambda: regression(nn.SoftMarginLoss(), signs)),
    Program("nn.MultiLabelSoftMarginLoss", lambda: regression(nn.MultiLabelSoftMarginLoss())),
    Program("nn.KLDivLoss by batchmean", lambda: regression(nn.KLDivLoss(reduction="batchmean"))),
    Program("several heads, targets in a dict", multi_task),
    Program("a model that returns its loss", lambda: own("object")),
    Program("a model that returns a dict with its loss", lambda: own("dict")),
    Program("a model that returns (loss, logits)", lambda: own("tuple")),
    Program("a model that returns (logits, loss)", lambda: own("nanoGPT", keywords=False)),
    Program("a sum over one batch", lambda: sum_of((8,))),
    Program("a sum over each batch", lambda: sum_of((3, 5)), refused("sum over the batch")),
    Program(
        "return loss, accuracy",
        lambda: returning(lambda out, y: (out.argmax(1) == y).double().mean()),
        refused("not the weight"),
    ),
    Program(
        "return loss, number correct",
        lambda: returning(lambda out, y: (out.argmax(1) == y).sum() + 1),
        refused("not the weight"),
    ),
    Program("return loss, logits", lambda: returning(lambda out, y: out), refused("second value")),
    Program("return loss, dict", lambda: returning(lambda out, y: {"n": len(y)}), refused("second value")),
    Program("return loss, number of samples", lambda: returning(lambda out, y: len(y))),
)
