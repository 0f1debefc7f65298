"""Small models with data and a loss, one of each kind, and their explicit Hessians made without hvpspec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass
class Case:
    """`whole(model)` is the mean loss over all the data at once, written out plainly."""

    model: nn.Module
    loss: Any
    data: list[Any]
    whole: Callable[[nn.Module], Tensor]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Language(nn.Module):
    """An embedding, one attention block, and an output layer tied to the embedding or not."""

    def __init__(self, tied: bool, vocabulary: int = 7, width: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        q, k, v = self.qkv(self.norm(x)).unsqueeze(1).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)
        return self.head(x)


class Encoder(nn.Module):
    """torch's own transformer layer, whose eval mode takes kernels without a second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.3, activation="gelu", batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


def mlp() -> Case:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))
    return _classifier(model, torch.randn(23, 4), 3)


def cnn() -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    )
    with torch.no_grad():  # statistics other than those of any batch
        model[1].running_mean.uniform_(-0.5, 0.5)
        model[1].running_var.uniform_(0.5, 2)
    return _classifier(model, torch.randn(17, 1, 6, 6), 3)


def encoder() -> Case:
    return _classifier(Encoder(), torch.randn(9, 5, 4), 3)


def lstm() -> Case:
    x, y = torch.randn(11, 5, 3).double(), torch.randn(11, 2).double()
    model = Recurrent().double()
    return Case(model, "mse", _split((x, y), [4, 7]), lambda m: F.mse_loss(m(x), y))


def embedding() -> Case:
    model = nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Tanh(), nn.Linear(12, 1)).double()
    x, y = torch.randint(0, 6, (13, 4)), torch.rand(13, 1).double()
    return Case(
        model, "bce_with_logits", _split((x, y), [5, 5, 3]),
        lambda m: F.binary_cross_entropy_with_logits(m(x), y),
    )  # fmt: skip


def language(tied: bool) -> Case:
    model = Language(tied).double()
    ids = torch.randint(0, 7, (6, 5))
    mask = torch.ones_like(ids)
    mask[1, 3:] = mask[4, 2:] = 0

    def whole(m: nn.Module) -> Tensor:
        logits = m(ids)[:, :-1]
        kept = mask[:, 1:].bool()
        return F.cross_entropy(logits[kept], ids[:, 1:][kept])

    data = [{"input_ids": ids[s], "attention_mask": mask[s]} for s in (slice(0, 4), slice(4, 6))]
    return Case(model, "causal_lm", data, whole)


CASES: dict[str, Callable[[], Case]] = {
    "mlp": mlp,
    "cnn with batchnorm": cnn,
    "transformer layer": encoder,
    "lstm": lstm,
    "embedding": embedding,
    "language model": lambda: language(tied=False),
    "tied weights": lambda: language(tied=True),
}


def explicit_hessian(case: Case) -> np.ndarray:
    """Row by row from gradients of the whole data's loss, in eval mode, over all trainable parameters."""
    modes = [(m, m.training) for m in case.model.modules()]
    case.model.eval()
    parameters = [p for p in case.model.parameters() if p.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        loss = case.whole(case.model)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        rows = [
            torch.cat([r.reshape(-1) for r in torch.autograd.grad(g, parameters, retain_graph=True,
                                                                  materialize_grads=True)])
            for gradient in gradients for g in gradient.reshape(-1)
        ]  # fmt: skip
    for module, mode in modes:
        module.training = mode
    return torch.stack(rows).numpy()


def _classifier(model: nn.Module, x: Tensor, classes: int) -> Case:
    model, x = model.double(), x.double()
    y = torch.randint(0, classes, (len(x),))
    sizes = [len(x) // 3 + 1, len(x) // 3, len(x) - 2 * (len(x) // 3) - 1]
    return Case(model, "cross_entropy", _split((x, y), sizes), lambda m: F.cross_entropy(m(x), y))


def _split(pair: tuple[Tensor, Tensor], sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(pair[0].split(sizes), pair[1].split(sizes), strict=True))
