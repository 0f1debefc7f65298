"""The eigenvalues nearest to a point inside the spectrum, where Lanczos sees nothing: inverse iteration with MINRES.

Each round solves (H − σI) Y ≈ X roughly, joins Y and what that leaves over to X, and keeps of that space Z the k
directions in which ‖(H − σI) x‖ is least: the smallest singular vectors of (H − σI) Z, which unlike Ritz vectors are
never spurious. (Paige and Saunders
1975, doi:10.1137/0712047; refined extraction: Jia 1997, doi:10.1016/S0024-3795(96)00238-8.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, minres

from hvpspec.krylov.operator_view import Symmetric
from hvpspec.krylov.vectors import gaussian
from hvpspec.results.eigenpairs import Eigenpairs

_INNER = 0.05  # of the last round's residual: how small that of a solution of unit length shall be
_ROUNDS = 50
_HELD = 1e-12  # squared length that others leave of a column: less would magnify rounding


class Spent(Exception):
    """The budget of products is used up."""


class Counted:
    """Products of H − σI with float64 vectors, up to a budget; then Spent is raised."""

    def __init__(self, A: Symmetric, shift: float, budget: float) -> None:
        self.A, self.shift, self.budget, self.made = A, shift, budget, 0
        self.norm = 0.0  # of H − σI, as far as products have shown it

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """(H − σI) X for X (n,) or (n, b)."""
        block = X.reshape(len(X), -1)
        if self.made + block.shape[1] > self.budget:
            raise Spent
        self.made += block.shape[1]
        vectors = torch.from_numpy(np.ascontiguousarray(block)).to(self.A.device, self.A.dtype)
        product = (self.A @ vectors).double().cpu().numpy() - self.shift * block
        lengths = np.linalg.norm(block, axis=0)
        if lengths.all():
            self.norm = max(self.norm, float((np.linalg.norm(product, axis=0) / lengths).max()))
        return product.reshape(X.shape)

    def operator(self) -> LinearOperator:
        n = self.A.n
        return LinearOperator((n, n), matvec=lambda x: self(x.reshape(-1)), dtype=np.float64)


def nearest(
    A: Symmetric,
    k: int,
    shift: float,
    *,
    tol: float,
    budget: float,
    norm: float,
    seed: int,
    drawn: int,
    first: tuple[np.ndarray, np.ndarray] | None = None,
    report: Callable[[int], None] = lambda made: None,
) -> Eigenpairs | None:
    """The k eigenvalues of A nearest to `shift`, as far as `budget` products find them, nearest first.

    first: k orthonormal vectors (n, k) to start from, and (A − shift · I) times these, which nothing is spent on; they
    are what comes back where they are good enough. By default random ones.

    An eigenvalue lies within `error`, the residual ‖A v − θ v‖, of each value: that is certain; that none lies nearer
    is not. tol: residual beside the distance |θ − shift|, or rounding errors (norm: ‖A‖₂) where that is 0. drawn: the
    first of the seed's Gaussians to start from. None where the budget does not allow one round.
    """
    product = Counted(A, shift, budget)
    floor = 2000 * A.eps * norm  # what rounding leaves, in vectors and products
    AX: np.ndarray | None = None
    found: Eigenpairs | None = None
    reached = norm
    if first is None:
        draws = [gaussian(A.n, drawn + i, seed=seed, dtype=torch.float64, device=torch.device("cpu")) for i in range(k)]
        X = np.linalg.qr(torch.cat(draws, 1).numpy())[0]
    else:
        X, AX, found = _extracted(*first, shift, tol, floor)
        reached = max(float(found.residuals.max()), floor)
        if found.converged:
            return found
    try:
        for _ in range(_ROUNDS):
            aim = max(_INNER * reached / norm, 4 * A.eps)
            Y = np.column_stack([_solved(product, x, aim, 3 * X.shape[1]) for x in X.T])
            lengths = np.linalg.norm(Y, axis=0)
            Y /= lengths
            AY = product(Y)
            # Where H − σI is singular, what a solve leaves over is the kernel's part of X.
            R = X - AY * lengths
            R /= np.linalg.norm(R, axis=0) + np.finfo(float).tiny
            Z, AZ = np.hstack([Y, R]), np.hstack([AY, product(R)])
            if AX is not None:
                Z, AZ = np.hstack([X, Z]), np.hstack([AX, AZ])
            Z, AZ = _orthonormal(Z, AZ)
            small = np.linalg.svd(AZ, full_matrices=False)[2][-k:].T
            X = np.linalg.qr(Z @ small)[0]
            # A X anew: combining magnifies rounding
            X, AX, found = _extracted(X, product(X), shift, tol, floor)
            found = replace(found, hvps=product.made, verified=True)
            reached = max(float(found.residuals.max()), floor)
            report(product.made)
            if found.converged:
                break
    except Spent:
        pass
    return found


def _extracted(
    X: np.ndarray, AX: np.ndarray, shift: float, tol: float, floor: float
) -> tuple[np.ndarray, np.ndarray, Eigenpairs]:
    """Eigenpairs from the orthonormal vectors X and (A − shift · I) X, nearest to the shift first; X and A X in that
    order."""
    distances, turn = np.linalg.eigh((X.T @ AX + AX.T @ X) / 2)
    order = np.argsort(np.abs(distances))
    distances, turn = distances[order], turn[:, order]
    X, AX = X @ turn, AX @ turn
    residuals = np.linalg.norm(AX - X * distances, axis=0)
    done = bool((residuals <= np.maximum(tol * np.abs(distances), floor)).all())
    return X, AX, Eigenpairs(distances + shift, X, residuals, residuals + floor, done, 0)


def _orthonormal(Z: np.ndarray, AZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An orthonormal basis of the columns of Z, and A times it, without those that others nearly hold."""
    values, vectors = np.linalg.eigh(Z.T @ Z)
    turn = vectors[:, values > _HELD * values[-1]] / np.sqrt(values[values > _HELD * values[-1]])
    return Z @ turn, AZ @ turn


def _solved(product: Counted, x: np.ndarray, rtol: float, reserve: int) -> np.ndarray:
    """(H − σI)⁻¹ x to a residual of rtol ‖H − σI‖ ‖y‖, as SciPy's MINRES has it.

    What there is by then, where the budget (but for `reserve` products) ends it.
    """
    latest = x

    def keep(y: np.ndarray) -> None:
        nonlocal latest
        latest = y.copy()

    whole = product.budget
    product.budget = whole - reserve
    try:
        keep(minres(product.operator(), x, rtol=rtol, maxiter=10 * len(x), callback=keep)[0])
    except Spent:
        if latest is x:
            raise
    finally:
        product.budget = whole
    return latest
