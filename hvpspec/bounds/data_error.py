"""How much the estimates would differ on other data, from the spread of the products over folds of the batches.

With H = Σ_g w_g H_g / Σ_g w_g, the contribution of fold g is to first order vᵀH_g v (to an eigenvalue with eigenvector
v), tr H_g (to the trace), or ⟨H, H_g⟩ / ‖H‖_F (to the norm). If the folds are a sample from a population, the standard
error of their weighted mean f is √(G/(G − 1) Σ_g (w_g / Σ w)² (f_g − f)²). (Cochran, Sampling Techniques, 3rd ed.,
section 6.3.)

All this follows from Qᵀ H_g Q and wᵀ H_g w for the basis Q and the probes w, collected from products that are made
anyway. For λ_max of the population, sketches of H_g Q say what it has outside of the basis: sums, with random signs, of
the entries whose positions have the same remainder modulo a prime.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hvpspec.bounds.population import MIN_FOLDS, in_random_order, population_bracket
from hvpspec.distributed.shard import added
from hvpspec.kernels.random_vectors import rademacher
from hvpspec.krylov.lanczos import Krylov, Ritz, Step
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.krylov.probes import Pool
from hvpspec.krylov.vectors import pieces, rough_inner
from hvpspec.results.estimate import Bracket

SKETCH_SUMS = 127  # a prime, so that the entries of a row or a column of weights go to different sums
_CACHED_ENTRIES = 1 << 16  # multiplied by their signs at once on a CPU, whose caches hold them
_COPIED_ENTRIES = 1 << 24  # elsewhere: few launches, and little memory next to the vectors
_SKETCH_NUMBER = 1 << 32  # of the seed's random signs: beyond any probe
_COMPARED = 5  # top Ritz vectors, in which folds are compared with their neighbours
_LEAST_ACCURACY = 0.5  # of λ_max of the data, relative to the half-width that their choice adds
_TOP_VECTORS = 64  # Ritz vectors, of the largest values, among which the folds' top eigenvectors are looked for


def signs_of_sketches(rows: int | range, seed: int, device: torch.device) -> Tensor:
    """The signs that `sketched` needs, shape (n, 1). rows: see `rademacher`."""
    return rademacher(rows, [_SKETCH_NUMBER], seed=seed, dtype=torch.int8, device=device)


def sketched(X: Tensor, signs: Tensor) -> Tensor:
    """Random signed sums of the entries of each column: an estimate of inner products, shape (d, b)."""
    sums = torch.zeros(SKETCH_SUMS, X.shape[1], dtype=torch.float64, device=X.device)
    entries = _CACHED_ENTRIES if X.device.type == "cpu" else _COPIED_ENTRIES
    most = max(entries // X.shape[1] // SKETCH_SUMS, 1) * SKETCH_SUMS
    for rows in pieces(len(X), most):  # in pieces: a copy of the whole would be another vector
        signed = X[rows] * signs[rows]
        whole = len(signed) - len(signed) % SKETCH_SUMS
        sums += signed[:whole].reshape(-1, *sums.shape).sum(0, dtype=torch.float64)
        if whole < len(signed):
            sums[: len(signed) - whole] += signed[whole:]
    return sums


class BatchSpread:
    """The small matrices of each fold: on the basis (G, m, m) and on the probes (G, N, N), and sketches (G, d, m)."""

    def __init__(self, A: Symmetric, krylov: Krylov, pool: Pool) -> None:
        self._A, self._krylov, self._pool = A, krylov, pool
        self._folds = A.folds if A.folds > 1 else 0
        self._weights = np.zeros(self._folds)
        self._basis = np.zeros((self._folds, 0, 0))
        self._probes = np.zeros((self._folds, 0, 0))
        self._latest = np.zeros((0, 0, 0))
        self._signs = torch.zeros(0, 1, dtype=torch.int8)
        self._sketches = np.zeros((self._folds + 1, SKETCH_SUMS, 0))  # of H_g Q for each fold g; last, of Q itself
        self._latest_sketches = self._sketches

    def multiply(self, X: Tensor) -> Tensor:
        """H X; for each fold g, [Q, probes, X]ᵀ H_g X and the sketch of H_g X are recorded.

        Of ranks, each reduces its own rows; `by_folds` adds them all at once. They have few whole vectors at a time.
        """
        if not self._folds:
            return self._A @ X
        basis, probes = self._krylov.basis, self._pool.probes
        self._latest_sketches = np.zeros((self._folds + 1, SKETCH_SUMS, X.shape[1]))
        self._latest_sketches[-1] = added(self._sketched(X)).cpu().numpy()
        self._latest = np.zeros((self._folds, basis.m + probes.shape[1] + X.shape[1], X.shape[1]))

        def reduce(product: Tensor) -> tuple[Tensor, Tensor]:
            parts = [basis.rough_inner(product), rough_inner(probes, product), rough_inner(X, product)]
            return torch.cat(parts), self._sketched(product)

        shard, products, start = self._A.shard, [], 0
        for columns in torch.split(X, X.shape[1] if shard is None else shard.together(X.dtype), 1):
            product, found = self._A.by_folds(columns, reduce)
            these = slice(start, start + columns.shape[1])
            for fold, weight, (inside, sketch) in found:
                self._weights[fold] = weight
                self._latest[fold, :, these], self._latest_sketches[fold, :, these] = inside, sketch
            products.append(product)
            start = these.stop
        return products[0] if len(products) == 1 else torch.cat([product.T for product in products]).T

    def scaled(self, factor: float) -> None:
        """The single vector that was multiplied last was in truth `factor` times as long."""
        self._latest[:, :-1] *= factor
        self._latest[:, -1:] *= factor**2
        self._latest_sketches = self._latest_sketches * factor

    def _sketched(self, X: Tensor) -> Tensor:
        """The sums of the rows that this rank has."""
        positions = self._krylov.positions
        if not len(self._signs):
            self._signs = signs_of_sketches(positions, self._krylov.seed, X.device)
        return sketched(X, self._signs).roll(positions.start, 0)

    def extended(self, step: Step) -> None:
        """Adds what `multiply` recorded of a Krylov step. To be called before the pool follows the step."""
        if not self._folds:
            return
        m, width = step.before, step.vectors.shape[1]
        above, across, corner = np.split(self._latest, [m, self._latest.shape[1] - width], axis=1)
        grown = np.zeros((self._folds, m + width, m + width))
        grown[:, :m, :m] = self._basis
        grown[:, :m, m:], grown[:, m:, :m] = above, above.transpose(0, 2, 1)
        grown[:, m:, m:] = (corner + corner.transpose(0, 2, 1)) / 2
        self._basis = grown
        self._sketches = np.concatenate([self._sketches, self._latest_sketches], 2)
        if across.shape[1]:  # the probes w become w − X a
            a = added(rough_inner(step.vectors, self._pool.probes)).double().cpu().numpy()
            cross = across @ a
            self._probes = self._probes - cross - cross.transpose(0, 2, 1) + a.T @ grown[:, m:, m:] @ a

    def probed(self, count: int) -> None:
        """Adds what `multiply` recorded of `count` new probes. To be called before the pool adds them."""
        if not self._folds or self._pool.full(count):
            return
        m = self._krylov.m
        _, across, corner = np.split(self._latest, [m, self._latest.shape[1] - count], axis=1)
        self._probes = np.block([[self._probes, across], [across.transpose(0, 2, 1), corner]])

    def restarted(self, coefficients: np.ndarray) -> None:
        """The basis has become Q S, and the probes were dropped."""
        if not self._folds:
            return
        self._basis = coefficients.T @ self._basis @ coefficients
        self._sketches = self._sketches @ coefficients
        self._probes = self._probes[:, :0, :0]

    # --- of the population -------------------------------------------------------------------------------------

    def population(self, ritz: Ritz, largest: Bracket) -> tuple[Bracket | None, str | None]:
        """An interval for λ_max of the population, or why there is none (neither for an operator without data).

        ritz: all pairs of the basis. largest: λ_max of the data.
        """
        if not self._A.folds:
            return None, None
        folds = self._weights > 0
        count = int(folds.sum())
        if count < MIN_FOLDS:
            few = f"{count} batches say" if count else "1 batch says"
            return None, f"{few} too little about other data; give at least {MIN_FOLDS}, of samples in random order"
        top = ritz.coefficients[:, np.argsort(-ritz.values, kind="stable")[:_TOP_VECTORS]]
        weights, sketches = self._weights[folds], self._sketches[:, :, : len(top)] @ top
        inside = top.T @ self._basis[folds] @ top
        outside = sketches[:-1][folds] - sketches[-1] @ inside
        if not in_random_order(inside[:, :_COMPARED, :_COMPARED], outside, weights):
            return None, (
                "neighbouring batches are more alike than they would be in random order, so that the batches are no "
                "random sample; shuffle the samples before they are put into batches"
            )
        typical = float(self._krylov.of_start.T[0, 0])  # of a random start: the mean eigenvalue, but for chance
        found = population_bracket(inside, outside, weights, largest.upper, largest.confidence, typical)
        if not largest.upper - largest.lower <= _LEAST_ACCURACY * (found.upper - largest.upper):
            return None, "λ_max of the data themselves is not known well enough yet"
        return found, None

    # --- standard errors ----------------------------------------------------------------------------------------

    def eigenvalues(self, coefficients: np.ndarray) -> np.ndarray | None:
        """Of the Ritz values whose vectors have these coefficients in the basis (columns)."""
        if not self._weights.any():
            return None
        parts = np.einsum("ij,gik,kj->gj", coefficients, self._basis, coefficients)
        return np.array([self._standard_error(part, None) for part in parts.T])

    def trace(self) -> float | None:
        if not self._weights.any():
            return None
        samples = np.diagonal(self._probes, axis1=1, axis2=2)
        return self._standard_error(np.trace(self._basis, axis1=1, axis2=2), samples)

    def frobenius_norm(self, norm: float) -> float | None:
        """To first order, from ⟨H, H_g⟩ on the basis and over pairs of probes; norm: ‖H‖_F."""
        if not self._weights.any() or norm == 0:
            return None
        basis = np.einsum("ij,gij->g", self._mean(self._basis), self._basis)
        products = self._mean(self._probes) * self._probes
        count = products.shape[1]
        samples = None
        if count > 1:
            samples = (products.sum(2) - np.diagonal(products, axis1=1, axis2=2)) / (count - 1)
        return self._standard_error(basis / norm, None if samples is None else samples / norm)

    def _mean(self, parts: np.ndarray) -> np.ndarray:
        return np.tensordot(self._weights / self._weights.sum(), parts, 1)

    def _standard_error(self, known: np.ndarray, samples: np.ndarray | None) -> float:
        """Of the weighted mean of each fold's `known` (G,) plus the mean of its `samples` (G, N).

        A mean of samples has a variance of its own, which is subtracted unless nothing would be left.
        """
        share = self._weights / self._weights.sum()
        folds = int((self._weights > 0).sum())
        deviation = known - share @ known
        chance = np.zeros(len(share))
        if samples is not None and samples.shape[1] > 1:
            differing = samples - share @ samples
            deviation = deviation + differing.mean(1)
            chance = differing.var(1, ddof=1) / samples.shape[1]
        if folds < 2:
            return float("nan")
        scale = folds / (folds - 1)
        squared, excess = share**2 @ deviation**2, share**2 @ chance
        return float(np.sqrt(scale * (squared - excess if squared > excess else squared)))
