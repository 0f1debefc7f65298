"""Models of physics and geometry: derivatives inside the loss, forces, operators with complex weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.instance import Case, Instance, mlp, normal, registering, uniform

INSTANCES: list[Instance] = []
instance = registering(INSTANCES, "science by hand")


def derivative(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


@instance("PINN of the heat equation")
def heat() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        points, start, values = batch
        points = points.clone().requires_grad_(True)
        first = derivative(m(points), points)
        second = derivative(first[:, 0], points)[:, 0]
        return (first[:, 1] - 0.1 * second).square().mean() + (m(start) - values).square().mean()

    start = torch.cat([uniform(6, 1), torch.zeros(6, 1)], 1)
    return Case(mlp(2, 6, 6, 1), [(uniform(8, 2), start, torch.sin(3 * start[:, :1]))], loss)


@instance("PINN of Burgers' equation by torch.func")
def burgers() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        def u(p: Tensor) -> Tensor:
            return m(p)[0]

        gradient = torch.func.grad(u)
        values, first = torch.vmap(u)(batch), torch.vmap(gradient)(batch)
        second = torch.vmap(torch.func.grad(lambda p: gradient(p)[0]))(batch)[:, 0]
        return (first[:, 1] + values * first[:, 0] - 0.05 * second).square().mean()

    return Case(mlp(2, 6, 6, 1), [uniform(8, 2)], loss)


@instance("deep Ritz method")
def ritz() -> Case:
    def loss(m: nn.Module, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_(True)
        u = m(x) * (x * (1 - x)).prod(1, keepdim=True)
        return (0.5 * derivative(u, x).square().sum(1) - u[:, 0]).mean()

    return Case(mlp(2, 6, 6, 1), [uniform(8, 2)], loss)


class Energy(nn.Module):
    """A sum over pairs of atoms within a cutoff, put together for each atom by index_add."""

    def __init__(self) -> None:
        super().__init__()
        self.species, self.pair, self.atom = nn.Embedding(3, 2), mlp(8, 6, 3, activation=nn.SiLU), mlp(3, 4, 1)

    def forward(self, positions: Tensor, kinds: Tensor, pairs: Tensor) -> Tensor:
        i, j = pairs
        r = (positions[i] - positions[j]).norm(dim=1, keepdim=True)
        radial = torch.exp(-((r - r.new_tensor([0.5, 1.0, 1.5, 2.0])) ** 2))
        z = self.species(kinds)
        messages = self.pair(torch.cat([radial, z[i], z[j]], 1)) * 0.5 * (torch.cos(r / 3) + 1)
        return self.atom(positions.new_zeros(len(positions), 3).index_add(0, i, messages)).sum()


@instance("energy and forces of molecules")
def forces() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        positions = batch["positions"].clone().requires_grad_(True)
        energy = m(positions, batch["kinds"], batch["pairs"])
        force = -derivative(energy, positions)
        return (energy - batch["energy"]).square() + 10 * F.mse_loss(force, batch["forces"])

    i, j = torch.where(~torch.eye(5, dtype=torch.bool))
    batch = {
        "positions": normal(5, 3), "kinds": torch.tensor([0, 1, 1, 2, 0]), "pairs": torch.stack([i, j]),
        "energy": torch.tensor(0.7), "forces": normal(5, 3, seed=8),
    }  # fmt: skip
    return Case(Energy(), [batch], loss)


@instance("forces inside the model's forward")
def forces_inside() -> Case:
    class Potential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(3, 6, 1, activation=nn.Softplus)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                energy = self.net(x)
                return energy, -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]

    def loss(m: nn.Module, batch: Any) -> Tensor:
        energy, force = m(batch[0])
        return F.mse_loss(energy, batch[1]) + F.mse_loss(force, batch[2])

    return Case(Potential(), [(normal(5, 3), normal(5, 1, seed=8), normal(5, 3, seed=9))], loss)


@instance("equivariant graph network (EGNN)")
def egnn() -> Case:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.edge, self.shift, self.node = mlp(5, 6, 4, activation=nn.SiLU), mlp(4, 1), mlp(6, 5, 2)

        def forward(self, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            n = len(h)
            off = x[:, None] - x[None]
            both = torch.cat([h[:, None].expand(n, n, 2), h[None].expand(n, n, 2), off.square().sum(-1, True)], -1)
            m = self.edge(both) * (1 - torch.eye(n, dtype=h.dtype))[..., None]
            return h + self.node(torch.cat([h, m.sum(1)], 1)), x + (off * self.shift(m)).mean(1)

    def loss(m: nn.Module, batch: Any) -> Tensor:
        h, x = m(batch[0], batch[1])
        return h.square().mean() + F.mse_loss(x, batch[2])

    return Case(Layer(), [(normal(5, 2), normal(5, 3, seed=8), normal(5, 3, seed=9))], loss)


@instance("Hamiltonian network")
def hamiltonian() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        state = batch[0].clone().requires_grad_(True)
        dq, dp = derivative(m(state), state).chunk(2, 1)
        return F.mse_loss(torch.cat([dp, -dq], 1), batch[1])

    return Case(mlp(4, 6, 1), [(normal(6, 4), normal(6, 4, seed=8))], loss)


@instance("Lagrangian network (a Hessian and a solve inside)")
def lagrangian() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        q, v, acceleration = batch

        def value(q: Tensor, v: Tensor) -> Tensor:
            return m(torch.cat([q, v]))[0] + v.square().sum()

        def predicted(q: Tensor, v: Tensor) -> Tensor:
            mass = torch.func.hessian(value, 1)(q, v)
            mixed = torch.func.jacrev(torch.func.grad(value, 1), 0)(q, v)
            return torch.linalg.solve(mass, torch.func.grad(value, 0)(q, v) - mixed @ v)

        return F.mse_loss(torch.vmap(predicted)(q, v), acceleration)

    return Case(mlp(4, 6, 1, activation=nn.Softplus), [tuple(normal(4, 2, seed=s) for s in (5, 8, 9))], loss)


@instance("neural ODE (Runge-Kutta)")
def neural_ode() -> Case:
    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = mlp(2, 8, 2)

        def forward(self, x: Tensor) -> Tensor:
            path, h = [x], 0.25
            for _ in range(3):
                a = self.f(x)
                b = self.f(x + h / 2 * a)
                c = self.f(x + h / 2 * b)
                x = x + h / 6 * (a + 2 * b + 2 * c + self.f(x + h * c))
                path.append(x)
            return torch.stack(path, 1)

    x, y = normal(5, 2), normal(5, 4, 2, seed=8)
    return Case(Flow(), [(x[:2], y[:2]), (x[2:], y[2:])], "mse", (x, y))


class Spectral(nn.Module):
    """A layer of a Fourier neural operator, with complex weights or with pairs of real ones."""

    def __init__(self, pairs: bool) -> None:
        super().__init__()
        self.pairs, self.local = pairs, nn.Conv1d(3, 3, 1)
        weight = 0.3 * torch.randn(3, 3, 4, 2)
        self.weight = nn.Parameter(weight if pairs else torch.view_as_complex(weight))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.view_as_complex(self.weight) if self.pairs else self.weight
        modes = torch.einsum("bim,iom->bom", torch.fft.rfft(x)[..., :4], weight)
        return F.gelu(torch.fft.irfft(modes, n=x.shape[-1]) + self.local(x))


def operator_learning(pairs: bool) -> Case:
    model = nn.Sequential(nn.Conv1d(2, 3, 1), Spectral(pairs), Spectral(pairs), nn.Conv1d(3, 1, 1))
    return Case(model, [(normal(3, 2, 12), normal(3, 1, 12, seed=8))], "mse")


@instance("Fourier neural operator, complex weights")
def fno() -> Case:
    return operator_learning(pairs=False)


@instance("Fourier neural operator, pairs of real weights")
def fno_pairs() -> Case:
    return operator_learning(pairs=True)


@instance("DeepONet with relative L2 error")
def deeponet() -> Case:
    class DeepONet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.trunk, self.bias = mlp(5, 6, 4), mlp(1, 6, 4), nn.Parameter(torch.zeros(()))

        def forward(self, u: Tensor, y: Tensor) -> Tensor:
            return torch.einsum("bk,nk->bn", self.branch(u), self.trunk(y)) + self.bias

    def loss(m: nn.Module, batch: Any) -> Tensor:
        u, y, s = batch
        return ((m(u, y) - s).norm(dim=1) / s.norm(dim=1)).mean()

    return Case(DeepONet(), [(normal(4, 5), uniform(6, 1), normal(4, 6, seed=8))], loss)


@instance("SIREN")
def siren() -> Case:
    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(3 * x)

    return Case(mlp(2, 8, 8, 1, activation=Sine), [(uniform(8, 2), normal(8, 1))], "mse")


@instance("NeRF (volume rendering by cumprod)")
def nerf() -> Case:
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(12, 8, 4, activation=nn.ReLU)

        def forward(self, origins: Tensor, directions: Tensor) -> Tensor:
            t = torch.linspace(0.1, 2, 6, dtype=origins.dtype)
            p = origins[:, None] + t[:, None] * directions[:, None]
            out = self.net(torch.cat([f(k * p) for k in (1, 2) for f in (torch.sin, torch.cos)], -1))
            alpha = 1 - torch.exp(-0.4 * F.softplus(out[..., 0]))
            through = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha + 1e-6], 1), 1)[:, :-1]
            return ((alpha * through)[..., None] * out[..., 1:].sigmoid()).sum(1)

    batch = (normal(4, 3), normal(4, 3, seed=8), uniform(4, 3))
    return Case(Field(), [batch], lambda m, b: F.mse_loss(m(b[0], b[1]), b[2]))


@instance("Kolmogorov-Arnold network (B-splines)")
def kan() -> Case:
    class Layer(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight, self.base = nn.Parameter(0.3 * torch.randn(outputs, inputs, 5)), nn.Linear(inputs, outputs)
            self.register_buffer("knots", torch.linspace(-2, 2, 8))

        def forward(self, x: Tensor) -> Tensor:
            g, x3 = self.knots, x[..., None]
            b = ((x3 >= g[:-1]) & (x3 < g[1:])).to(x.dtype)
            for k in (1, 2):
                left = (x3 - g[: -k - 1]) / (g[k:-1] - g[: -k - 1]) * b[..., :-1]
                b = left + (g[k + 1 :] - x3) / (g[k + 1 :] - g[1:-k]) * b[..., 1:]
            return torch.einsum("bik,oik->bo", b, self.weight) + self.base(F.silu(x))

    return Case(nn.Sequential(Layer(2, 3), Layer(3, 1)), [(normal(6, 2), normal(6, 1, seed=8))], "mse")


@instance("parameters of a differential equation, no network")
def inverse_problem() -> Case:
    class Predators(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rates = nn.Parameter(torch.tensor([0.8, 0.4, 0.5, 0.3]))

        def forward(self, state: Tensor) -> Tensor:
            path = []
            for _ in range(6):
                x, y = state.unbind(-1)
                a, b, c, d = self.rates
                state = state + 0.1 * torch.stack([a * x - b * x * y, d * x * y - c * y], -1)
                path.append(state)
            return torch.stack(path, 1)

    return Case(Predators(), [(1 + uniform(3, 2), 1 + uniform(3, 6, 2, seed=8))], "mse")
