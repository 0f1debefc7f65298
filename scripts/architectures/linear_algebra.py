"""Factorisations, solves and eigenvalues inside the loss: Gaussian processes, filters, implicit layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.instance import Case, Instance, mlp, normal, registering

INSTANCES: list[Instance] = []
instance = registering(INSTANCES, "science by hand")


class Kernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale, self.log_noise = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.tensor(-1.0))
        self.features = mlp(2, 4, 2)

    def covariance(self, x: Tensor) -> Tensor:
        z = (x + 0.3 * self.features(x)) / self.log_scale.exp()
        square = (z[:, None] - z[None]).square().sum(-1)
        return torch.exp(-square / 2) + (self.log_noise.exp() + 1e-4) * torch.eye(len(x), dtype=x.dtype)


@instance("Gaussian process with a deep kernel (Cholesky)")
def gaussian_process() -> Case:
    def loss(m: Any, batch: Any) -> Tensor:
        x, y = batch
        factor = torch.linalg.cholesky(m.covariance(x))
        white = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
        return (0.5 * white.square().sum() + factor.diagonal().log().sum()) / len(y)

    return Case(Kernel(), [(normal(7, 2), normal(7, seed=8))], loss)


@instance("Gaussian process by torch.distributions")
def distribution_process() -> Case:
    def loss(m: Any, batch: Any) -> Tensor:
        x, y = batch
        return -torch.distributions.MultivariateNormal(torch.zeros_like(y), m.covariance(x)).log_prob(y) / len(y)

    return Case(Kernel(), [(normal(7, 2), normal(7, seed=8))], loss)


@instance("Kalman filter's likelihood")
def kalman() -> Case:
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Parameter(0.5 * torch.eye(2)), nn.Parameter(torch.randn(1, 2))
            self.q = nn.Parameter(torch.zeros(2))

        def forward(self, y: Tensor) -> Tensor:
            mean, cov, total = y.new_zeros(2, 1), torch.eye(2, dtype=y.dtype), y.new_zeros(())
            for value in y:
                mean, cov = self.a @ mean, self.a @ cov @ self.a.T + torch.diag(self.q.exp())
                s = self.c @ cov @ self.c.T + 0.1 * torch.eye(1, dtype=y.dtype)
                off = value.view(1, 1) - self.c @ mean
                gain = torch.linalg.solve(s, self.c @ cov).T
                mean, cov = mean + gain @ off, cov - gain @ self.c @ cov
                total = total + 0.5 * (torch.logdet(s) + (off.T @ torch.linalg.solve(s, off))[0, 0])
            return total / len(y)

    return Case(Filter(), [normal(6)], lambda m, y: m(y))


@instance("implicit layer (linear solve) and the log-determinant")
def implicit() -> Case:
    class Implicit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.enter = nn.Parameter(0.2 * torch.randn(4, 4)), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            matrix = torch.eye(4, dtype=x.dtype) - self.w
            return torch.linalg.solve(matrix, self.enter(x).T).T, torch.linalg.slogdet(matrix)[1]

    def loss(m: nn.Module, batch: Any) -> Tensor:
        y, volume = m(batch[0])
        return F.mse_loss(y, batch[1]) - 0.1 * volume

    return Case(Implicit(), [(normal(5, 3), normal(5, 4, seed=8))], loss)


@instance("eigenvalues of a learned symmetric matrix")
def eigenvalues() -> Case:
    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(2, 6, 9)

        def forward(self, x: Tensor) -> Tensor:
            a = self.net(x).view(-1, 3, 3)
            return torch.linalg.eigvalsh(a + a.mT)

    return Case(Levels(), [(normal(4, 2), normal(4, 3, seed=8).sort(1).values)], "mse")


@instance("rotations by the matrix exponential")
def rotations() -> Case:
    class Rotation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(3, 6, 9)

        def forward(self, x: Tensor) -> Tensor:
            a = self.net(x).view(-1, 3, 3)
            return (torch.matrix_exp(a - a.mT) @ x[..., None])[..., 0]

    return Case(Rotation(), [(normal(4, 3), normal(4, 3, seed=8))], "mse")


@instance("optimal transport (Sinkhorn)")
def sinkhorn() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        x, y = m(batch[0]), batch[1]
        cost = (x[:, None] - y[None]).square().sum(-1)
        f = g = cost.new_zeros(len(x))
        for _ in range(4):
            f = -torch.logsumexp(g - cost, 1)
            g = -torch.logsumexp(f[:, None] - cost, 0)
        return ((f[:, None] + g - cost).exp() * cost).sum()

    return Case(mlp(2, 6, 2), [(normal(5, 2), normal(5, 2, seed=8))], loss)
