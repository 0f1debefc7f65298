"""hvpspec compared with PyHessian, hessian-eigenthings and curvlinops: the same four figures at the same true accuracy.

    pip install -c scripts/constraints.txt torch -e ".[cli,test,bench]" && pip install --no-deps pyhessian==0.1
    .venv/bin/python scripts/bench_peers.py      about ten minutes; writes results/peers.md

On the digits checkpoint (3,466 parameters, float64, three batches), whose dense spectrum is known: the ten eigenpairs
of largest magnitude to a relative residual of 1e-3, trace and Frobenius norm to ±1 % (1.96 times the rms error), and
the density to a Wasserstein distance of 1 % of the spectrum's width. Each package is given, for each figure, its best
method and the smallest budget at which that is so (found beforehand on the dense matrix, over twenty seeds); its own
stopping rules are not asked. hvpspec is not told: it stops by itself. Then all run on the network, products counted, in
turns.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import curvlinops
import hessian_eigenthings
import numpy as np
import pyhessian
import torch
from bench_estimators import accurate, digits, largest
from curvlinops.papyan2020traces.spectrum import fast_lanczos, lanczos_approximate_spectrum_from_iter
from pyhessian.utils import group_product
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from usage import only_help

import hvpspec
from hvpspec import demo

ROOT = Path(__file__).resolve().parent.parent
SEEDS, ROUNDS, K = 20, 3, 10
H, VALUES = digits()
TOP, TRACE, NORM, WIDTH = largest(VALUES, K), VALUES.sum(), np.linalg.norm(VALUES), np.ptp(VALUES)
DENSE = torch.from_numpy(H)
FIGURES = ("eigenpairs", "trace", "norm", "density")


# --- what is accurate enough -------------------------------------------------------------------------------------


def distance(x: np.ndarray, cdf: np.ndarray) -> float:
    """The Wasserstein distance between the true spectrum and a distribution function given at rising points x."""
    grid = np.unique(np.r_[VALUES, x])
    found = np.r_[0.0, cdf][np.searchsorted(x, grid, side="right")]
    true = np.searchsorted(np.sort(VALUES), grid, side="right") / len(VALUES)
    return float(np.abs(found - true)[:-1] @ np.diff(grid))


def smallest(budgets: Any, off: Callable[[int, int], float], limit: float) -> int:
    """The smallest budget at which 1.96 times the rms of off(budget, seed) is within the limit."""
    for budget in budgets:
        errors = [off(budget, seed) for seed in range(SEEDS)]
        if 1.96 * np.sqrt(np.mean(np.square(errors))) <= limit:
            return int(budget)
    raise RuntimeError("no budget will do")


def hutchinson_count(squared: bool) -> int:
    """Plain samples needed: their spread is known from 20,000 of them."""
    probes = torch.randint(0, 2, (len(H), 20_000), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    samples = [
        (block * product).sum(0) if not squared else (product * product).sum(0)
        for block in probes.split(1000, 1)
        for product in [DENSE @ block]
    ]
    pooled = torch.cat(samples)
    relative = float(pooled.std() / pooled.mean()) / (2 if squared else 1)  # the norm is the root
    return int(np.ceil((1.96 * relative / 0.01) ** 2))


# --- the packages ------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    return hvpspec.load_checkpoint(demo.CHECKPOINT, demo.build()).double()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x.double(), y) for x, y in demo.batches()]


def run_hvpspec(budgets: dict[str, int], seed: int) -> dict[str, int]:
    operator = hvpspec.HessianOperator(network(), "cross_entropy", batches())
    found = hvpspec.spectrum(operator, K, seed=seed)
    assert accurate(H, found.eigenpairs.values, found.eigenpairs.vectors, 1e-3)
    return {"all": operator.hvps}


class Curvlinops:
    name = "curvlinops 3.0.1"

    def budgets(self) -> dict[str, int]:
        def trace(budget: int, seed: int) -> float:
            torch.manual_seed(seed)
            return float(curvlinops.xtrace(DENSE, budget)) / TRACE - 1

        def density(budget: int, seed: int) -> float:
            torch.manual_seed(seed)
            return self._distance(fast_lanczos(DENSE, budget), (VALUES.min(), VALUES.max()))

        return {
            "trace": smallest(range(60, 200, 4), trace, 0.01),
            "norm": hutchinson_count(squared=True),
            "density": smallest(range(10, 200, 2), density, 1.96 * 0.01),
        }

    def _distance(self, iteration: Any, bounds: tuple[float, float]) -> float:
        grid, density = lanczos_approximate_spectrum_from_iter(iteration, bounds, 4096, 3.0, 0.05)
        steps = np.cumsum(density.numpy()) * float(grid[1] - grid[0])
        return distance(grid.numpy(), steps / steps[-1]) / WIDTH

    def run(self, budgets: dict[str, int], seed: int) -> dict[str, int]:
        torch.manual_seed(seed)
        model, count = network(), Count()
        loss = nn.CrossEntropyLoss()
        operator = curvlinops.HessianLinearOperator(
            model, loss, list(model.parameters()), batches(), check_deterministic=False
        )
        plain = operator._matmat
        operator._matmat = lambda X: count.of(plain, X, X[0].shape[-1])  # type: ignore[method-assign]
        scipy_operator = operator.to_scipy()
        values, vectors = best_scipy(lambda x: scipy_operator @ x, seed)
        assert accurate(H, values, vectors, 1e-3)
        count.close("eigenpairs")
        curvlinops.xtrace(operator, budgets["trace"])
        count.close("trace")
        for start in range(0, budgets["norm"], 500):  # in pieces, which memory asks for
            curvlinops.hutchinson_squared_fro(operator, min(500, budgets["norm"] - start))
        count.close("norm")
        curvlinops.lanczos_approximate_spectrum(operator, budgets["density"])
        count.close("density")
        return count.figures


class Eigenthings:
    name = "hessian-eigenthings 1.0.0a5"

    def budgets(self) -> dict[str, int]:
        operator = hessian_eigenthings.LambdaOperator(lambda v: DENSE @ v, len(H), dtype=torch.float64)

        def pairs(budget: int, seed: int) -> float:
            found = hessian_eigenthings.lanczos(operator, k=K, max_iter=budget, tol=0.0, seed=seed)
            values, vectors = self._pairs(found)
            residuals = np.linalg.norm(H @ vectors - vectors * values, axis=0)
            return float(np.max(residuals / np.abs(values)))

        def trace(budget: int, seed: int) -> float:
            return hessian_eigenthings.hutch_plus_plus(operator, num_matvecs=budget, seed=seed).estimate / TRACE - 1

        def density(budget: int, seed: int) -> float:
            found = hessian_eigenthings.spectral_density(operator, num_runs=1, lanczos_steps=budget, seed=seed)
            return self._distance(found)

        return {
            "eigenpairs": next(m for m in range(K, 200) if max(pairs(m, seed) for seed in range(5)) <= 1e-3),
            "trace": smallest(range(60, 300, 6), trace, 0.01),
            "density": smallest(range(4, 200, 2), density, 1.96 * 0.01),
        }

    def _pairs(self, found: Any) -> tuple[np.ndarray, np.ndarray]:
        vectors = found.eigenvectors.numpy()
        vectors = vectors.T if vectors.shape[0] == K else vectors
        return found.eigenvalues.numpy(), vectors / np.linalg.norm(vectors, axis=0)

    def _distance(self, found: Any) -> float:
        nodes, weights = found.raw_eigenvalues[0].numpy(), found.raw_weights[0].numpy()
        order = np.argsort(nodes)
        return distance(nodes[order], np.cumsum(weights[order])) / WIDTH

    def run(self, budgets: dict[str, int], seed: int) -> dict[str, int]:
        count = Count()
        operator = hessian_eigenthings.HessianOperator(
            network(), batches(), hessian_eigenthings.supervised_loss(nn.CrossEntropyLoss())
        )
        plain = operator.matvec
        operator.matvec = lambda v: count.of(plain, v, 1)  # type: ignore[method-assign]
        hessian_eigenthings.lanczos(operator, k=K, max_iter=budgets["eigenpairs"], tol=0.0, seed=seed)
        count.close("eigenpairs")
        hessian_eigenthings.hutch_plus_plus(operator, num_matvecs=budgets["trace"], seed=seed)
        count.close("trace")
        hessian_eigenthings.spectral_density(operator, num_runs=1, lanczos_steps=budgets["density"], seed=seed)
        count.close("density")
        return count.figures


class PyHessian:
    name = "PyHessian 0.1"

    def budgets(self) -> dict[str, int]:
        # Its eigenvalues stop when two in a row agree to `tol`: the loosest at which the residuals are small.
        for exponent in np.arange(3, 14, 0.5):
            torch.manual_seed(0)
            operator = self._operator(Count())
            values, vectors = operator.eigenvalues(maxIter=100_000, tol=10.0**-exponent, top_n=K)
            columns = np.stack([np.concatenate([p.numpy().ravel() for p in vector]) for vector in vectors], 1)
            if accurate(H, np.array(values), columns, 1e-3):
                return {"eigenpairs": float(exponent), "trace": hutchinson_count(squared=False)}  # type: ignore[dict-item]
        raise RuntimeError("no tolerance will do")

    def _operator(self, count: Count) -> Any:
        operator = pyhessian.hessian(network(), nn.CrossEntropyLoss(), dataloader=batches(), cuda=False)
        plain = operator.dataloader_hv_product
        operator.dataloader_hv_product = lambda v: count.of(plain, v, 1)
        return operator

    def run(self, budgets: dict[str, int], seed: int) -> dict[str, int]:
        torch.manual_seed(seed)
        count = Count()
        operator = self._operator(count)
        operator.eigenvalues(maxIter=100_000, tol=10.0 ** -budgets["eigenpairs"], top_n=K)
        count.close("eigenpairs")
        operator.trace(maxIter=budgets["trace"], tol=0.0)
        count.close("trace")
        try:
            operator.density(iter=2, n_v=1)
        except (RuntimeError, AttributeError):  # torch.eig, which it calls, is gone
            count.close("density fails")
        return {name: made for name, made in count.figures.items() if name in FIGURES}


class Count:
    """Products made, figure by figure."""

    def __init__(self) -> None:
        self.figures: dict[str, int] = {}
        self._made = 0

    def of(self, product: Callable[[Any], Any], argument: Any, columns: int) -> Any:
        self._made += columns
        return product(argument)

    def close(self, figure: str) -> None:
        self.figures[figure], self._made = self._made, 0


def best_scipy(product: Callable[[np.ndarray], np.ndarray], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """SciPy's eigsh at the ncv that serves it best on this spectrum (see results/estimators.md)."""
    operator = LinearOperator(H.shape, matvec=product, dtype=float)
    return eigsh(operator, K, which="LM", ncv=18, tol=1e-3, v0=np.random.default_rng(seed).standard_normal(len(H)))


def known_budgets(peers: list[Any]) -> dict[str, dict[str, Any]]:
    """The smallest budgets that do; looked for once, which takes some minutes, and kept in .cache."""
    path = ROOT / ".cache/peers.json"
    if not path.exists():
        path.write_text(json.dumps({peer.name: peer.budgets() for peer in peers}))
    return json.loads(path.read_text())


def main() -> None:
    warnings.filterwarnings("ignore")
    assert abs(float(group_product([DENSE], [DENSE])) - NORM**2) < 1e-8
    peers = [Curvlinops(), Eigenthings(), PyHessian()]
    budgets = known_budgets(peers)
    print(budgets, flush=True)
    version, threads = torch.__version__.split("+")[0], torch.get_num_threads()
    runs: dict[str, Callable[[dict[str, int], int], dict[str, int]]] = {"hvpspec": run_hvpspec}
    runs |= {peer.name: peer.run for peer in peers}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    made: dict[str, list[dict[str, int]]] = {name: [] for name in runs}
    for seed in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            made[name].append(run(budgets.get(name, {}), seed))
            seconds[name].append(time.perf_counter() - start)
            print(name, made[name][-1], f"{seconds[name][-1]:.1f} s", flush=True)
    rows = []
    for name in runs:
        means = {figure: np.mean([one[figure] for one in made[name]]) for figure in made[name][0]}
        total = sum(means.values())
        cells = ["in one pass"] * 4 if "all" in means else [f"{means[f]:,.0f}" if f in means else "–" for f in FIGURES]
        rows.append(f"| {name} | {' | '.join(cells)} | {total:,.0f} | {statistics.median(seconds[name]):.1f} |")
    text = " ".join((__doc__ or "").split("\n\n")[2].split())
    lines = [
        "# hvpspec compared with its peers",
        "",
        f"Made by `python scripts/bench_peers.py`, torch {version} on the CPU, {threads} threads.",
        "",
        text,
        "",
        "| package | eigenpairs | trace | norm | density | HVPs in all | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        "–: not offered (hessian-eigenthings and PyHessian have no Frobenius norm; PyHessian's density calls "
        f"torch.eig, which torch {version} no longer has), and not in the total. curvlinops: SciPy's eigsh at its best "
        "ncv, XTrace, Hutchinson for the norm, Lanczos density with boundaries estimated. hessian-eigenthings: "
        "Lanczos with the fewest steps that do, Hutch++, one SLQ run. PyHessian: deflated power iteration, Hutchinson. "
        f"HVPs are means, seconds medians of {ROUNDS} rounds.",
    ]
    print("\n".join(lines))
    (ROOT / "results/peers.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    only_help(__doc__)
    main()
