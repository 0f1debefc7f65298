"""Losses that are easy or hard to difference (smooth, with kinks, in single precision inside, steep), and vectors.

Where a loss rounds to single precision inside, its Hessian is that of the same loss without this rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Case, Encoder, Language, explicit_hessian

Whole = Callable[[nn.Module, Any], Tensor]


@dataclass
class Rough:
    """`loss(model, batch)` with the data in one batch, in float64 unless said otherwise; `exact` is for the Hessian."""

    model: nn.Module
    loss: Whole
    batch: Any
    exact: Whole | None = None
    dtype: torch.dtype = field(default=torch.float64)

    def hessian(self) -> np.ndarray:
        """Row by row, by differentiating the gradient."""
        loss = self.exact or self.loss
        self.model.double()
        batch = tuple(t.double() if t.is_floating_point() else t for t in self.batch)
        found = explicit_hessian(Case(self.model, None, [], lambda model: loss(model, batch)))
        self.model.to(self.dtype)
        return found


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def mse(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def net(*layers: nn.Module, loss: Whole = mse, inputs: int = 4, samples: int = 20) -> Rough:
    """Layers from `inputs` numbers to 3."""
    x = torch.randn(samples, inputs)
    y = torch.arange(samples) % 3 if loss is cross_entropy else torch.randn(samples, 3)
    return _double(Rough(nn.Sequential(*layers), loss, (x, y)))


def mlp(activation: nn.Module, width: int = 8, loss: Whole = mse, **options: Any) -> Rough:
    return net(nn.Linear(4, width), activation, nn.Linear(width, width), activation, nn.Linear(width, 3),
               loss=loss, **options)  # fmt: skip


def images(pool: nn.Module, activation: nn.Module) -> Rough:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), activation, pool, nn.Flatten(), nn.Linear(16, 3))
    model[1].running_mean.uniform_(-0.5, 0.5)
    model[1].running_var.uniform_(0.5, 2)
    return _double(Rough(model, cross_entropy, (torch.randn(12, 1, 6, 6), torch.arange(12) % 3)))


def encoder() -> Rough:
    return _double(Rough(Encoder(), cross_entropy, (torch.randn(6, 5, 4), torch.arange(6) % 3)))


def language(padding: bool) -> Rough:
    """A tiny language model, whose head is tied to its embedding, with or without a padding row."""
    model = Language(tied=True)
    if padding:
        model.embedding.padding_idx = 0
    ids = torch.randint(0, 7, (6, 5))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0])[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten())

    def exact(model: nn.Module, batch: Any) -> Tensor:
        looked_up = model.embedding.weight
        if padding:
            looked_up = torch.cat([looked_up[:1].detach(), looked_up[1:]])
        x = looked_up[batch[0]]
        q, k, v = model.qkv(model.norm(x)).unsqueeze(1).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)
        return F.cross_entropy(model.head(x)[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten())

    return _double(Rough(model, loss, (ids,), exact))


class Single(nn.Module):
    """A layer that is computed in single precision, as norms are that say `.float()`; not so where `exact`."""

    def __init__(self, layer: nn.Module, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer, self.precision, self.exact = layer, precision, False

    def forward(self, x: Tensor) -> Tensor:
        if self.exact:
            return self.layer(x)
        return self.layer(x.to(self.precision).to(x.dtype)).to(self.precision).to(x.dtype)


class Steep(nn.Module):
    """p ↦ pᵀA p / 2 with a condition number of 1e6, and a ripple along its steepest direction."""

    def __init__(self, ripple: float, n: int = 60) -> None:
        super().__init__()
        axes = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]
        self.p = nn.Parameter(torch.randn(n))
        self.register_buffer("A", (axes * torch.logspace(3, -3, n)) @ axes.T)
        self.register_buffer("top", axes[:, 0].clone())
        self.ripple = ripple

    def forward(self, x: Tensor) -> Tensor:
        return self.p @ self.A @ self.p / 2 + torch.sin(self.ripple * (self.p @ self.top)) + 0 * x.sum()


def single(layer: nn.Module, precision: torch.dtype = torch.float32) -> Rough:
    """A smooth network with one layer in single precision inside."""
    made = net(nn.Linear(4, 8), Single(layer, precision), nn.Tanh(), nn.Linear(8, 3), loss=cross_entropy)

    def exact(model: nn.Module, batch: Any) -> Tensor:
        model[1].exact = True
        try:
            return cross_entropy(model, batch)
        finally:
            model[1].exact = False

    made.exact = exact
    return made


def steep_single() -> Rough:
    """Steep, with p rounded to single precision first."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        q = model.p.float()
        return (q @ model.A.float() @ q / 2).double() + torch.sin(3 * (model.p @ model.top))

    return _double(Rough(Steep(3.0), loss, (torch.ones(1),), lambda m, b: m(b[0])))


def only_single(made: Rough) -> Rough:
    """With an operation that has no float64."""
    inner = made.loss

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if batch[0].dtype == torch.float64:
            raise RuntimeError("not implemented for 'Double'")
        return inner(model, batch)

    made.model.float()
    return Rough(made.model, loss, tuple(t.float() if t.is_floating_point() else t for t in made.batch),
                 inner, torch.float32)  # fmt: skip


def scaled(made: Rough, factor: float) -> Rough:
    """The loss in other units of the parameters: q = factor · p."""
    inner, model = made.loss, made.model

    def loss(model: nn.Module, batch: Any) -> Tensor:
        values = {name: p / factor for name, p in model.named_parameters()}
        return inner(lambda x: torch.func.functional_call(model, values, (x,)), batch)  # type: ignore[arg-type]

    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    return Rough(model, loss, made.batch)


def times(made: Rough, factor: float, offset: float = 0.0) -> Rough:
    """The loss times a factor, plus a constant."""
    inner = made.loss
    return Rough(made.model, lambda model, batch: factor * inner(model, batch) + offset, made.batch)


def clamped(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]).clamp(-0.3, 0.3) - batch[1]).square().mean()


def hinge(model: nn.Module, batch: Any) -> Tensor:
    return F.relu(0.5 - model(batch[0]) * batch[1].sign()).mean()


def uneven(made: Rough) -> Rough:
    """One layer with weights a thousand times as large, behind inputs a thousand times as small."""
    with torch.no_grad():
        made.model[0].weight.mul_(1e3)
    return Rough(made.model, made.loss, (made.batch[0] / 1e3, *made.batch[1:]))


def cubic() -> Rough:
    return _double(Rough(nn.Linear(2, 1, bias=False), lambda m, b: (m(b[0]) ** 3).sum() + m.weight.cos().sum(),
                         (torch.randn(3, 2),)))  # fmt: skip


def _double(made: Rough) -> Rough:
    made.model.double()
    return Rough(made.model, made.loss, tuple(t.double() if t.is_floating_point() else t for t in made.batch),
                 made.exact, made.dtype)  # fmt: skip


l1: Whole = lambda m, b: F.l1_loss(m(b[0]), b[1])  # noqa: E731
huber: Whole = lambda m, b: F.huber_loss(m(b[0]), b[1], delta=0.5)  # noqa: E731

MODELS: dict[str, Callable[[], Rough]] = {
    "MLP, tanh": lambda: mlp(nn.Tanh(), loss=cross_entropy),
    "MLP, softplus": lambda: mlp(nn.Softplus(), loss=cross_entropy),
    "MLP, GELU and LayerNorm": lambda: net(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)),
    "CNN, BatchNorm, average pooling": lambda: images(nn.AvgPool2d(2), nn.SiLU()),
    "transformer layer": encoder,
    "language model, tied": lambda: language(False),
    "language model, tied, padding row": lambda: language(True),
    "quadratic, condition 1e6": lambda: _double(Rough(Steep(0.0), lambda m, b: m(b[0]), (torch.ones(1),))),
    "quadratic with a ripple": lambda: _double(Rough(Steep(50.0), lambda m, b: m(b[0]), (torch.ones(1),))),
    "MLP, parameters × 1e-6": lambda: scaled(mlp(nn.Tanh()), 1e-6),
    "MLP, parameters × 1e6": lambda: scaled(mlp(nn.Tanh()), 1e6),
    "MLP, one layer × 1e3": lambda: uneven(mlp(nn.Tanh())),
    "MLP, loss × 1e-6": lambda: times(mlp(nn.Tanh()), 1e-6),
    "MLP, loss × 1e-6 + 1": lambda: times(mlp(nn.Tanh()), 1e-6, 1.0),
    "MLP, ReLU, 8 wide": lambda: mlp(nn.ReLU()),
    "MLP, ReLU, 20 wide, 1000 samples": lambda: mlp(nn.ReLU(), 20, samples=1000),
    "CNN, max pooling": lambda: images(nn.MaxPool2d(2), nn.ReLU()),
    "MLP, hard tanh": lambda: mlp(nn.Hardtanh(-0.3, 0.3), 16),
    "absolute error, 1000 samples": lambda: mlp(nn.Tanh(), loss=l1, samples=1000),
    "Huber": lambda: mlp(nn.Tanh(), loss=huber, samples=200),
    "clamped outputs": lambda: mlp(nn.Tanh(), loss=clamped, samples=100),
    "hinge": lambda: mlp(nn.Tanh(), loss=hinge),
    "LayerNorm in float32 inside": lambda: single(nn.LayerNorm(8)),
    "linear layer in float32 inside": lambda: single(nn.Linear(8, 8)),
    "linear layer in bfloat16 inside": lambda: single(nn.Linear(8, 8), torch.bfloat16),
    "quadratic in float32 inside": steep_single,
    "MLP, tanh, float32 only": lambda: only_single(mlp(nn.Tanh(), loss=cross_entropy)),
    "MLP, ReLU, float32 only": lambda: only_single(mlp(nn.ReLU(), 16)),
    "absolute error, float32 only": lambda: only_single(mlp(nn.Tanh(), loss=l1, samples=200)),
    "cubic in two parameters": cubic,
}


def vectors(hessian: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Columns in turn: random, eigenvectors from both ends, coordinates, and Lanczos vectors from a random start."""
    rng = np.random.default_rng(seed)
    n = len(hessian)
    axes = np.linalg.eigh(hessian)[1]
    order = np.argsort(-np.abs(np.linalg.eigvalsh(hessian)))
    lanczos = np.linalg.qr(rng.standard_normal((n, 1)))[0]
    while lanczos.shape[1] < min(count, n):
        w = hessian @ lanczos[:, -1]
        for _ in range(2):
            w -= lanczos @ (lanczos.T @ w)
        if np.linalg.norm(w) < 1e-10 * np.abs(hessian).max():
            break
        lanczos = np.column_stack([lanczos, w / np.linalg.norm(w)])
    columns = []
    for i in range(count):
        turn, j = i % 5, i // 5
        columns.append(
            [
                rng.standard_normal(n),
                axes[:, order[j % n]],
                lanczos[:, j % lanczos.shape[1]],
                np.eye(n)[rng.integers(n)],
                axes[:, order[-1 - j % n]],
            ][turn]
        )
    return np.column_stack(columns)
