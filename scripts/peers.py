"""The packages that scripts/bench_peers.py compares with hvpspec: for each figure their best method, and what it needs.

A package has `budgets(truth)`, the smallest number of products at which each figure is accurate enough, found on the
dense matrix, and `run(truth, budgets, seed)`, which makes all of its figures on the network and counts the products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import curvlinops
import hessian_eigenthings
import numpy as np
import pyhessian
import torch
from bench_estimators import accurate, largest
from curvlinops.papyan2020traces.spectrum import fast_lanczos, lanczos_approximate_spectrum_from_iter
from peer_problems import PeerProblem
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

import hvpspec

SEEDS, K = 20, 10
FIGURES = ("eigenpairs", "trace", "norm", "density")
RESIDUAL, SHARE = 1e-3, 0.01  # relative, of eigenpairs; half-width of the other figures, at 1.96 times the rms error

Budgets = dict[str, Any]
_NCV = (14, 18, 24, 32, 48, 64, 96)  # sizes of the basis that SciPy's eigsh is given
_STEP = 1e-4  # of the differences that products are compared with, which are extrapolated


class Truth:
    """What is known of a problem from its dense Hessian."""

    def __init__(self, problem: PeerProblem) -> None:
        self.problem, self.values = problem, problem.values
        self.trace, self.norm, self.width = self.values.sum(), np.linalg.norm(self.values), np.ptp(self.values)
        self.top = largest(self.values, K)

    @cached_property
    def dense(self) -> Tensor:
        return torch.from_numpy(self.problem.dense)

    def accurate(self, values: np.ndarray, vectors: np.ndarray) -> bool:
        """Whether these are the eigenpairs of largest magnitude."""
        order = np.argsort(-np.abs(values), kind="stable")
        return accurate(self.problem.dense, values, vectors, RESIDUAL) and np.allclose(
            values[order], self.top, rtol=RESIDUAL
        )

    def distance(self, x: np.ndarray, cdf: np.ndarray) -> float:
        """The Wasserstein distance to a distribution function at rising points x, in widths of the spectrum."""
        grid = np.unique(np.r_[self.values, x])
        found = np.r_[0.0, cdf][np.searchsorted(x, grid, side="right")]
        true = np.searchsorted(np.sort(self.values), grid, side="right") / len(self.values)
        return float(np.abs(found - true)[:-1] @ np.diff(grid)) / self.width

    def hutchinson_count(self, squared: bool) -> int:
        """Plain samples needed: their spread is known from 20,000 of them."""
        generator = torch.Generator().manual_seed(0)
        probes = torch.randint(0, 2, (len(self.values), 20_000), generator=generator).double() * 2 - 1
        samples = [
            (block * product).sum(0) if not squared else (product * product).sum(0)
            for block in probes.split(1000, 1)
            for product in [self.dense @ block]
        ]
        pooled = torch.cat(samples)
        relative = float(pooled.std() / pooled.mean()) / (2 if squared else 1)  # the norm is the root
        return int(np.ceil((1.96 * relative / SHARE) ** 2))


def smallest(budgets: Iterable[int], off: Callable[[int, int], float], limit: float) -> int:
    """The smallest budget at which 1.96 times the rms of off(budget, seed) is within the limit."""
    for budget in budgets:
        errors = [off(budget, seed) for seed in range(SEEDS)]
        if 1.96 * np.sqrt(np.mean(np.square(errors))) <= limit:
            return int(budget)
    raise RuntimeError("no budget will do")


class Count:
    """Products made, figure by figure."""

    def __init__(self) -> None:
        self.figures: dict[str, int] = {}
        self._made = 0

    def of(self, product: Callable[[Any], Any], argument: Any, columns: int) -> Any:
        self._made += columns
        return product(argument)

    def restart(self) -> None:
        """Forgets the products of the figure that was begun."""
        self._made = 0

    def close(self, figure: str) -> None:
        self.figures[figure], self._made = self._made, 0


class Ours:
    """hvpspec is told nothing: it stops by itself."""

    name = "hvpspec"

    def budgets(self, truth: Truth) -> Budgets:
        return {}

    def run(self, truth: Truth, budgets: Budgets, seed: int) -> dict[str, int]:
        problem = truth.problem
        operator = hvpspec.HessianOperator(problem.network(), problem.loss, problem.batches())
        found = hvpspec.spectrum(operator, K, seed=seed)
        assert truth.accurate(found.eigenpairs.values, found.eigenpairs.vectors)
        return {"all": operator.hvps}


class Curvlinops:
    name = "curvlinops 3.0.1"

    def budgets(self, truth: Truth) -> Budgets:
        def trace(budget: int, seed: int) -> float:
            torch.manual_seed(seed)
            return float(curvlinops.xtrace(truth.dense, budget)) / truth.trace - 1

        def density(budget: int, seed: int) -> float:
            torch.manual_seed(seed)
            return self._distance(truth, fast_lanczos(truth.dense, budget), (truth.values.min(), truth.values.max()))

        return {
            "ncv": best_ncv(truth),
            "trace": smallest(range(60, 1000, 10), trace, SHARE),
            "norm": truth.hutchinson_count(squared=True),
            "density": smallest(range(10, 400, 4), density, 1.96 * SHARE),
        }

    def _distance(self, truth: Truth, iteration: Any, bounds: tuple[float, float]) -> float:
        grid, density = lanczos_approximate_spectrum_from_iter(iteration, bounds, 4096, 3.0, 0.05)
        steps = np.cumsum(density.numpy()) * float(grid[1] - grid[0])
        return truth.distance(grid.numpy(), steps / steps[-1])

    def run(self, truth: Truth, budgets: Budgets, seed: int) -> dict[str, int]:
        torch.manual_seed(seed)
        problem, count = truth.problem, Count()
        model = problem.network()
        operator = curvlinops.HessianLinearOperator(
            model, problem.criterion, list(model.parameters()), problem.batches(), check_deterministic=False
        )
        plain = operator._matmat
        operator._matmat = lambda X: count.of(plain, X, X[0].shape[-1])  # type: ignore[method-assign]
        scipy_operator = operator.to_scipy()
        # Rounding on the network may ask for a few more vectors.
        for ncv in (number for number in _NCV if number >= budgets["ncv"]):
            values, vectors = by_scipy(len(truth.values), lambda x: scipy_operator @ x, ncv, seed)
            if truth.accurate(values, vectors):
                break
            count.restart()
        count.close("eigenpairs")  # none where no number will do
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

    def budgets(self, truth: Truth) -> Budgets:
        operator = hessian_eigenthings.LambdaOperator(lambda v: truth.dense @ v, len(truth.values), dtype=torch.float64)

        def enough(budget: int, seed: int) -> bool:
            return truth.accurate(*self._pairs(self._lanczos(operator, budget, seed)))

        def trace(budget: int, seed: int) -> float:
            found = hessian_eigenthings.hutch_plus_plus(operator, num_matvecs=budget, seed=seed)
            return found.estimate / truth.trace - 1

        def density(budget: int, seed: int) -> float:
            found = hessian_eigenthings.spectral_density(operator, num_runs=1, lanczos_steps=budget, seed=seed)
            nodes, weights = found.raw_eigenvalues[0].numpy(), found.raw_weights[0].numpy()
            order = np.argsort(nodes)
            return truth.distance(nodes[order], np.cumsum(weights[order]))

        return {
            "eigenpairs": next(m for m in range(K, 400) if all(enough(m, seed) for seed in range(5))),
            "trace": smallest(range(60, 1000, 12), trace, SHARE),
            "density": smallest(range(4, 200, 2), density, 1.96 * SHARE),
        }

    def _lanczos(self, operator: Any, budget: int, seed: int) -> Any:
        return hessian_eigenthings.lanczos(operator, k=K, max_iter=budget, tol=0.0, seed=seed)

    def _pairs(self, found: Any) -> tuple[np.ndarray, np.ndarray]:
        vectors = found.eigenvectors.numpy()
        vectors = vectors.T if vectors.shape[0] == K else vectors
        return found.eigenvalues.numpy(), vectors / np.linalg.norm(vectors, axis=0)

    def run(self, truth: Truth, budgets: Budgets, seed: int) -> dict[str, int]:
        problem, count = truth.problem, Count()
        operator = hessian_eigenthings.HessianOperator(
            problem.network(), problem.batches(), hessian_eigenthings.supervised_loss(problem.criterion)
        )
        plain = operator.matvec
        operator.matvec = lambda v: count.of(plain, v, 1)  # type: ignore[method-assign]
        self._lanczos(operator, budgets["eigenpairs"], seed)
        count.close("eigenpairs")
        hessian_eigenthings.hutch_plus_plus(operator, num_matvecs=budgets["trace"], seed=seed)
        count.close("trace")
        hessian_eigenthings.spectral_density(operator, num_runs=1, lanczos_steps=budgets["density"], seed=seed)
        count.close("density")
        return count.figures


class PyHessian:
    name = "PyHessian 0.1"

    def budgets(self, truth: Truth) -> Budgets:
        # Its eigenvalues stop when two in a row agree to `tol`: the loosest at which the residuals are small.
        trace = truth.hutchinson_count(squared=False)
        for exponent in np.arange(3, 14, 0.5):
            torch.manual_seed(0)
            operator = self._operator(truth, Count())
            values, vectors = operator.eigenvalues(maxIter=100_000, tol=10.0**-exponent, top_n=K)
            columns = np.stack([np.concatenate([p.numpy().ravel() for p in vector]) for vector in vectors], 1)
            if truth.accurate(np.array(values), columns):
                return {"eigenpairs": float(exponent), "trace": trace}
        raise RuntimeError("no tolerance will do")

    def _operator(self, truth: Truth, count: Count) -> Any:
        problem = truth.problem
        operator = pyhessian.hessian(problem.network(), problem.criterion, dataloader=problem.batches(), cuda=False)
        plain = operator.dataloader_hv_product
        operator.dataloader_hv_product = lambda v: count.of(plain, v, 1)
        return operator

    def run(self, truth: Truth, budgets: Budgets, seed: int) -> dict[str, int]:
        torch.manual_seed(seed)
        count = Count()
        operator = self._operator(truth, count)
        operator.eigenvalues(maxIter=100_000, tol=10.0 ** -budgets["eigenpairs"], top_n=K)
        count.close("eigenpairs")
        operator.trace(maxIter=budgets["trace"], tol=0.0)
        count.close("trace")
        try:
            operator.density(iter=2, n_v=1)
        except (RuntimeError, AttributeError):  # torch.eig, which it calls, is gone
            count.close("density fails")
        return {name: made for name, made in count.figures.items() if name in FIGURES}


def by_scipy(n: int, product: Callable[[np.ndarray], np.ndarray], ncv: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    start = np.random.default_rng(seed).standard_normal(n)
    return eigsh(LinearOperator((n, n), matvec=product, dtype=float), K, which="LM", ncv=ncv, tol=RESIDUAL, v0=start)


def best_ncv(truth: Truth) -> int:
    """The size of the basis with which SciPy's eigsh makes the fewest products and is accurate from five starts."""
    H, made = truth.problem.dense, {}
    for ncv in _NCV:
        count = Count()
        try:
            found = [
                by_scipy(len(H), lambda x, count=count: count.of(H.dot, x, 1), ncv, seed)  # type: ignore[misc]
                for seed in range(5)
            ]
        except ArpackNoConvergence:
            continue
        if all(truth.accurate(*pairs) for pairs in found):
            count.close("eigenpairs")
            made[ncv] = count.figures["eigenpairs"]
    return min(made, key=made.__getitem__)


def product_errors(problem: PeerProblem) -> dict[str, float]:
    """The relative difference between each package's product with a random vector and differences of the gradient."""
    model, batches = problem.network(), problem.batches()
    parameters = list(model.parameters())
    v = torch.randn(sum(p.numel() for p in parameters), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pieces = [piece.view_as(p) for piece, p in zip(v.split([p.numel() for p in parameters]), parameters, strict=True)]
    curvlinops_operator = curvlinops.HessianLinearOperator(
        model, problem.criterion, parameters, batches, check_deterministic=False
    )
    eigenthings_operator = hessian_eigenthings.HessianOperator(
        model, batches, hessian_eigenthings.supervised_loss(problem.criterion)
    )
    pyhessian_operator = pyhessian.hessian(model, problem.criterion, dataloader=batches, cuda=False)
    found = {
        Ours.name: hvpspec.HessianOperator(model, problem.loss, batches) @ v,
        Curvlinops.name: torch.from_numpy(curvlinops_operator.to_scipy() @ v.numpy()),
        Eigenthings.name: eigenthings_operator.matvec(v),
        PyHessian.name: torch.cat([p.reshape(-1) for p in pyhessian_operator.dataloader_hv_product(pieces)[1]]),
    }
    coarse, fine = (_differences(problem, model, pieces, step) for step in (_STEP, _STEP / 2))
    exact = (4 * fine - coarse) / 3
    return {name: float((product - exact).norm() / exact.norm()) for name, product in found.items()}


def _differences(problem: PeerProblem, model: torch.nn.Module, pieces: list[Tensor], step: float) -> Tensor:
    """(∇L(p + h v) − ∇L(p − h v)) / 2h"""
    parameters = list(model.parameters())
    before = [p.detach().clone() for p in parameters]
    sides = []
    for h in (step, -step):
        for p, value, piece in zip(parameters, before, pieces, strict=True):
            p.data = value + h * piece
        samples = sum(len(x) for x, _ in problem.batches())
        loss = sum(len(x) / samples * problem.criterion(model(x), y) for x, y in problem.batches())
        sides.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)]))
    for p, value in zip(parameters, before, strict=True):
        p.data = value
    return (sides[0] - sides[1]) / (2 * step)
