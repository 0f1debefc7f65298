"""How often the error bars of the conditioning figures hold, on spectra that are known; writes results/condition.md.

    python scripts/calibrate_condition.py [--seeds 200] [--size 300] [--digits] [--short]

--digits: the digits checkpoint compared with its explicit Hessian as well (3,466 HVPs and a dense eigenvalue problem).
--short: ten seeds, printed and not written.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "estimators"))

from spectra import COPIES, NAMES, eigenvalues, matrix, rotated  # noqa: E402

import hvpspec  # noqa: E402

DAMPINGS = (0.0, 0.01, 7.0)
DTYPES = (torch.float64, torch.float32)
BUDGET = 200


def truth(values: np.ndarray, found: hvpspec.Condition) -> dict[str, float]:
    """Every figure from the eigenvalues."""
    damping = found.damping
    rest = np.sort(np.abs(values))[: found.bulk_count]
    bulk = values[np.argsort(np.abs(values), kind="stable")][: len(rest)]
    magnitudes = np.abs(values + damping)
    kappa = magnitudes.max() / magnitudes.min() if magnitudes.min() > 0 else math.inf
    size = np.abs(values).max()
    return {
        "largest": values.max(),
        "smallest": values.min(),
        "norm": size,
        "negative": float((values < -found.zero).sum()),
        "negative_at_least": float((values < 0).sum()),
        "negative_mass": -values[values < 0].sum(),
        "rank": float((np.abs(values) > found.rank_threshold).sum()),
        "rank_at_least": float((np.abs(values) > found.rank_threshold).sum()),
        "stable_rank": (values**2).sum() / size**2,
        "participation_ratio": values.sum() ** 2 / (values**2).sum(),
        "bulk_mean": bulk.mean() if len(bulk) else 0.0,
        "bulk_spread": bulk.std() if len(bulk) else 0.0,
        "flatness": bulk.std() / size if len(bulk) else 0.0,
        "nearest_zero": magnitudes.min(),
        "nearest_range": magnitudes.min(),
        "kappa": kappa,
        "digits_lost": math.log10(kappa) if math.isfinite(kappa) else math.inf,
        "effective_dimension": (values / (values + damping)).sum() if damping else float(len(values)),
        "log_determinant": np.log(np.maximum(values + damping, 1e-300)).sum(),
        "step": 2 / (values.max() + damping),
        "gradient_descent": descent(kappa, found.accuracy),
        "conjugate_gradients": conjugate(values + damping, found.accuracy)
        if found.conjugate_gradients is not None
        else 0.0,
    }


def descent(kappa: float, accuracy: float) -> float:
    """Iterations until the slowest part of the error has shrunk, counted."""
    if not math.isfinite(kappa) or kappa > 1e6:
        return math.log(1 / accuracy) / math.log1p(2 / (kappa - 1)) if math.isfinite(kappa) else math.inf
    rate, left, count = (kappa - 1) / (kappa + 1), 1.0, 0
    while left > accuracy * (1 + 1e-9):
        left, count = left * rate, count + 1
    return float(max(count, 1))


def conjugate(shifted: np.ndarray, accuracy: float) -> float:
    """Iterations of CG on the diagonal matrix with a right-hand side of ones, counted in the norm of the bound."""
    if shifted.min() <= 0:
        return math.inf
    b = np.ones(len(shifted))
    solution, x, r, direction = b / shifted, np.zeros_like(b), b, b
    whole = solution @ (shifted * solution)
    for count in range(len(b)):
        away = x - solution
        if away @ (shifted * away) <= accuracy**2 * whole:
            return float(count)
        length = (r @ r) / (direction @ (shifted * direction))
        x, new = x + length * direction, r - length * shifted * direction
        direction, r = new + (new @ new) / (r @ r) * direction, new
    return float(len(b))


def checks(values: np.ndarray, found: hvpspec.Condition, slack: float = 1e-9) -> Iterator[tuple[str, bool]]:
    """For each figure that is there: whether its interval or bound holds. slack: for rounding."""
    for name, true in truth(values, found).items():
        figure = getattr(found, name)
        rounding = slack * (1 + abs(true)) if math.isfinite(true) else 0.0
        if isinstance(figure, hvpspec.Estimate):
            low, high = figure.interval
            yield name, low - rounding <= true <= high + rounding
        elif isinstance(figure, hvpspec.Bracket):
            if name in ("kappa", "digits_lost"):  # rounding in the smallest |λ + δ| is magnified
                rounding = slack * abs(true) ** 2 if math.isfinite(true) else 0.0
            yield name, figure.lower - rounding <= true <= figure.upper + rounding
        elif isinstance(figure, hvpspec.Bound):
            yield name, true <= figure.value * (1 + slack) + slack
        elif figure is not None:
            yield name, figure <= true
    if found.definite != "unknown":
        shifted = values + found.damping
        signs = {"positive": shifted.min() > -slack, "negative": shifted.max() < slack}
        yield "definite", bool(signs.get(found.definite, shifted.min() < 0 < shifted.max()))
    if found.refined is not None:
        gaps = np.abs(values - found.refined.values[:, None]).min(1)
        yield "refined", bool((gaps <= found.refined.error + slack * np.abs(values).max()).all())


def counted(density: hvpspec.Density, values: np.ndarray) -> Iterator[tuple[str, bool]]:
    """The density's counts above thresholds that lie in gaps."""
    distinct = np.unique(np.round(values, 9))
    for name, share in (("count, upper half", 0.5), ("count, top", 0.9)):
        i = int(share * (len(distinct) - 1))
        place = (distinct[i] + distinct[i + 1]) / 2 if len(distinct) > 1 else distinct[0] - 1
        count = density.count(place, 2 * abs(values).max() + 1)
        low, high = count.interval
        yield name, low - 1e-6 <= (values > place).sum() <= high + 1e-6


def of_spectra(options: argparse.Namespace, damping: float, dtype: torch.dtype) -> list[str]:
    names = NAMES + COPIES
    shares: dict[str, dict[str, float]] = {}
    slack = 1e-9 if dtype == torch.float64 else 3e-6
    for name in names:
        values, A = eigenvalues(name, options.size), torch.from_numpy(matrix(name, options.size)).to(dtype)
        held, made = Counter[str](), Counter[str]()
        for seed in range(options.seeds):
            run = hvpspec.spectrum(
                A, damping=damping, rtol=0.02, seed=seed, max_hvps=BUDGET, refine=seed % 10 == 0, refine_hvps=300
            )
            for figure, holds in (*checks(values, run.condition, slack), *counted(run.density, values)):
                held[figure] += holds
                made[figure] += 1
        for figure in made:
            shares.setdefault(figure, {})[name] = held[figure] / made[figure]
        bad = {f: f"{held[f]}/{made[f]}" for f in made if held[f] < 0.93 * made[f]}
        print(dtype, damping, name, "below 93 %:" if bad else "all at 93 % or more", bad or "", flush=True)
    kind = str(dtype).removeprefix("torch.")
    lines = [f"## {kind}, δ = {damping:g}", "", f"| figure | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
    for figure, row in shares.items():
        cells = [f"{row[name]:.1%}" if name in row else "–" for name in names]
        lines.append(f"| {figure.replace('_', ' ')} | {' | '.join(cells)} |")
    return [*lines, ""]


def of_blocks(options: argparse.Namespace) -> list[str]:
    """Traces, norms and λ_max of diagonal blocks, four to a matrix."""
    lines = ["## Blocks, float64", "", "| figure | held |", "| --- | ---: |"]
    values = np.concatenate([np.geomspace(1, 10, 15), -np.geomspace(0.5, 6, 15), np.linspace(-0.05, 0.05, 270)])
    dense = rotated(values)
    parts = {
        f"part {i}": slice(first, last) for i, (first, last) in enumerate([(0, 20), (20, 100), (100, 150), (150, 300)])
    }
    held, made = Counter[str](), Counter[str]()
    for seed in range(options.seeds):
        found = hvpspec.spectrum(torch.from_numpy(dense), rtol=0.05, seed=seed, blocks=parts)
        for block in found.blocks.blocks:
            own = np.linalg.eigvalsh(dense[parts[block.name], parts[block.name]])
            for name, figure, true in (
                ("trace", block.trace, own.sum()),
                ("Frobenius norm", block.frobenius_norm, np.linalg.norm(own)),
            ):
                held[name] += abs(figure.value - true) <= figure.error + 1e-9
                made[name] += 1
            held["λ_max"] += block.largest.lower - 1e-9 <= own.max() <= block.largest.upper + 1e-9
            made["λ_max"] += 1
    lines += [f"| {name} | {held[name] / made[name]:.1%} |" for name in made]
    print("\n".join(lines), flush=True)
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    if options.short:
        options.seeds = 10
    lines = [
        "# The conditioning figures: how often their error bars hold",
        "",
        f"Made by `python scripts/calibrate_condition.py --seeds {options.seeds} --size {options.size}"
        f"{' --digits' if options.digits else ''}`. Matrices of {options.size} × {options.size}, `rtol=0.02`,",
        f"at most {BUDGET} HVPs, confidence 95 %. In each cell the share of seeds whose interval or bound held (of",
        '"refined", one seed in ten).',
        "",
    ]
    for dtype in DTYPES:
        for damping in DAMPINGS:
            lines += of_spectra(options, damping, dtype)
    lines += of_blocks(options)
    if options.digits:
        lines += digits()
    if not options.short:
        (ROOT / "results" / "condition.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def digits() -> list[str]:
    from hvpspec.demo import CHECKPOINT, batches, build

    model = hvpspec.load_checkpoint(CHECKPOINT, build())
    H = hvpspec.HessianOperator(model, "cross_entropy", batches(), dtype="float64")
    dense = H @ np.eye(H.shape[0])
    values = np.linalg.eigvalsh((dense + dense.T) / 2)
    lines = ["## The digits classifier compared with its explicit Hessian", ""]
    for damping in (0.0, 0.1):
        found = hvpspec.condition(H, damping=damping)
        exact, held = truth(values, found), dict(checks(values, found))
        lines += [
            f"δ = {damping:g}, {found.hvps} HVPs:",
            "",
            "| figure | hvpspec | dense | within |",
            "| --- | --- | ---: | --- |",
        ]
        for name, holds in held.items():
            if name in exact:
                lines.append(
                    f"| {name.replace('_', ' ')} | {shown(getattr(found, name))} | {exact[name]:.8g} | "
                    f"{'yes' if holds else 'NO'} |"
                )
        lines.append("")
        print("\n".join(lines), flush=True)
    return lines


def shown(figure: Any) -> str:
    if isinstance(figure, hvpspec.Bracket):
        return f"[{figure.lower:.8g}, {figure.upper:.8g}]"
    if isinstance(figure, hvpspec.Bound):
        return f"≤ {figure.value:.6g}"
    if isinstance(figure, hvpspec.Estimate) and figure.lower is not None:
        low, high = figure.interval
        return f"{figure.value:.6g} in [{low:.6g}, {high:.6g}]"
    return str(figure)


if __name__ == "__main__":
    main()
