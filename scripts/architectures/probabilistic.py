"""Generative models, flows, likelihoods and policies; the noise that they draw is in the batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributions as D
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.instance import Case, Instance, classes, mlp, normal, registering, uniform

INSTANCES: list[Instance] = []
instance = registering(INSTANCES, "probability by hand")


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(6, 8, 4), mlp(2, 8, 6)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + noise * (0.5 * log_variance).exp()), mean, log_variance


@instance("VAE")
def vae() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        x, noise = batch
        logits, mean, log_variance = m(x, noise)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1).mean() + divergence

    return Case(Autoencoder(), [(uniform(5, 6).round(), normal(5, 2))], loss)


@instance("VAE by torch.distributions, with drawn noise")
def drawn_vae() -> Case:
    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = mlp(6, 8, 4), mlp(2, 8, 6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mean, scale = self.encoder(x).chunk(2, 1)
            q = D.Normal(mean, F.softplus(scale))
            prior = D.Normal(torch.zeros_like(mean), torch.ones_like(mean))
            return self.decoder(q.rsample()), D.kl_divergence(q, prior).sum(1)

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        torch.manual_seed(3)
        logits, divergence = m(x)
        return (F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1) + divergence).mean()

    return Case(Drawn(), [uniform(5, 6).round()], loss)


class Coupling(nn.Module):
    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.net, self.flip = mlp(2, 8, 4), flip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, 1) if not self.flip else x.chunk(2, 1)[::-1]
        scale, shift = self.net(a).chunk(2, 1)
        scale = scale.tanh()
        return torch.cat([a, b * scale.exp() + shift], 1), scale.sum(1)


@instance("RealNVP")
def realnvp() -> Case:
    class RealNVP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Coupling(flip) for flip in (False, True, False)])

        def log_prob(self, x: Tensor) -> Tensor:
            volume = x.new_zeros(len(x))
            for layer in self.layers:
                x, v = layer(x)
                volume = volume + v
            return volume + D.Normal(0.0, 1.0).log_prob(x).sum(1)

    x = normal(6, 4)
    return Case(RealNVP(), [x[:2], x[2:]], lambda m, x: -m.log_prob(x).mean(), x)


@instance("Glow (invertible mixing, slogdet)")
def glow() -> Case:
    class Glow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.coupling = nn.Parameter(torch.linalg.qr(torch.randn(4, 4))[0]), Coupling(False)
            self.log_scale = nn.Parameter(torch.zeros(4))

        def log_prob(self, x: Tensor) -> Tensor:
            x, v = self.coupling((x * self.log_scale.exp()) @ self.mix)
            return v + self.log_scale.sum() + torch.linalg.slogdet(self.mix)[1] - 0.5 * x.square().sum(1)

    return Case(Glow(), [normal(6, 4)], lambda m, x: -m.log_prob(x).mean())


class Masked(nn.Linear):
    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


@instance("MADE (masked autoregressive)")
def made() -> Case:
    hidden = torch.arange(8) % 3
    first = (hidden[:, None] >= torch.arange(4)).float()
    second = (torch.arange(4)[:, None] > hidden).float()
    model = nn.Sequential(Masked(first), nn.ReLU(), Masked(second))
    return Case(model, [(x := uniform(6, 4).round(), x)], "bce_with_logits")


@instance("spline flow (searchsorted, gather)")
def spline() -> Case:
    class Spline(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(1, 6, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            width, height = (F.softmax(p, 1) for p in self.net(x[:, :1]).chunk(2, 1))
            left, below = (F.pad(p.cumsum(1), (1, 0)) for p in (width, height))
            k = (torch.searchsorted(left.detach(), x[:, 1:].contiguous()) - 1).clamp(0, 3)
            slope = height.gather(1, k) / width.gather(1, k)
            return below.gather(1, k) + slope * (x[:, 1:] - left.gather(1, k)), slope.log()

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        y, volume = m(x)
        return (2 * (y - 0.5).square() - volume).mean()

    return Case(Spline(), [uniform(6, 2)], loss)


@instance("denoising diffusion")
def diffusion() -> Case:
    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time, self.net = nn.Embedding(5, 3), mlp(5, 8, 2, activation=nn.SiLU)
            self.register_buffer("kept", torch.linspace(0.95, 0.2, 5))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.net(torch.cat([x, self.time(t)], 1))

    def loss(m: Any, batch: Any) -> Tensor:
        x, t, noise = batch
        kept = m.kept[t][:, None]
        return F.mse_loss(m(kept.sqrt() * x + (1 - kept).sqrt() * noise, t), noise)

    return Case(Denoiser(), [(normal(6, 2), classes(6, count=5), normal(6, 2, seed=8))], loss)


@instance("sliced score matching")
def score_matching() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        x, direction = batch
        x = x.clone().requires_grad_(True)
        score = m(x)
        slope = torch.autograd.grad((score * direction).sum(), x, create_graph=True)[0]
        return ((slope * direction).sum(1) + 0.5 * score.square().sum(1)).mean()

    return Case(mlp(3, 8, 3, activation=nn.Softplus), [(normal(6, 3), normal(6, 3, seed=8))], loss)


@instance("critic with a gradient penalty (WGAN-GP)")
def critic() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        real, fake, mix = batch
        between = (mix * real + (1 - mix) * fake).requires_grad_(True)
        gradient = torch.autograd.grad(m(between).sum(), between, create_graph=True)[0]
        return m(fake).mean() - m(real).mean() + 10 * (gradient.norm(dim=1) - 1).square().mean()

    return Case(mlp(3, 8, 8, 1, activation=nn.Softplus), [(normal(5, 3), normal(5, 3, seed=8), uniform(5, 1))], loss)


@instance("mixture density network")
def mixture_density() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        logits, mean, scale = m(batch[0]).chunk(3, 1)
        mixture = D.MixtureSameFamily(D.Categorical(logits=logits), D.Normal(mean, F.softplus(scale) + 0.1))
        return -mixture.log_prob(batch[1]).mean()

    return Case(mlp(2, 6, 9), [(normal(6, 2), normal(6, seed=8))], loss)


@instance("PPO (clipped ratio, value and entropy)")
def ppo() -> Case:
    class Actor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.policy, self.value = mlp(3, 6), nn.Linear(6, 4), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> tuple[D.Categorical, Tensor]:
            h = self.body(x).tanh()
            return D.Categorical(logits=self.policy(h)), self.value(h)[:, 0]

    def loss(m: nn.Module, b: Any) -> Tensor:
        policy, value = m(b["states"])
        ratio = torch.exp(policy.log_prob(b["actions"]) - b["old"])
        gain = torch.min(ratio * b["advantages"], ratio.clamp(0.8, 1.2) * b["advantages"])
        return -gain.mean() + 0.5 * F.mse_loss(value, b["returns"]) - 0.01 * policy.entropy().mean()

    batch = {
        "states": normal(6, 3), "actions": classes(6, count=4), "old": -1.4 + 0.1 * normal(6, seed=2),
        "advantages": normal(6, seed=8), "returns": normal(6, seed=9),
    }  # fmt: skip
    return Case(Actor(), [batch], loss)


@instance("deep Q-learning (a frozen target, Huber)")
def dqn() -> Case:
    class Learner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.target = mlp(3, 6, 4), mlp(3, 6, 4).requires_grad_(False)

    def loss(m: Any, b: Any) -> Tensor:
        states, actions, rewards, following = b
        with torch.no_grad():
            goal = rewards + 0.9 * m.target(following).amax(1)
        return F.smooth_l1_loss(m.q(states).gather(1, actions[:, None])[:, 0], goal)

    return Case(Learner(), [(normal(6, 3), classes(6, count=4), normal(6, seed=8), normal(6, 3, seed=9))], loss)


@instance("Bayes by backprop")
def bayes() -> Case:
    class Bayesian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.rho = nn.Parameter(0.1 * torch.randn(3, 2)), nn.Parameter(torch.full((3, 2), -1.0))

        def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            scale = F.softplus(self.rho)
            q = D.Normal(self.mean, scale)
            return x @ (self.mean + scale * noise), D.kl_divergence(q, D.Normal(0.0, 1.0)).sum()

    def loss(m: nn.Module, b: Any) -> Tensor:
        y, divergence = m(b[0], b[1])
        return F.mse_loss(y, b[2]) + divergence / 100

    return Case(Bayesian(), [(normal(6, 3), normal(3, 2, seed=2), normal(6, 2, seed=8))], loss)


@instance("Poisson and negative binomial counts")
def counts() -> Case:
    def loss(m: nn.Module, b: Any) -> Tensor:
        rate, logits = m(b[0]).unbind(1)
        negative = D.NegativeBinomial(rate.exp() + 0.1, logits=logits)
        return F.poisson_nll_loss(rate, b[1]) - negative.log_prob(b[1]).mean()

    return Case(mlp(3, 6, 2), [(normal(6, 3), classes(6, count=5).float())], loss)


@instance("Cox's partial likelihood")
def cox() -> Case:
    def loss(m: nn.Module, b: Any) -> Tensor:
        x, times, seen = b
        order = times.argsort(descending=True)
        risk = m(x)[order, 0]
        return -((risk - risk.logcumsumexp(0)) * seen[order]).sum() / seen.sum()

    return Case(mlp(3, 6, 1), [(normal(7, 3), uniform(7), uniform(7, seed=9).round())], loss)


@instance("InfoNCE of two towers with a learned temperature")
def info_nce() -> Case:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.scale = mlp(4, 6, 3), mlp(5, 6, 3), nn.Parameter(torch.tensor(1.0))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.scale.exp() * F.normalize(self.left(a)) @ F.normalize(self.right(b)).T

    def loss(m: nn.Module, batch: Any) -> Tensor:
        logits, y = m(*batch), torch.arange(len(batch[0]))
        return (F.cross_entropy(logits, y) + F.cross_entropy(logits.T, y)) / 2

    return Case(Towers(), [(normal(5, 4), normal(5, 5, seed=8))], loss)


@instance("ArcFace (acos and a margin)")
def arcface() -> Case:
    class Margin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.weight = mlp(4, 6, 3), nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            cosine = F.linear(F.normalize(self.net(x)), F.normalize(self.weight)).clamp(-0.999, 0.999)
            return 4 * torch.where(F.one_hot(y, 3).bool(), torch.cos(cosine.acos() + 0.3), cosine)

    return Case(Margin(), [(normal(5, 4), classes(5))], lambda m, b: F.cross_entropy(m(*b), b[1]))


@instance("distillation with a temperature")
def distillation() -> Case:
    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = mlp(4, 5, 3), mlp(4, 9, 3).requires_grad_(False)

    def loss(m: Any, b: Any) -> Tensor:
        with torch.no_grad():
            target = F.softmax(m.teacher(b[0]) / 2, 1)
        logits = m.student(b[0])
        soft = F.kl_div(F.log_softmax(logits / 2, 1), target, reduction="batchmean")
        return 4 * soft + F.cross_entropy(logits, b[1])

    x, y = normal(6, 4), classes(6)
    return Case(Student(), [(x[:2], y[:2]), (x[2:], y[2:])], loss, (x, y))


@instance("margin losses (multi-margin, multi-label, hinge embedding)")
def margins() -> Case:
    def loss(m: nn.Module, b: Any) -> Tensor:
        y = m(b[0])
        soft = F.multilabel_soft_margin_loss(y, F.one_hot(b[1], 3).to(y.dtype))
        return F.multi_margin_loss(y, b[1]) + soft + F.soft_margin_loss(y[:, 0], b[2])

    return Case(mlp(4, 5, 3), [(normal(6, 4), classes(6), 2 * uniform(6).round() - 1)], loss)


@instance("a criterion with reduction sum")
def summed() -> Case:
    return Case(mlp(4, 5, 3), [(normal(6, 4), classes(6))], nn.CrossEntropyLoss(reduction="sum"))


@instance("Gaussian likelihood (GaussianNLLLoss) and clamped variance")
def gaussian() -> Case:
    def loss(m: nn.Module, b: Any) -> Tensor:
        mean, variance = m(b[0]).chunk(2, 1)
        return F.gaussian_nll_loss(mean, b[1], F.softplus(variance))

    x, y = normal(6, 4), normal(6, 1, seed=8)
    return Case(mlp(4, 5, 2), [(x[:2], y[:2]), (x[2:], y[2:])], loss, (x, y))


@instance("Beta and Dirichlet likelihoods (lgamma, digamma)")
def evidential() -> Case:
    def loss(m: nn.Module, b: Any) -> Tensor:
        alpha = F.softplus(m(b[0])) + 1
        strength = alpha.sum(1, keepdim=True)
        fit = (torch.digamma(strength) - torch.digamma(alpha)).gather(1, b[1][:, None]).mean()
        return fit - 0.1 * D.Beta(alpha[:, 0], alpha[:, 1]).log_prob(b[2]).mean()

    return Case(mlp(4, 5, 3), [(normal(6, 4), classes(6), 0.1 + 0.8 * uniform(6))], loss)
