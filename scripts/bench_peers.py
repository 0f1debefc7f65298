"""hvpspec compared with PyHessian, hessian-eigenthings and curvlinops: the same four figures at the same true accuracy.

    pip install -c scripts/constraints.txt torch -e ".[cli,test,bench]" && pip install --no-deps pyhessian==0.1
    .venv/bin/python scripts/bench_peers.py      an hour; writes results/peers.md; where interrupted, goes on

On three networks whose dense spectra are known (float64, three batches of the digits): the digits checkpoint, a U-Net
and an MLP-Mixer. The ten eigenpairs of largest magnitude to a relative residual of 1e-3, trace and Frobenius norm to
±1 % (1.96 times the rms error), and the density to a Wasserstein distance of 1 % of the spectrum's width. Each package
is given, for each figure, its best method and the smallest budget at which that is so (found beforehand on the dense
matrix, over twenty seeds); its own stopping rules are not asked. hvpspec is not told: it stops by itself. Then all run
on the network, products counted, in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from peer_problems import PROBLEMS, ROOT, PeerProblem
from peers import FIGURES, Budgets, Curvlinops, Eigenthings, Ours, PyHessian, Truth, product_errors

ROUNDS = 3
_TOO_SLOW_TO_REPEAT = 120.0  # seconds of the first round
PACKAGES = (Ours(), Curvlinops(), Eigenthings(), PyHessian())


def known_budgets(truth: Truth) -> dict[str, Budgets]:
    """The smallest budgets that do; looked for once, which takes minutes, and kept in .cache."""
    path = Path(ROOT / f".cache/peers/budgets-{truth.problem.name}.json")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({package.name: package.budgets(truth) for package in PACKAGES}))
    found: dict[str, Budgets] = json.loads(path.read_text())
    return found


@dataclass(frozen=True)
class Round:
    """hvps: of each figure."""

    hvps: dict[str, int]
    seconds: float


def all_rounds(truth: Truth, budgets: dict[str, Budgets]) -> dict[str, list[Round]]:
    """Of each package, in turns. They are kept in .cache until the page is written."""
    path = rounds_of(truth.problem)
    rounds: dict[str, list[Round]] = {package.name: [] for package in PACKAGES}
    if path.exists():
        rounds = {name: [Round(**one) for one in some] for name, some in json.loads(path.read_text()).items()}
    for seed in range(ROUNDS):
        for package in PACKAGES:
            own = rounds[package.name]
            if len(own) > seed or (own and own[0].seconds > _TOO_SLOW_TO_REPEAT):
                continue
            start = time.perf_counter()
            hvps = {figure: int(count) for figure, count in package.run(truth, budgets[package.name], seed).items()}
            own.append(Round(hvps, time.perf_counter() - start))
            path.write_text(json.dumps({name: [asdict(one) for one in some] for name, some in rounds.items()}))
            print(package.name, hvps, f"{own[-1].seconds:.1f} s", flush=True)
    return rounds


def rounds_of(problem: PeerProblem) -> Path:
    return Path(ROOT / f".cache/peers/rounds-{problem.name}.json")


def compare(problem: PeerProblem) -> list[str]:
    """The section of one network."""
    truth = Truth(problem)
    budgets = known_budgets(truth)
    print(problem.name, budgets, flush=True)
    rows, errors = [], product_errors(problem)
    for name, rounds in all_rounds(truth, budgets).items():
        means = {figure: np.mean([one.hvps[figure] for one in rounds]) for figure in rounds[0].hvps}
        total = sum(means.values())
        cells = ["in one pass"] * 4 if "all" in means else [cell(means[f]) if f in means else "–" for f in FIGURES]
        seconds = statistics.median(one.seconds for one in rounds)
        rows.append(f"| {name} | {' | '.join(cells)} | {total:,.0f} | {seconds:.1f} | {errors[name]:.0e} |")
    return [
        f"## {problem.name[0].upper()}{problem.name[1:]}",
        "",
        f"{problem.about[0].upper()}{problem.about[1:]}; {len(truth.values):,} parameters.",
        "",
        "| package | eigenpairs | trace | norm | density | HVPs in all | seconds | a product is off by |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
    ]


def cell(hvps: float) -> str:
    return f"{hvps:,.0f}" if hvps else "none will do"


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [problem.name for problem in PROBLEMS]
    parser.add_argument("--only", choices=names, help="one network; prints its section and writes nothing")
    only = parser.parse_args().only
    sections = [line for problem in PROBLEMS if only in (None, problem.name) for line in compare(problem)]
    version, threads = torch.__version__.split("+")[0], torch.get_num_threads()
    lines = [
        "# hvpspec compared with its peers",
        "",
        f"Made by `python scripts/bench_peers.py`, torch {version} on the CPU, {threads} threads.",
        "",
        " ".join((__doc__ or "").split("\n\n")[2].split()),
        "",
        *sections,
        "–: not offered (hessian-eigenthings and PyHessian have no Frobenius norm; PyHessian's density calls "
        f"torch.eig, which torch {version} no longer has), and not in the total. curvlinops: SciPy's eigsh at its best "
        "ncv, XTrace, Hutchinson for the norm, Lanczos density with boundaries estimated. hessian-eigenthings: "
        "Lanczos with the fewest steps that do, Hutch++, one SLQ run. PyHessian: deflated power iteration, Hutchinson. "
        f"HVPs are means, seconds medians of {ROUNDS} rounds; a package that takes more than "
        f"{_TOO_SLOW_TO_REPEAT / 60:.0f} minutes runs once. Off: relative, compared with "
        "differences of the gradient (extrapolated) along a random vector. hessian-eigenthings takes "
        "the mean over batches, whatever their sizes, and those of the digits differ. curvlinops is off on the mixer, "
        "in the rows of LayerNorm's weights.",
    ]
    print("\n".join(sections if only else lines))
    if only is None:
        (ROOT / "results/peers.md").write_text("\n".join(lines) + "\n")
        for problem in PROBLEMS:
            rounds_of(problem).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
