"""How often the intervals of `hvpspec.gradient` hold, over 200 seeds each; writes results/gradient.md.

    python scripts/calibrate_gradient.py [--seeds 200] [--short]

Noise scale: 240 samples of each data set of calibrate_data_error.py are put into batches at random, again and again;
the truth is that of all samples' gradients. Share: eigenpairs from random starts, to a loose tolerance; the truth is
that of the eigenvectors of the dense Hessian. --short: ten seeds, printed and not written.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from calibrate_data_error import POPULATIONS, Population
from torch import Tensor, nn

import hvpspec

ROOT = Path(__file__).parent.parent
SAMPLES = 240
# Sizes of the batches: few and many, of single samples, and ragged.
DIVISIONS = {
    "3 × 80": [80] * 3, "4 × 60": [60] * 4, "8 × 30": [30] * 8, "30 × 8": [8] * 30, "240 × 1": [1] * 240,
    "7 × 34, 1 × 2": [34] * 7 + [2], "1 × 120, 40 × 3": [120] + [3] * 40,
}  # fmt: skip
TOLERANCES = (0.1, 1e-2)
CRITERIA = {"cross_entropy": nn.functional.cross_entropy, "mse": nn.functional.mse_loss}


def data(of: Population) -> tuple[Tensor, Tensor]:
    chosen = torch.randperm(len(of.x), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    return of.x[chosen], of.y[chosen]


def noise_scale(of: Population) -> float:
    """tr Σ / ‖g‖², sample by sample."""
    rows = []
    for x, y in zip(*data(of), strict=True):
        loss = CRITERIA[of.loss](of.model(x[None]), y[None])
        rows.append(torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(of.model.parameters()))]))
    each = torch.stack(rows)
    return float(((each - each.mean(0)) ** 2).sum() / SAMPLES / each.mean(0).norm() ** 2)


def operator(of: Population, order: Tensor, sizes: list[int]) -> hvpspec.HessianOperator:
    x, y = data(of)
    parts = list(zip(x[order].split(sizes), y[order].split(sizes), strict=True))
    return hvpspec.HessianOperator(of.model, of.loss, parts, verify=False, engine="autograd")


def of_noise(of: Population, sizes: list[int], seeds: int) -> tuple[float, float, float]:
    """How often the interval holds, how often none is given, and the median of its upper over its lower end."""
    truth, held, ratios = noise_scale(of), [], []
    for seed in range(seeds):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(seed))
        found = hvpspec.gradient(operator(of, order, sizes)).noise_scale
        if found is not None:
            low, high = found.interval
            rounding = 1e-9 * truth  # of single samples it is exact
            held.append(low - rounding <= truth <= high + rounding)
            ratios.append(high / low if low > 0 else math.inf)
    return float(np.mean(held)), 1 - len(held) / seeds, float(np.median(ratios))


def of_share(of: Population, tol: float, seeds: int) -> tuple[float, float, float]:
    """How often the interval of the share holds, and those of all its parts; and its mean width."""
    H = operator(of, torch.arange(SAMPLES), [SAMPLES])
    dense = H @ np.eye(H.shape[0])
    values, vectors = np.linalg.eigh((dense + dense.T) / 2)
    order = np.argsort(-np.abs(values), kind="stable")
    g = torch.autograd.grad(CRITERIA[of.loss](of.model(data(of)[0]), data(of)[1]), list(of.model.parameters()))
    flat = torch.cat([part.reshape(-1) for part in g]).numpy()
    parts = (vectors[:, order].T @ flat) ** 2 / (flat @ flat)
    whole, each, widths = [], [], []
    for seed in range(seeds):
        found = hvpspec.gradient(H, hvpspec.spectrum(H, 6, tol=tol, seed=seed, rtol=0.2, only=QUANTITIES).eigenpairs)
        assert found.share is not None
        low, high = found.share.interval
        whole.append(low - 1e-12 <= parts[: len(found.parts)].sum() <= high + 1e-12)
        each.append((np.abs(found.parts - parts[: len(found.parts)]) <= found.parts_error + 1e-12).all())
        widths.append(high - low)
    return float(np.mean(whole)), float(np.mean(each)), float(np.mean(widths))


QUANTITIES = ("eigenvalues", "trace")  # the probes of the trace show whether copies are missing


def tables(seeds: int) -> Iterator[str]:
    yield "| data | batches × samples | noise scale held | nothing said | upper / lower end, median |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, make in POPULATIONS.items():
        for division, sizes in DIVISIONS.items():
            held, silent, ratio = of_noise(make(), sizes, seeds)
            yield f"| {name} | {division} | {held:.1%} | {silent:.1%} | {ratio:.3g} |"
    yield ""
    yield "| data | tolerance of the eigenpairs | share held | all parts held | width of the share's interval, mean |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, make in POPULATIONS.items():
        for tol in TOLERANCES:
            whole, each, width = of_share(make(), tol, max(seeds // 4, 10))
            yield f"| {name} | {tol:g} | {whole:.1%} | {each:.1%} | {width:.2g} |"


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
        (ROOT / "results" / "gradient.md").write_text("\n".join([*HEAD(asked.seeds), *lines]) + "\n", encoding="utf-8")


def HEAD(seeds: int) -> list[str]:
    return []


if __name__ == "__main__":
    main()
