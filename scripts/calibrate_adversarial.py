"""How often every interval, bracket, bound and set of a spectrum holds, on 39 spectra; writes results/adversarial.md.

    python scripts/calibrate_adversarial.py [--seeds 200] [--only NAME] [--print] [--jobs 2]
    python scripts/calibrate_adversarial.py --ceiling [--seeds 20] [--share 0.05] [--print] [--jobs 2]

Each spectrum with dense and with localised eigenvectors, stopped by its tolerances and by budgets of 12 to 60 products,
with another matrix for each seed; those without negative eigenvalues also as matrices of which that is known, and so
the Gauss-Newton and empirical Fisher matrices of small networks. --only: spectra whose names contain this. --print: the
table is printed, not written. --ceiling: instead, the products of rank-deficient matrices of every rank and
multiplicity up to n = 40, in both dtypes, with the given number of seeds each; it fails where there are more than
n + 16, and writes results/ceiling.md otherwise. --share: of these matrices, drawn at random, for which it is done; all
take a day. --jobs: processes, with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from estimators.adversarial import (  # noqa: E402
    NETWORKS,
    SPECTRA,
    N,
    checks,
    dense,
    localised,
    of_network,
    semidefinite,
)

import hvpspec  # noqa: E402
from hvpspec.estimators.passes.one_run import FURTHER_HVPS  # noqa: E402

K = 6
BUDGETS = (12, 25, 40, 60)
CONFIDENCE = 0.95
# What is certain never misses, sets called converged are right in 99 %, and the rest holds at its confidence.
RATES = {"eigenvalue errors": 1.0, "converged set": 0.99, "definite": 1.0}
CHANCE = 1e-3  # that a rate is called missed although it is met

Key = tuple[str, str, str, str]


def required(figure: str) -> float:
    return 1.0 if "certain end" in figure else RATES.get(figure, CONFIDENCE)


def missed(figure: str, held: int, made: int) -> bool:
    """Whether so few held that the rate is not met, beyond chance."""
    rate = required(figure)
    return held < made if rate == 1 else bool(stats.binom.cdf(held, made, rate) < CHANCE)


def run(name: str, seeds: int) -> tuple[Counter[Key], Counter[Key]]:
    """How often each interval held, and how often it was made."""
    held, made = Counter[Key](), Counter[Key]()
    first = 1_000_000 * [*SPECTRA, *NETWORKS].index(name)  # all runs are independent of one another
    for vectors in kinds_of(name):
        for seed in range(first, first + seeds):
            A, values = matrix(name, vectors, seed)
            for stop, budget in (("tolerance", None), ("budget", BUDGETS[seed % len(BUDGETS)])):
                found = hvpspec.spectrum(A, K, seed=seed, rtol=0.02, max_hvps=budget)
                for figure, holds in checks(values, found, K):
                    key = (name, vectors, stop, figure)
                    held[key] += holds
                    made[key] += 1
    return held, made


def kinds_of(name: str) -> tuple[str, ...]:
    """The kinds of matrices that are made for a spectrum or a network."""
    if name in NETWORKS:
        return ("network",)
    return ("dense", "localised", "known") if SPECTRA[name].min() >= 0 else ("dense", "localised")


def matrix(name: str, kind: str, seed: int) -> tuple[Any, np.ndarray]:
    """A matrix of that kind, and its eigenvalues."""
    if kind == "network":
        A = of_network(NETWORKS[name], seed)
        return semidefinite(A), np.linalg.eigvalsh(A)
    A = (localised if kind == "localised" else dense)(SPECTRA[name], seed)
    return semidefinite(A) if kind == "known" else A, SPECTRA[name]


def table(names: list[str], held: Counter[Key], made: Counter[Key]) -> tuple[list[str], list[str]]:
    """The table over figures, kinds of vectors and stops; and each case in which a rate is missed."""
    present = [kind for kind in ("dense", "localised", "known", "network") if any(key[1] == kind for key in made)]
    kinds = [(vectors, stop) for vectors in present for stop in ("tolerance", "budget")]
    figures = list(dict.fromkeys(figure for *_, figure in made))
    lines = ["| interval | required | " + " | ".join(f"{v}, {s}" for v, s in kinds) + " | rate missed in |"]
    lines.append("| --- | ---: |" + " ---: |" * len(kinds) + " ---: |")
    bad = []
    for figure in figures:
        cells, misses = [], 0
        for vectors, stop in kinds:
            keys = [(name, vectors, stop, figure) for name in names]
            good, all_ = sum(held[key] for key in keys), sum(made[key] for key in keys)
            cells.append(f"{good / all_:.2%} of {all_:,}" if all_ else "–")
            for key in keys:
                if made[key] and missed(figure, held[key], made[key]):
                    misses += 1
                    bad.append(f"| {key[0]} | {vectors}, {stop} | {figure} | {held[key]} of {made[key]} |")
        lines.append(f"| {figure} | {required(figure):.0%} | {' | '.join(cells)} | {misses} |")
    return lines, bad


@dataclass(frozen=True)
class Ceiling:
    """Of matrices of one size: ranks and multiplicities tried, runs, products beyond n at most, and on average.

    open_ends: runs in which trace or norm did not converge.
    """

    n: int
    cells: int
    runs: int
    most: int
    mean: float
    open_ends: int


def check_ceiling(n: int, seeds: int, share: float) -> Ceiling:
    """The products beyond n, for that share of the ranks and multiplicities, and for one at least."""
    rng = np.random.default_rng(n)
    cells = [(rank, copies) for rank in range(n + 1) for copies in range(1, max(rank, 1) + 1)]
    drawn = rng.permutation(len(cells))[: max(math.ceil(share * len(cells)), 1)]
    beyond, open_ends = [], 0
    for rank, copies in (cells[i] for i in sorted(drawn)):
        values = np.r_[np.repeat(np.arange(1.0, rank + 1), copies)[:rank], np.zeros(n - rank)]
        for seed in range(seeds):
            for dtype in (np.float64, np.float32):
                found = hvpspec.spectrum(dense(values, seed).astype(dtype), (1, 5, 10)[(seed + rank) % 3], seed=seed)
                beyond.append(found.hvps - n)
                open_ends += not (found.trace.converged and found.frobenius_norm.converged)
    return Ceiling(n, len(drawn), len(beyond), max(beyond), float(np.mean(beyond)), open_ends)


def write_ceiling(found: Iterable[Ceiling], options: argparse.Namespace) -> None:
    """Writes or prints the table; and a line for each size, as soon as it is known."""
    rows = []
    for row in found:
        rows.append(row)
        print(f"n = {row.n}: at most n + {row.most} products in {row.runs:,} runs", flush=True)
        assert row.most <= FURTHER_HVPS
    cells, runs = (sum(getattr(row, name) for row in rows) for name in ("cells", "runs"))
    known, arguments = sum(row.n * (row.n + 1) // 2 + 1 for row in rows), f"--seeds {options.seeds}"
    if options.share < 1:
        arguments += f" --share {options.share:g}"
    text = [
        "# The most products that a run makes",
        "",
        f"Made by `python scripts/calibrate_adversarial.py --ceiling {arguments}`.",
        f"It is n + {FURTHER_HVPS} at most, whatever the matrix. Tried: matrices of n = 1 … {len(rows)}, whose",
        "eigenvalues are 1, 2, … with so many copies each, up to a rank, and zeros; float64 and float32, k = 1, 5 or",
        f"10; seeds for each: {options.seeds}. {runs:,} runs on {cells:,} ranks and multiplicities of {known:,}.",
        "In brackets: runs in which trace or norm did not converge to the default tolerances.",
        "",
        "| n | ranks and multiplicities | runs | at most | on average |",
        "| ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {row.n} | {row.cells:,} | {row.runs:,} ({row.open_ends:,}) | n {row.most:+} | n {row.mean:+.1f} |"
            for row in rows
        ),
    ]  # fmt: skip
    if options.printed:
        print("\n".join(text))
    else:
        (ROOT / "results" / "ceiling.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", default="")
    parser.add_argument("--print", action="store_true", dest="printed")
    parser.add_argument("--ceiling", action="store_true")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    names = [name for name in (*SPECTRA, *NETWORKS) if options.only in name]
    with ProcessPoolExecutor(options.jobs) as pool:
        if options.ceiling:
            sizes = range(1, 41)
            write_ceiling(
                pool.map(check_ceiling, sizes, [options.seeds] * len(sizes), [options.share] * len(sizes)), options
            )
        else:
            tabulate(names, options, pool.map(run, names, [options.seeds] * len(names)))


def tabulate(
    names: list[str], options: argparse.Namespace, counts: Iterable[tuple[Counter[Key], Counter[Key]]]
) -> None:
    """Writes or prints the table; and a line for each spectrum, as soon as it is known."""
    held, made = Counter[Key](), Counter[Key]()
    for name, (of_held, of_made) in zip(names, counts, strict=True):
        held.update(of_held)
        made.update(of_made)
        worst = [f"{key[1]}, {key[2]}: {key[3]} {held[key]}/{made[key]}" for key in made
                 if key[0] == name and missed(key[3], held[key], made[key])]  # fmt: skip
        print(f"{name}: {'; '.join(worst) or 'all rates met'}", flush=True)
    lines, bad = table(names, held, made)
    text = [
        "# Every interval on 39 spectra, and on matrices of networks",
        "",
        f"Made by `python scripts/calibrate_adversarial.py --seeds {options.seeds}`: n = {N}, k = {K}, `rtol=0.02`,",
        f"confidence 95 %; for each spectrum {options.seeds} matrices with dense and {options.seeds} with localised",
        f"eigenvectors, each once to its tolerances and once to a budget of {BUDGETS[0]} to {BUDGETS[-1]} products.",
        "Known: of matrices of which it is known that no eigenvalue is negative. Network: the Gauss-Newton and the",
        "empirical Fisher matrices of small classifiers, of which it is known as well.",
        "A rate is missed where a binomial variable with the required one would be so small with a chance below",
        f"{CHANCE:.1%}; what is certain, at the first miss.",
        "",
        *lines,
        "",
        "## Where a rate is missed",
        "",
        *(["| spectrum | case | interval | held |", "| --- | --- | --- | ---: |", *bad] if bad else ["Nowhere."]),
    ]  # fmt: skip
    if options.printed:
        print("\n".join(text))
    else:
        (ROOT / "results" / "adversarial.md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
