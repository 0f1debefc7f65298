"""Spectra on which error bars have failed or might, and what each interval of a run is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import nn

import hvpspec

N = 120


def _semicircle(n: int) -> np.ndarray:
    share = (np.arange(n) + 0.5) / n
    x = np.linspace(-1, 1, 20001)
    cdf = 0.5 + (x * np.sqrt(1 - x**2) + np.arcsin(x)) / math.pi
    return np.interp(share, cdf, x)


def _marchenko_pastur(n: int, ratio: float) -> np.ndarray:
    """Squared singular values of a fixed random matrix; for a ratio below 1 there is a null space."""
    X = np.random.default_rng(7).standard_normal((max(int(n * ratio), 1), n))
    return np.linalg.eigvalsh(X.T @ X / len(X))


def _with_zeros(*values: np.ndarray) -> np.ndarray:
    found = np.concatenate(values)
    return np.concatenate([found, np.zeros(N - len(found))])


def _over(top: list[float], bulk: Callable[[int], np.ndarray]) -> np.ndarray:
    return np.concatenate([top, bulk(N - len(top))])


SPECTRA: dict[str, np.ndarray] = {
    # without structure
    "flat": np.linspace(1, 3, N),
    "flat, both signs": np.linspace(-1, 2, N),
    "semicircle": _semicircle(N),
    "arcsine": np.cos(math.pi * (np.arange(N) + 0.5) / N),
    "Marchenko-Pastur, 2": _marchenko_pastur(N, 2),
    "integers": np.arange(1.0, N + 1),
    # decaying
    "1/i": 1 / np.arange(1.0, N + 1),
    "1/i²": np.arange(1.0, N + 1) ** -2,
    "0.97ⁱ": 0.97 ** np.arange(N),
    "0.8ⁱ": 0.8 ** np.arange(N),
    "0.5ⁱ": 0.5 ** np.arange(N),
    "geometric, both signs": np.geomspace(1, 1e-4, N) * np.where(np.arange(N) % 3, 1, -1),
    # outliers over a bulk
    "one outlier": _over([10.0], _semicircle),
    "ten outliers": _over(list(np.geomspace(3, 30, 10)), _semicircle),
    "outliers of both signs": _over(list(np.geomspace(2, 9, 8)) + list(-np.geomspace(1.5, 5, 8)), _semicircle),
    "outlier near the bulk": _over([1.05], _semicircle),
    "negative outlier": _over([-0.3], lambda n: np.linspace(0, 1, n)),
    "weak negative outlier": _over([-0.01], lambda n: np.linspace(0.01, 1, n)),
    # copies
    "identity": np.ones(N),
    "two values": np.repeat([1.0, 3.0], N // 2),
    "three of 5 over one value": _over([5.0] * 3, lambda n: np.full(n, 0.1)),
    "two of 1 over 0.99ⁱ": _over([1.0] * 2, lambda n: 0.99 ** np.arange(1, n + 1)),
    "pairs": np.repeat(np.linspace(1, 4, N // 2), 2),
    "ring": 2 - 2 * np.cos(2 * math.pi * np.arange(N) / N),
    "three clusters": np.repeat([0.1, 1.0, 4.0], N // 3) + 1e-3 * np.sin(np.arange(N)),
    "nearly a pair": _over([2.0, 2.0 * (1 - 1e-7)], lambda n: np.linspace(0, 1, n)),
    # null spaces
    "zero": np.zeros(N),
    "rank one": _with_zeros(np.ones(1)),
    "rank five, equal": _with_zeros(np.ones(5)),
    "rank ten": _with_zeros(np.geomspace(1, 10, 10)),
    "half zero": _with_zeros(np.linspace(0.1, 3, N // 2)),
    "indefinite, half zero": _with_zeros(np.geomspace(50, 0.5, 45), -np.geomspace(1, 0.1, 15)),
    "Marchenko-Pastur, 1/2": _marchenko_pastur(N, 0.5),
    "one zero": _over([0.0], lambda n: np.linspace(1, 2, n)),
    "negative, half zero": _with_zeros(-np.geomspace(0.1, 3, N // 2)),
    "atom near zero": _over([1e-9] * 60, lambda n: np.linspace(0.2, 2, n)),
    "both sides of zero": np.concatenate([np.full(30, 1e-7), np.full(30, -1e-7), np.linspace(0.2, 2, N - 60)]),
    # scales
    "tiny": 1e-30 * np.linspace(-1, 3, N),
    "huge": 1e30 * np.geomspace(1e-3, 1, N),
}


def dense(values: np.ndarray, seed: int) -> np.ndarray:
    """With a random eigenbasis."""
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))[0]
    A = (Q * values) @ Q.T
    return (A + A.T) / 2


def localised(values: np.ndarray, seed: int) -> np.ndarray:
    """With eigenvectors of one or two nonzero entries, as of models whose parameters hardly interact."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(values))
    A = np.diag(values[order])
    for a, b in rng.permutation(len(values))[: 2 * (len(values) // 4)].reshape(-1, 2):
        mean, half = (A[a, a] + A[b, b]) / 2, (A[a, a] - A[b, b]) / 2
        A[a, a] = A[b, b] = mean
        A[a, b] = A[b, a] = half
    return A


def semidefinite(A: np.ndarray) -> LinearOperator:
    """The matrix as an operator that is known to have no negative eigenvalue."""
    operator = aslinearoperator(A)
    operator.semidefinite = True
    return operator


def of_network(kind: type[hvpspec.HessianOperator], seed: int) -> np.ndarray:
    """The Gauss-Newton or the empirical Fisher matrix of a small classifier with N parameters."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 8, (60,), generator=generator)
    A = kind(model, "cross_entropy", [(x, y)], engine="autograd", verify=False)
    return (A @ torch.eye(N, dtype=torch.float64)).numpy()


NETWORKS: dict[str, type[hvpspec.HessianOperator]] = {
    "Gauss-Newton matrix": hvpspec.GGNOperator,
    "empirical Fisher matrix": hvpspec.EmpiricalFisherOperator,
}


def checks(values: np.ndarray, found: hvpspec.Spectrum, k: int) -> Iterator[tuple[str, bool]]:
    """For each interval, bound and set of a run whether it holds the truth."""
    size = float(np.abs(values).max())
    rounding = 1e-13 * size * len(values)
    for name, true in (("trace", values.sum()), ("frobenius_norm", np.linalg.norm(values))):
        estimate = getattr(found, name)
        if math.isfinite(estimate.error):
            low, high = estimate.interval
            yield name, bool(low - rounding <= true <= high + rounding)
    pairs = found.eigenpairs
    away = np.abs(values[:, None] - pairs.values).min(0)
    yield "eigenvalue errors", bool((away <= pairs.error + rounding).all())
    for name, bracket, true in (("largest", pairs.largest, values.max()), ("smallest", pairs.smallest, values.min())):
        certain, outer = (bracket.lower, bracket.upper) if name == "largest" else (-bracket.upper, -bracket.lower)
        side = 1 if name == "largest" else -1
        yield f"{name}: certain end", bool(certain <= side * true + rounding)
        yield f"{name}: outer end", bool(side * true <= outer + rounding)
    if pairs.converged:
        asked = np.sort(np.abs(values))[::-1][: min(k, len(values))]
        got = np.sort(np.abs(pairs.values))[::-1]
        yield "converged set", bool((np.abs(got - asked) <= pairs.error.max() + 2e-3 * asked.max()).all())
    if found.condition is not None:
        yield from _of_condition(values, found.condition, rounding)
    if found.density is not None:
        yield from _of_density(values, found.density)


def _of_condition(values: np.ndarray, found: hvpspec.Condition, rounding: float) -> Iterator[tuple[str, bool]]:
    rank, negative = float((np.abs(values) > found.rank_threshold).sum()), float((values < -found.zero).sum())
    for name, estimate, true in (("rank", found.rank, rank), ("negative count", found.negative, negative)):
        low, high = estimate.interval
        yield name, low - 1e-6 <= true <= high + 1e-6
    yield "rank: certain end", found.rank_at_least <= rank
    yield "negative count: certain end", found.negative_at_least <= (values < 0).sum()
    low, high = found.negative_mass.interval
    yield "negative mass", bool(low - rounding <= -values[values < 0].sum() <= high + rounding)
    magnitudes = np.sort(np.abs(values))[found.zero_rows :]
    yield "nearest zero: certain end", bool(magnitudes.min() <= found.nearest_zero.value + rounding)
    if magnitudes.min() > found.rank_threshold:
        kappa = magnitudes.max() / magnitudes.min()
        slack = 1 + rounding / magnitudes.min()
        yield "kappa: certain end", bool(found.kappa.lower <= kappa * slack)
        yield "kappa: upper end", bool(kappa <= found.kappa.upper * slack)
    else:
        yield "kappa: upper end", math.isinf(found.kappa.upper) or found.zero_rows > 0
    if found.definite != "unknown":
        signs = {"positive": values.min() > -rounding, "negative": values.max() < rounding}
        signs["semidefinite"] = values.min() >= -rounding
        yield "definite", bool(signs.get(found.definite, values.min() < 0 < values.max()))


def _of_density(values: np.ndarray, density: hvpspec.Density) -> Iterator[tuple[str, bool]]:
    distinct = np.unique(np.round(values / np.abs(values).max(initial=1e-300), 6)) * np.abs(values).max(initial=1e-300)
    for at in sorted({int(share * (len(distinct) - 1)) for share in (0.25, 0.6, 0.9)}):  # one interval counts once
        place = (distinct[at] + distinct[at + 1]) / 2 if len(distinct) > 1 else distinct[0] - 1.0
        low, high = density.cdf_bounds(place)
        yield "density count", bool(low - 1e-9 <= (values <= place).mean() <= high + 1e-9)
    x = np.unique(np.concatenate([values, density.nodes]))
    true = np.searchsorted(np.sort(values), x, side="right") / len(values)
    distance = float(np.abs(density.cdf(x) - true)[:-1] @ np.diff(x))
    yield "density error", distance <= density.error + 1e-9 * float(np.abs(values).max())
