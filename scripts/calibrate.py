"""How often the intervals of trace and Frobenius norm hold the truth, over many seeds and on spectra of all kinds.

    .venv/bin/python scripts/calibrate.py            about a quarter of an hour; writes results/calibration.md
    .venv/bin/python scripts/calibrate.py --seeds 50 a quick look; prints only

The matrices have the spectra of the XTrace paper's tests (arXiv:2301.07825), an indefinite one with outliers, and one
of rank one (the hardest for an interval: its samples are χ²₁), each with n = 1000 in a random eigenbasis.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import hvpspec
from hvpspec.estimators.probes import BLOCK, ProbeSums
from hvpspec.estimators.vectors import rademacher

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from estimators.spectra import NAMES, matrix  # noqa: E402

FIGURES = {"trace": (hvpspec.trace, np.trace), "frobenius_norm": (hvpspec.frobenius_norm, np.linalg.norm)}
BUDGETS = (8, 16, 32, 64, 128)
CONFIDENCE, RTOL = 0.95, 0.1


def at_fixed_budgets(A: np.ndarray, seeds: int) -> dict[str, list[float]]:
    """For each figure, the share of intervals that hold the truth after each of BUDGETS products."""
    truths = {name: exact(A) for name, (_, exact) in FIGURES.items()}
    hits = {name: [0] * len(BUDGETS) for name in FIGURES}
    operator = torch.from_numpy(A)
    for seed in range(seeds):
        W = rademacher(len(A), range(BUDGETS[-1]), seed=seed, dtype=torch.float64, device=operator.device)
        Z = operator @ W
        sums = ProbeSums(len(A), 1e-16)
        for start in range(0, BUDGETS[-1], BLOCK):
            sums.add(W[:, start : start + BLOCK], Z[:, start : start + BLOCK])
            if sums.count in BUDGETS:
                for name, truth in truths.items():
                    value, error = getattr(sums, name)(CONFIDENCE)
                    hits[name][BUDGETS.index(sums.count)] += abs(value - truth) <= error
    return {name: [hit / seeds for hit in row] for name, row in hits.items()}


def when_it_stops_by_itself(A: np.ndarray, figure: str, seeds: int) -> tuple[float, float]:
    """The share of intervals that hold the truth with the tolerance RTOL, and the mean number of products."""
    estimate, exact = FIGURES[figure]
    truth, operator, held, hvps = exact(A), torch.from_numpy(A), 0, 0
    for seed in range(seeds):
        found = estimate(operator, rtol=RTOL, confidence=CONFIDENCE, seed=seed, max_hvps=len(A) - 1)
        held += abs(found.value - truth) <= found.error
        hvps += found.hvps
    return held / seeds, hvps / seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=500)
    seeds = parser.parse_args().seeds
    spread = 2 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / seeds)
    lines = [
        "# Do the error bars hold?",
        "",
        f"Made by `python scripts/calibrate.py`: the share of {CONFIDENCE:.0%} intervals that hold the truth, over "
        f"{seeds} seeds each, on 1000 × 1000 matrices of known spectrum (chance alone makes it vary by ±{spread:.1%}). "
        f"Last two columns: stopping by itself at rtol = {RTOL}, and the mean number of products that took.",
        "",
        "| figure | spectrum | " + " | ".join(f"{budget} HVPs" for budget in BUDGETS) + " | self-stopped | HVPs |",
        "| --- | --- |" + " ---: |" * (len(BUDGETS) + 2),
    ]
    print("\n".join(lines))
    for spectrum in NAMES:
        A = matrix(spectrum)
        fixed = at_fixed_budgets(A, seeds)
        for figure in FIGURES:
            held, hvps = when_it_stops_by_itself(A, figure, seeds)
            cells = [f"{share:.1%}" for share in (*fixed[figure], held)]
            lines.append(f"| {figure.replace('_', ' ')} | {spectrum} | {' | '.join(cells)} | {hvps:.0f} |")
            print(lines[-1], flush=True)
    if seeds >= 500:
        (ROOT / "results/calibration.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
