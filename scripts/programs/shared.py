"""Models whose modules or parameters have several names, that keep state, or that change with their mode."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from programs.program import Case, Program, mlp, points, refused, split


def classified(model: nn.Module, x: Tensor, y: Tensor) -> Case:
    """Cross-entropy by name, in two batches."""
    return Case(model, "cross_entropy", split(x, y), lambda m: F.cross_entropy(m(x), y))


def one_module_twice() -> Case:
    layer = nn.Linear(4, 4)
    return classified(nn.Sequential(layer, nn.Tanh(), layer), *points())


def a_list_of_one_block() -> Case:
    class Albert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = mlp(4, 5, 4)
            self.blocks, self.head = nn.ModuleList([block, block, block]), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)

    return classified(Albert(), *points())


def siamese() -> Case:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = mlp(4, 5, 2)
            self.right = self.left

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (self.left(a) - self.right(b)).square().sum(1)

    a, b, y = torch.randn(8, 4), torch.randn(8, 4), torch.rand(8)
    data = [((a[s], b[s]), y[s]) for s in (slice(0, 3), slice(3, 8))]
    return Case(Siamese(), "mse", data, lambda m: F.mse_loss(m(a, b), y))


def tied_head() -> Case:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embedding(ids).tanh())

    ids, y = torch.randint(0, 7, (8,)), torch.randint(0, 7, (8,))
    return classified(Tied(), ids, y)


def a_parameter_in_a_list() -> Case:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()
            self.kept = {"all": [p for p in self.body.parameters()]}

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * (1 + 0.1 * sum(p.square().sum() for p in self.kept["all"]))

    return classified(Hidden(), *points())


class LoRA(nn.Linear):
    """As loralib's: merges B·A into the weight in eval mode, and takes it out again in training."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.A, self.B = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(0.3 * torch.randn(outputs, 2))
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode: bool = True) -> LoRA:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.B @ self.A).data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + (0 if self.merged else x @ self.A.T @ self.B.T)


def merging_adapters() -> Case:
    x, y = points()
    return Case(nn.Sequential(LoRA(4, 5), nn.Tanh(), LoRA(5, 3)).train(), "cross_entropy", split(x, y))


class Cached(nn.Linear):
    """A weight computed from parameters once in eval mode, dropped in training: orthogonal layers, flows, LeViT."""

    cache: Tensor | None = None

    def train(self, mode: bool = True) -> Cached:
        super().train(mode)
        if mode:
            self.cache = None
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.cache is None:
            weight = torch.linalg.matrix_exp(self.weight - self.weight.T)
            if self.training:
                return F.linear(x, weight, self.bias)
            self.cache = weight
        return F.linear(x, self.cache, self.bias)


def cached_in_eval_mode() -> Case:
    return classified(nn.Sequential(Cached(4, 4), nn.Tanh(), nn.Linear(4, 3)).eval(), *points())


def cached_without_a_way_to_drop_it() -> Case:
    cache: dict[str, Tensor] = {}

    class Global(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            if "w" not in cache:
                cache["w"] = torch.linalg.matrix_exp(self.weight - self.weight.T).detach()
            return self.head((x @ cache["w"]).tanh()) + (x @ self.weight[:, :3]).tanh()

    x, y = points()
    return classified(Global(), x, y)


def a_mask_kept_as_an_attribute() -> Case:
    class Masked(nn.Module):
        mask: Tensor | None = None

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 8), nn.Linear(8, 7)
            self.layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)

        def forward(self, ids: Tensor) -> Tensor:
            if self.mask is None or len(self.mask) != ids.shape[1]:
                self.mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
            return self.head(self.layer(self.embedding(ids), self.mask))

    ids, y = torch.randint(0, 7, (6, 5)), torch.randint(0, 7, (6, 5))

    def loss(m: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(m(batch[0]).flatten(0, 1), batch[1].flatten())

    return Case(Masked(), loss, split(ids, y, sizes=(2, 4)), lambda m: loss(m, (ids, y)))


def a_hidden_state_kept_between_calls() -> Case:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head, self.state = nn.GRUCell(3, 4), nn.Linear(4, 1), None

        def forward(self, x: Tensor) -> Tensor:
            self.state = None
            for step in x.unbind(1):
                self.state = self.cell(step, self.state)
            return self.head(self.state)

    x, y = torch.randn(8, 4, 3), torch.randn(8, 1)
    return Case(Stateful(), "mse", split(x, y), lambda m: F.mse_loss(m(x), y))


def running_averages_in_forward() -> Case:
    class Averaging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * x.mean(0))
            return self.body(x)

    return classified(Averaging(), *points())


def forward_hooks() -> Case:
    model = mlp()
    model[1].register_forward_hook(lambda module, inputs, output: output * 2 + inputs[0])
    return classified(model, *points())


def parametrised_weights() -> Case:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.orthogonal(model[2])
    x, y = points()

    def whole(m: nn.Module) -> Tensor:
        first = m[0].parametrizations.weight
        norms = first.original1.square().sum(1, keepdim=True).sqrt()
        hidden = F.linear(x, first.original0 * first.original1 / norms, m[0].bias).tanh()
        return F.cross_entropy(F.linear(hidden, m[2].weight, m[2].bias), y)

    return Case(model, "cross_entropy", split(x, y), whole)


def spectral_norm() -> Case:
    return classified(nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)), *points())


def wrapped_and_compiled() -> Case:
    x, y = points()
    return Case(nn.DataParallel(mlp()), "cross_entropy", split(x, y), lambda m: F.cross_entropy(m(x), y))


PROGRAMS = (
    Program("one module under two names", one_module_twice),
    Program("a list of the same block (ALBERT)", a_list_of_one_block),
    Program("two names for an encoder (Siamese)", siamese),
    Program("embedding tied to the head", tied_head),
    Program("parameters kept in a dict of lists", a_parameter_in_a_list),
    Program("adapters merged in eval mode (LoRA)", merging_adapters, refused("turn the merging off")),
    Program("a weight cached in eval mode (flows, LeViT)", cached_in_eval_mode),
    Program("a weight cached for ever", cached_without_a_way_to_drop_it),
    Program("a mask kept as an attribute", a_mask_kept_as_an_attribute),
    Program("a hidden state kept between calls", a_hidden_state_kept_between_calls),
    Program("running averages in forward", running_averages_in_forward),
    Program("forward hooks", forward_hooks),
    Program("weight norm and orthogonal parametrisation", parametrised_weights),
    Program("spectral norm", spectral_norm),
    Program("DataParallel", wrapped_and_compiled),
)
