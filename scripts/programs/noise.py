"""Losses with random numbers: refused, fixed by a seed, or fixed by the program itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvpspec.objective.noise import fixed_noise
from programs.program import Case, Program, mlp, refused

SEED = 5
RANDOM = refused("random")


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), mlp(2, 4, 4)


def elbo(m: nn.Module, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    mean, log_variance = m.encoder(x).chunk(2, -1)
    noise = torch.randn(mean.shape, generator=generator)
    kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
    return F.mse_loss(m.decoder(mean + noise * (0.5 * log_variance).exp()), x) + kl.mean()


def diffusion(m: nn.Module, x: Tensor) -> Tensor:
    t = torch.randint(1, 10, (len(x), 1)) / 10
    noise = torch.randn_like(x)
    return F.mse_loss(m(torch.cat([(1 - t).sqrt() * x + t.sqrt() * noise, t], 1)), noise)


def dropped(m: nn.Module, x: Tensor) -> Tensor:
    return F.mse_loss(m[2](F.dropout(m[1](m[0](x)), 0.3, training=True)), x)


def with_numpy(m: nn.Module, x: Tensor) -> Tensor:
    return F.mse_loss(m(x + torch.from_numpy(np.random.standard_normal(x.shape))), x)  # noqa: NPY002


MODELS = {
    elbo: lambda: VAE(),
    diffusion: lambda: mlp(5, 6, 4),
    dropped: lambda: mlp(4, 6, 4),
    with_numpy: lambda: mlp(4, 5, 4),
}


def random(loss: Any) -> Case:
    return Case(MODELS[loss](), loss, list(torch.randn(8, 4).split(4)))


def seeded(loss: Any, sizes: tuple[int, ...] = (4, 4)) -> Case:
    """The option's own noise, drawn by the same rule, so that the whole loss can be written down."""
    data = list(torch.randn(sum(sizes), 4).split(list(sizes)))

    def whole(m: nn.Module) -> Tensor:
        total = torch.zeros(())
        for index, x in enumerate(data):
            with fixed_noise(SEED, index, torch.device("cpu")):
                total = total + len(x) * loss(m, x)
        return total / sum(sizes)

    return Case(MODELS[loss](), loss, data, whole, {"noise_seed": SEED})


def generator_of_its_own() -> Case:
    data = list(torch.randn(8, 4).split([3, 5]))

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        return elbo(m, x, torch.Generator().manual_seed(0))

    return Case(VAE(), loss, data, lambda m: (3 * loss(m, data[0]) + 5 * loss(m, data[1])) / 8)


def seeds_the_global_generator() -> Case:
    data = list(torch.randn(8, 4).split([3, 5]))

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return elbo(m, x)

    return Case(VAE(), loss, data, lambda m: (3 * loss(m, data[0]) + 5 * loss(m, data[1])) / 8)


def a_generator_that_runs_on() -> Case:
    generator = torch.Generator().manual_seed(0)
    data = list(torch.randn(8, 4).split([3, 5]))
    return Case(VAE(), lambda m, x: elbo(m, x, generator), data, None, {"noise_seed": SEED})


def fixed_projections() -> Case:
    """Sliced score matching with projections drawn once."""
    x, projections = torch.randn(8, 4), torch.randn(8, 4)

    def loss(m: nn.Module, batch: Any) -> Tensor:
        points, v = batch[0].clone().requires_grad_(), batch[1]
        score = m(points)
        (along,) = torch.autograd.grad((score * v).sum(), points, create_graph=True)
        return (along * v).sum(1).mean() + 0.5 * (score * v).sum(1).square().mean()

    data = [(x[:3], projections[:3]), (x[3:], projections[3:])]
    return Case(mlp(4, 5, 4), loss, data, lambda m: loss(m, (x, projections)))


class Loader:
    """Batches that are shuffled or augmented in each pass, as a DataLoader's."""

    def __init__(self, change: Any) -> None:
        self.x, self.generator, self.change = torch.randn(8, 4), torch.Generator().manual_seed(0), change

    def __iter__(self) -> Any:
        yield from self.change(self.x, self.generator).split([3, 5])


def shuffled(x: Tensor, generator: torch.Generator) -> Tensor:
    return x[torch.randperm(len(x), generator=generator)]


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def reconstruction(m: nn.Module, x: Tensor) -> Tensor:
    return F.mse_loss(m(x), x)


def statistics(m: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    outputs = m(x)
    return ((outputs - outputs.mean(0)) / outputs.std(0)).pow(4).mean(), len(x)


def passes_that_differ(change: Any, loss: Any) -> Case:
    loader = Loader(change)
    whole = (lambda m: loss(m, loader.x)) if change is shuffled and loss is reconstruction else None
    return Case(mlp(4, 5, 4), loss, loader, whole)


PROGRAMS = (
    Program("a shuffled loader", lambda: passes_that_differ(shuffled, reconstruction)),
    Program(
        "a shuffled loader, coupled samples",
        lambda: passes_that_differ(shuffled, statistics),
        refused("two passes over the data"),
    ),
    Program(
        "a loader that augments at random",
        lambda: passes_that_differ(augmented, reconstruction),
        refused("two passes over the data"),
    ),
    *(Program(f"random: {loss.__name__}", lambda loss=loss: random(loss), RANDOM) for loss in MODELS),
    *(Program(f"noise_seed: {loss.__name__}", lambda loss=loss: seeded(loss)) for loss in MODELS),
    Program("noise_seed, unequal batches", lambda: seeded(elbo, (3, 5))),
    Program("a generator seeded in the loss", generator_of_its_own),
    Program("torch.manual_seed in the loss", seeds_the_global_generator),
    Program("a generator that runs on", a_generator_that_runs_on, refused("random")),
    Program("score matching with fixed projections", fixed_projections),
)
