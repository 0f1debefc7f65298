"""How often the intervals of `hvpspec.gradient` hold; writes results/gradient.md.

    python scripts/calibrate_gradient.py [--seeds 200] [--short]

Noise scale: 240 samples of each data set of calibrate_data_error.py are put into batches at random, again and again;
the truth is that of the samples' own gradients. Share: of a random gradient in the eigenspaces of matrices of 60 rows
with known spectra; each seed has another matrix. --short: ten seeds, printed and not written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from calibrate_data_error import POPULATIONS, Population
from scipy.stats import ortho_group
from torch import Tensor, nn

import hvpspec
from hvpspec.estimators.gradients.noise_scale import Batches, noise_of

ROOT = Path(__file__).parent.parent
SAMPLES, ROWS = 240, 60
# Sizes of the batches: few and many, of single samples, and ragged.
DIVISIONS = {
    "3 × 80": [80] * 3, "4 × 60": [60] * 4, "8 × 30": [30] * 8, "30 × 8": [8] * 30, "120 × 2": [2] * 120,
    "7 × 34, 1 × 2": [34] * 7 + [2],
}  # fmt: skip
CRITERIA = {"cross_entropy": nn.functional.cross_entropy, "mse": nn.functional.mse_loss}
SPECTRA = {
    "outliers": [*(10 / np.arange(1, 9)), *np.linspace(-0.1, 0.2, 52)],
    "copies": [5, 5, 5, 3, 3, 2, *np.linspace(-0.1, 0.1, 54)],
    "nearly copies": [5, 5 - 5e-5, 3, 3 - 3e-4, 2, *np.linspace(-0.1, 0.1, 55)],
    "indefinite": [5, -5, 4, -4.5, 3, -2, *np.linspace(-0.3, 0.3, 54)],
    "dense": np.linspace(1, 2, ROWS),
}


def sample_gradients(of: Population) -> Tensor:
    """One by one, (samples, n)."""
    chosen = torch.randperm(len(of.x), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    rows = []
    for x, y in zip(of.x[chosen], of.y[chosen], strict=True):
        loss = CRITERIA[of.loss](of.model(x[None]), y[None])
        rows.append(torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(of.model.parameters()))]))
    return torch.stack(rows)


def of_noise(each: Tensor, sizes: list[int], seeds: int) -> tuple[float, float, float]:
    """How often the interval holds, how often none is given, and the median of its upper over its lower end."""
    g, weights = each.mean(0), np.array(sizes, float)
    truth, held, ratios = float(((each - g) ** 2).sum() / SAMPLES), [], []
    for seed in range(seeds):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(seed))
        batches, across = Batches(), torch.zeros_like(g)
        for number, part in enumerate(each[order].split(sizes)):
            batches.receive(number, float(len(part)), part.mean(0)[:, None])
            across += len(part) ** 2 * part.mean(0)
        found = noise_of(batches, float(g @ g), float(across @ g / (weights @ weights)), SAMPLES, 0.95)
        if not found.reason:
            held.append(found.lower <= truth <= found.upper)
            ratios.append(found.upper / found.lower)
    return float(np.mean(held)), 1 - len(held) / seeds, float(np.median(ratios))


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.zeros(ROWS, dtype=torch.float64))


def with_spectrum(values: np.ndarray, seed: int) -> tuple[hvpspec.HessianOperator, np.ndarray]:
    """A matrix with these eigenvalues, and the share of its gradient along each eigenvector: a few have most of it."""
    rng = np.random.default_rng(seed)
    Q = ortho_group.rvs(ROWS, random_state=seed)
    A = (Q * values) @ Q.T
    c = rng.standard_normal(ROWS) * np.where(rng.random(ROWS) < 0.2, 5, 0.3)
    A, g = torch.from_numpy((A + A.T) / 2), torch.from_numpy(Q @ c)

    def loss(model: Point, batch: Tensor) -> Tensor:
        return model.p @ (A @ model.p) / 2 + g @ model.p

    H = hvpspec.HessianOperator(Point(), loss, [torch.zeros(1)], verify=False, engine="autograd")
    return H, c**2 / (c @ c)


def of_share(values: np.ndarray, by: str, seeds: int) -> tuple[float, float, float]:
    """How often the interval of the share holds, and those of all its parts; and the median of its width."""
    whole, each, widths = [], [], []
    for seed in range(seeds):
        H, parts = with_spectrum(values, seed)
        if by == "spectrum":
            pairs = hvpspec.spectrum(
                H, 5, tol=1e-2, seed=seed, rtol=0.2, max_hvps=45, only=("eigenvalues", "trace")
            ).eigenpairs
        else:
            pairs = hvpspec.eigsh(H, 5, tol=1e-2, seed=seed, max_hvps=30)
        found = hvpspec.gradient(H, pairs)
        assert found.share is not None
        near = np.abs(values - pairs.values[:, None]) <= pairs.error[:, None] + 1e-10
        low, high = found.share.interval
        whole.append(low - 1e-10 <= parts[near.any(0)].sum() <= high + 1e-10)
        alone = near.sum(1) == 1
        true = (near * parts).sum(1)
        each.append((np.abs(found.parts - true) <= found.parts_error + 1e-10)[alone].all())
        widths.append(high - low)
    return float(np.mean(whole)), float(np.mean(each)), float(np.median(widths))


def tables(seeds: int) -> Iterator[str]:
    yield "| data | batches × samples | noise scale held | nothing said | upper / lower end, median |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, make in POPULATIONS.items():
        each = sample_gradients(make())
        for division, sizes in DIVISIONS.items():
            held, silent, ratio = of_noise(each, sizes, seeds)
            yield f"| {name} | {division} | {held:.1%} | {silent:.1%} | {ratio:.3g} |"
    yield ""
    yield "| spectrum | eigenpairs by | share held | all parts held | width of the share's interval, median |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for name, values in SPECTRA.items():
        for by in ("spectrum", "eigsh") if name in ("outliers", "copies") else ("spectrum",):
            whole, parts, width = of_share(np.array(values, float), by, seeds)
            yield f"| {name} | {by} | {whole:.1%} | {parts:.1%} | {width:.2g} |"


def head(seeds: int) -> list[str]:
    return [
        "# The gradient in the spectrum: how often its intervals hold",
        "",
        f"Made by `python scripts/calibrate_gradient.py --seeds {seeds}`. Noise scale (confidence 95 %): {SAMPLES}",
        f"samples of each data set, put into batches at random {seeds} times; the truth is that of the samples' own",
        "gradients.",
        f"Share (99 %): {seeds} matrices of {ROWS} rows with each spectrum, five eigenpairs of largest magnitude to a",
        "tolerance of 1 %, and a gradient of which a few eigenvectors have most. By `spectrum` copies are excluded or",
        "found; by `eigsh`, with at most 30 products, they are not, and the interval allows for that.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--short", action="store_true")
    asked = parser.parse_args()
    lines = []
    for line in tables(10 if asked.short else asked.seeds):
        print(line, flush=True)
        lines.append(line)
    if not asked.short:
        (ROOT / "results" / "gradient.md").write_text("\n".join([*head(asked.seeds), *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
