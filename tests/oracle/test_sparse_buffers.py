"""Models with sparse buffers, as graphs have them: right, and kept; not recorded, with the reason."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvpspec import HessianOperator

warnings.filterwarnings("ignore", message="Sparse CSR tensor support")


class Graph(nn.Module):
    """Two graph convolutions."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        links = (torch.arange(36).reshape(6, 6) % 3 == 0).float()
        adjacency = links / links.sum(1, keepdim=True)
        self.register_buffer("adjacency", getattr(adjacency, f"to_{layout}")())

    def forward(self, x: Tensor) -> Tensor:
        hidden = (self.adjacency @ self.first(x)).tanh()
        return self.adjacency @ self.second(hidden)


def explicit(model: Graph, x: Tensor, y: Tensor) -> Tensor:
    """With the dense matrix, by rows."""
    adjacency, parameters = model.adjacency.to_dense().double(), list(model.parameters())
    own = [p.detach().double().requires_grad_() for p in parameters]
    hidden = (adjacency @ (x @ own[0].T + own[1])).tanh()
    loss = F.cross_entropy(adjacency @ (hidden @ own[2].T + own[3]), y)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, own, create_graph=True)])
    rows = [torch.autograd.grad(g, own, retain_graph=True, materialize_grads=True) for g in gradient]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr", "sparse_csc"])
@pytest.mark.parametrize("memory_limit", [None, 1])
def test_products_with_graphs_kept_and_without(layout, memory_limit):
    torch.manual_seed(0)
    model, x, y = Graph(layout), torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2
    H = HessianOperator(model, "cross_entropy", [(x, y)], dtype="float64", engine="autograd", memory_limit=memory_limit)
    for _ in range(3):
        found = H @ torch.eye(H.shape[0], dtype=torch.float64)
        assert torch.allclose(found, explicit(model, x, y), rtol=1e-9, atol=1e-12)
    if layout == "sparse_coo":  # others are converted for each product
        assert ("kept" in H.plan) == (memory_limit is None), H.plan
    model.adjacency = (2 * model.adjacency.to_dense()).to_sparse_coo()  # which is noticed
    found = H @ torch.eye(H.shape[0], dtype=torch.float64)
    assert torch.allclose(found, explicit(model, x, y), rtol=1e-9, atol=1e-12)
    assert model.adjacency.dtype == torch.float32


def test_a_change_of_the_values_in_place_is_noticed():
    torch.manual_seed(0)
    model, x, y = Graph("sparse_coo"), torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2
    H = HessianOperator(model, "cross_entropy", [(x, y)], dtype="float64", engine="autograd")
    eye = torch.eye(H.shape[0], dtype=torch.float64)
    for _ in range(2):
        H @ eye
    model.adjacency._values().mul_(1.5)
    assert torch.allclose(H @ eye, explicit(model, x, y), rtol=1e-9, atol=1e-12)


def test_the_recorded_engine_says_why_not():
    torch.manual_seed(0)
    model, x, y = Graph("sparse_coo"), torch.randn(6, 3), torch.arange(6) % 2
    H = HessianOperator(model, "cross_entropy", [(x, y)], engine="linearized")
    H @ torch.ones(H.shape[0])
    assert "the model holds the sparse tensor 'adjacency'" in H.plan
