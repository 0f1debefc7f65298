"""What a warm start saves: HVPs of `eigsh` from a random start, from one that leans towards the eigenvectors of the
matrix before, and with those in the basis next to a random Krylov space.

    .venv/bin/python scripts/bench_warm_start.py        a minute; writes results/warm_start.md

The third way is written out here: k products with the old vectors, then Lanczos steps from a random start, and
Rayleigh–Ritz on both together. It stops as soon as the residuals are small, with nothing shown to have been missed:
what is counted for it is the least that it could take.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edge_of_stability as run
import numpy as np
import torch
from usage import only_help

import hvpspec
from hvpspec.demo import build

ROOT = Path(__file__).parent.parent
SEEDS = 3
OUTLIERS = [20, 15, 12, 9, 7, -5, 4, 3.5, 3, 2.5]
SIZE, STEPS, EVERY = 600, 4, 500


def augmented(A: Any, U: np.ndarray, k: int, tol: float, seed: int) -> int:
    """HVPs until the k largest in magnitude have relative residuals ≤ tol on span{U, g, A g, A² g, …}."""
    U = np.linalg.qr(U)[0]
    q = np.random.default_rng(seed).standard_normal(len(U))
    krylov, space, images = (q / np.linalg.norm(q))[:, None], U, np.asarray(A @ U)
    hvps = U.shape[1]
    while True:
        w = np.asarray(A @ krylov[:, -1])
        hvps += 1
        space, images = np.column_stack([space, krylov[:, -1]]), np.column_stack([images, w])
        Q, R = np.linalg.qr(space)
        HQ = np.linalg.solve(R.T, images.T).T
        values, S = np.linalg.eigh((Q.T @ HQ + HQ.T @ Q) / 2)
        top = np.argsort(-np.abs(values))[:k]
        residuals = np.linalg.norm(HQ @ S[:, top] - Q @ S[:, top] * values[top], axis=0)
        if (residuals <= tol * np.abs(values[top])).all():
            return hvps
        for _ in range(2):
            w = w - krylov @ (krylov.T @ w)
        krylov = np.column_stack([krylov, w / np.linalg.norm(w)])


def drifting(part: float) -> list[np.ndarray]:
    """Ten outliers over a bulk; from one matrix to the next a random symmetric one of norm `part` · 20 is added."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0]
    A = (Q * np.concatenate([OUTLIERS, rng.uniform(-1, 1, SIZE - len(OUTLIERS))])) @ Q.T
    series = []
    for _ in range(STEPS):
        series.append(A)
        E = rng.standard_normal((SIZE, SIZE))
        A = A + part * 20 * (E + E.T) / np.sqrt(8 * SIZE)
    return series


def digits(folder: Path) -> list[hvpspec.HessianOperator]:
    run.EVERY = EVERY
    models = [hvpspec.load_checkpoint(path, build()) for path in run.train(folder)]
    return [hvpspec.HessianOperator(model, run.loss, run.batches(), dtype="float64") for model in models]


def compare(series: list[Any], k: int, tol: float) -> str:
    counts: dict[str, list[int]] = {"cold": [], "leaning": [], "augmented": []}
    ways: dict[str, Callable[[Any, np.ndarray, int], int]] = {
        "cold": lambda A, U, seed: hvpspec.eigsh(A, k, tol=tol, seed=seed).hvps,
        "leaning": lambda A, U, seed: hvpspec.eigsh(A, k, tol=tol, seed=seed, start=U).hvps,
        "augmented": lambda A, U, seed: augmented(A, U, k, tol, seed),
    }
    for number in range(1, len(series)):
        before = hvpspec.eigsh(series[number - 1], k, tol=tol, seed=10_000).vectors
        for seed in range(SEEDS):
            for name, way in ways.items():
                counts[name].append(way(series[number], before, 100 * seed + number))
    means = {name: float(np.mean(made)) for name, made in counts.items()}
    worst = max(np.subtract(counts["leaning"], counts["cold"]))
    saved = 1 - means["leaning"] / means["cold"]
    shown = " | ".join(f"{mean:.1f}" for mean in means.values())
    return f"| {k} | {tol:g} | {shown} | {saved:.1%} | {worst:+d} |"


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# What a warm start saves",
        "",
        f"Made by `python scripts/bench_warm_start.py`: HVPs of `eigsh`, the mean over a series and {SEEDS} seeds. "
        "*Leaning* is what `start=` and `hvpspec track` do; *augmented* has the old vectors in the basis next to a "
        "random Krylov space, at the least it could take (nothing is shown to have been missed). *Saved* is by "
        "leaning; *worst* is the most that a leaning start took beyond the cold one.",
        "",
        "| series | k | tolerance | cold | leaning | augmented | saved | worst |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for part in (1e-1, 1e-2, 1e-3, 1e-5):
        series = drifting(part)
        for k, tol in ((1, 1e-3), (5, 1e-3), (10, 1e-3), (5, 1e-6)):
            lines.append(f"| drift {part:g} {compare(series, k, tol)}")
            print(lines[-1], flush=True)
    with tempfile.TemporaryDirectory() as name:
        hessians = digits(Path(name))
        for k in (1, 5, 10):
            lines.append(f"| digits, every {EVERY} steps {compare(hessians, k, 1e-3)}")
            print(lines[-1], flush=True)
    (ROOT / "results" / "warm_start.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    only_help(__doc__)
    main()
