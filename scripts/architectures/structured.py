"""Graphs, sets, batches of every form, and networks that make or bind the weights of others."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.instance import Case, Instance, classes, mlp, normal, registering, uniform

INSTANCES: list[Instance] = []
instance = registering(INSTANCES, "structure by hand")

NODES = 7
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 2, 4], [1, 2, 3, 4, 5, 6, 0, 3, 5, 1]])


class MessagePassing(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.message, self.update = mlp(2 * width, 6, 5, activation=nn.SiLU), mlp(width + 5, 6, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        messages = self.message(torch.cat([x[source], x[target]], 1))
        total = x.new_zeros(len(x), 5).index_add(0, target, messages)
        return self.update(torch.cat([x, total], 1))


class Pooled(nn.Module):
    """A value for each graph: the mean over its nodes, by scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = MessagePassing(), nn.Linear(4, 1)

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor, count: int) -> Tensor:
        h = self.layer(x, edges).tanh()
        index = graph[:, None].expand_as(h)
        return self.out(h.new_zeros(count, 4).scatter_reduce(0, index, h, "mean", include_self=False))[:, 0]


@instance("message passing, node labels under a mask")
def nodes() -> Case:
    mask = torch.tensor([1, 1, 0, 1, 0, 1, 1], dtype=torch.bool)

    def loss(m: nn.Module, batch: Any) -> Tensor:
        x, edges, y, mask = batch
        return F.cross_entropy(m(x, edges)[mask], y[mask])

    return Case(MessagePassing(), [(normal(NODES, 3), EDGES, classes(NODES), mask)], loss)


class Graph:
    """As PyTorch Geometric's batches: tensors as attributes, `to` and `apply`, and the number of graphs."""

    def __init__(self, **tensors: Tensor) -> None:
        self.__dict__.update(tensors)

    @property
    def num_graphs(self) -> int:
        return int(self.batch.max()) + 1

    def apply(self, f: Any) -> Graph:
        for name, value in vars(self).items():
            setattr(self, name, f(value))
        return self

    def to(self, *args: Any, **kwargs: Any) -> Graph:
        return self.apply(lambda x: x.to(*args, **kwargs))


@instance("graph batches as PyTorch Geometric makes them")
def graphs() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(m(batch.x, batch.edge_index, batch.batch, batch.num_graphs), batch.y)

    batch = Graph(x=normal(NODES, 3), edge_index=EDGES, batch=torch.tensor([0, 0, 0, 1, 1, 2, 2]), y=normal(3, seed=8))
    return Case(Pooled(), [batch], loss)


@instance("graph convolution with a sparse matrix")
def gcn() -> Case:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 3)
            dense = torch.eye(NODES).index_put((EDGES[0], EDGES[1]), torch.ones(EDGES.shape[1]))
            self.register_buffer("adjacency", (dense / dense.sum(1, keepdim=True)).to_sparse_coo())

        def forward(self, x: Tensor) -> Tensor:
            h = torch.sparse.mm(self.adjacency, self.first(x)).relu()
            return torch.sparse.mm(self.adjacency, self.second(h))

    return Case(Convolution(), [(normal(NODES, 3), classes(NODES))], "cross_entropy")


@instance("graph attention (softmax over a node's edges)")
def gat() -> Case:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.a = nn.Linear(3, 4), nn.Linear(8, 1)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            h, (s, t) = self.linear(x), edges
            e = F.leaky_relu(self.a(torch.cat([h[s], h[t]], 1)), 0.2)[:, 0]
            top = e.new_full((len(x),), -1e9).scatter_reduce(0, t, e, "amax")
            p = (e - top[t].detach()).exp()
            p = p / (p.new_zeros(len(x)).scatter_add(0, t, p)[t] + 1e-12)
            return torch.zeros_like(h).index_add(0, t, p[:, None] * h[s])

    return Case(
        Attention(), [(normal(NODES, 3), EDGES, classes(NODES))], lambda m, b: F.cross_entropy(m(b[0], b[1]), b[2])
    )


@instance("Deep Sets with masks")
def deep_sets() -> Case:
    class Sets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phi, self.rho = mlp(3, 6, 4), mlp(4, 5, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.rho((self.phi(x) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    mask = (torch.arange(5) < torch.tensor([5, 2, 4])[:, None]).float()
    return Case(Sets(), [(normal(3, 5, 3), mask, normal(3, 2))], lambda m, b: F.mse_loss(m(b[0], b[1]), b[2]))


@instance("Set Transformer")
def set_transformer() -> Case:
    class Induced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.points, self.seed = nn.Parameter(torch.randn(1, 3, 4)), nn.Parameter(torch.randn(1, 1, 4))
            self.first, self.second, self.third = (nn.MultiheadAttention(4, 2, batch_first=True) for _ in range(3))
            self.enter, self.out, self.norm = nn.Linear(3, 4), nn.Linear(4, 2), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            h = self.first(self.points.expand(len(x), -1, -1), x, x, need_weights=False)[0]
            x = self.norm(x + self.second(x, h, h, need_weights=False)[0])
            return self.out(self.third(self.seed.expand(len(x), -1, -1), x, x)[0][:, 0])

    return Case(Induced(), [(normal(3, 5, 3), normal(3, 2, seed=8))], "mse")


@instance("PointNet (max over points)")
def pointnet() -> Case:
    class Points(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each, self.out = nn.Sequential(nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6), nn.ReLU()), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.each(x).amax(2))

    x, y = normal(5, 3, 8), classes(5)
    return Case(Points(), [(x[:2], y[:2]), (x[2:], y[2:])], "cross_entropy", (x, y))


@instance("point clouds with the Chamfer distance (cdist)")
def chamfer() -> Case:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(3, 6, 12)

        def forward(self, z: Tensor) -> Tensor:
            return self.net(z).view(len(z), 6, 2)

    def loss(m: nn.Module, batch: Any) -> Tensor:
        d = torch.cdist(m(batch[0]), batch[1])
        return d.amin(1).mean() + d.amin(2).mean()

    return Case(Decoder(), [(normal(3, 3), normal(3, 5, 2, seed=8))], loss)


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    x: Tensor
    y: Tensor

    def to(self, *args: Any, **kwargs: Any) -> Sample:
        return Sample(self.x.to(*args, **kwargs), self.y.to(*args, **kwargs))


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def attributes_loss(m: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(m(batch.x), batch.y)


def entries_loss(m: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(m(batch["x"]), batch["y"])


X, Y = normal(5, 3), normal(5, 2, seed=8)


@instance("batches that are dataclasses")
def dataclasses_() -> Case:
    return Case(mlp(3, 4, 2), [Sample(X[:2], Y[:2]), Sample(X[2:], Y[2:])], attributes_loss, Sample(X, Y))


@instance("batches that are named tuples")
def named_tuples() -> Case:
    return Case(mlp(3, 4, 2), [Pair(X[:2], Y[:2]), Pair(X[2:], Y[2:])], attributes_loss, Pair(X, Y))


@instance("batches that are mappings (BatchEncoding)")
def mappings() -> Case:
    batches = [UserDict(x=X[s], y=Y[s]) for s in (slice(0, 2), slice(2, 5))]
    return Case(mlp(3, 4, 2), batches, entries_loss, UserDict(x=X, y=Y))


@instance("one dict as the model's input, (inputs, targets)")
def dict_inputs() -> Case:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = mlp(3, 4), mlp(2, 4)

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            return (self.left(inputs["user"]) * self.right(inputs["item"])).sum(-1)

    return Case(Towers(), [({"user": X, "item": Y}, uniform(5).round())], "bce_with_logits")


@instance("samples in a list of dicts")
def lists() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        return torch.stack([(m(s["x"]) - s["y"]).square().mean() for s in batch]).mean()

    return Case(mlp(3, 4, 2), [[{"x": a, "y": b} for a, b in zip(X, Y, strict=True)]], loss)


@instance("a model that returns (loss, logits)")
def loss_first() -> Case:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(3, 4, 2)

        def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            y = self.net(x)
            return F.mse_loss(y, labels), y

    return Case(Labelled(), [{"x": X, "labels": Y}], lambda m, b: m(**b)[0])


# --- weights of weights -----------------------------------------------------------------------------------------------


@instance("hypernetwork")
def hypernetwork() -> Case:
    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make = mlp(2, 5, 3 * 4 + 4 * 2)

        def forward(self, x: Tensor, task: Tensor) -> Tensor:
            first, second = self.make(task).split([12, 8], -1)
            return torch.bmm(torch.bmm(x, first.view(-1, 3, 4)).tanh(), second.view(-1, 4, 2))

    batch = (normal(3, 5, 3), normal(3, 2, seed=2), normal(3, 5, 2, seed=8))
    return Case(Hyper(), [batch], lambda m, b: F.mse_loss(m(b[0], b[1]), b[2]))


@instance("spectral norm and orthogonal weights")
def spectral_norm() -> Case:
    p = nn.utils.parametrizations
    model = nn.Sequential(p.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), p.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 2))
    return Case(model, [(X, Y)], "mse")


@instance("the older weight_norm")
def old_weight_norm() -> Case:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    return Case(model, [(X, Y)], "mse")


@instance("LoRA on a frozen network")
def lora() -> Case:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = mlp(3, 4, 2).requires_grad_(False)
            self.down, self.up = nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(self.down(x))

    return Case(Adapted(), [(X, Y)], "mse")


@instance("MAML (a gradient step inside)")
def maml() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        x, y, x2, y2 = batch
        parameters = dict(m.named_parameters())
        inner = F.mse_loss(torch.func.functional_call(m, parameters, (x,)), y)
        gradients = torch.autograd.grad(inner, list(parameters.values()), create_graph=True)
        stepped = {name: p - 0.1 * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
        return F.mse_loss(torch.func.functional_call(m, stepped, (x2,)), y2)

    return Case(mlp(3, 4, 2), [(X, Y, normal(4, 3, seed=11), normal(4, 2, seed=12))], loss)


@instance("an ensemble by vmap")
def ensemble() -> Case:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2 = nn.Parameter(torch.randn(3, 3, 4)), nn.Parameter(torch.randn(3, 4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(lambda a, b: (x @ a).tanh() @ b)(self.w1, self.w2).mean(0)

    return Case(Ensemble(), [(X, Y)], "mse")
