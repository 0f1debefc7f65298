"""The eigenvalues nearest to a point inside the spectrum, which Lanczos does not resolve: inverse iteration by MINRES.

Each round solves (H − σI) Y ≈ X roughly and adds Y, and the residuals of these solutions, to X. From the space of all
these vectors Z it keeps the k directions in which ‖(H − σI) x‖ is smallest: the smallest singular vectors of
(H − σI) Z, which, unlike Ritz vectors, are never spurious. (Paige and Saunders 1975, doi:10.1137/0712047; refined
extraction: Jia 1997, doi:10.1016/S0024-3795(96)00238-8.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, minres

from hvpspec.krylov.operator_view import ASYMMETRY_LIMIT, Symmetric, refuse_asymmetric
from hvpspec.krylov.vectors import gaussian
from hvpspec.results.eigenpairs import Eigenpairs

_INNER_TOLERANCE = 0.05  # the residual of a solution of unit length, relative to the last round's
_MAX_ROUNDS = 50
_ROUNDOFFS_OF_ASYMMETRY = 1e4  # of ‖H‖: a smaller asymmetry may be rounding
_ROUNDOFFS_AT_LIMIT = 2000  # of ‖H‖: a residual this small is as good as rounding in vectors and products allows
_SMALLEST_INDEPENDENT_PART = 1e-12  # squared length of a column outside the others; less would magnify rounding


class BudgetSpent(Exception):
    """The budget of products is used up."""


class ShiftedProducts:
    """Products of H − σI with float64 vectors, up to a budget; beyond it, BudgetSpent is raised.

    made: products so far. norm: the largest ‖(H − σI) x‖ / ‖x‖ so far. Each product is compared with the first one:
    AsymmetricProducts is raised where uᵀHv and vᵀHu differ by more than rounding, as the solvers rely on symmetry.
    """

    def __init__(self, A: Symmetric, shift: float, budget: float) -> None:
        self.A, self.shift, self.budget, self.made = A, shift, budget, 0
        self.norm = 0.0
        self._first: tuple[np.ndarray, np.ndarray] | None = None  # a unit vector and its product

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """(H − σI) X for X (n,) or (n, b)."""
        columns = X.reshape(len(X), -1)
        if self.made + columns.shape[1] > self.budget:
            raise BudgetSpent
        self.made += columns.shape[1]
        vectors = torch.from_numpy(np.ascontiguousarray(columns)).to(self.A.device, self.A.dtype)
        product = (self.A @ vectors).double().cpu().numpy() - self.shift * columns
        lengths = np.linalg.norm(columns, axis=0)
        if lengths.all():
            self.norm = max(self.norm, float((np.linalg.norm(product, axis=0) / lengths).max()))
            self._compare(columns / lengths, product / lengths)
        return product.reshape(X.shape)

    def _compare(self, units: np.ndarray, products: np.ndarray) -> None:
        if self._first is None:
            self._first = units[:, 0].copy(), products[:, 0].copy()
        first, product = self._first
        # Two vectors that know nothing of each other show about 1/√n of an asymmetry.
        limit = max(ASYMMETRY_LIMIT / self.A.n**0.25, _ROUNDOFFS_OF_ASYMMETRY * self.A.eps)
        refuse_asymmetric(float(np.abs(first @ products - product @ units).max()), self.norm, limit)

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
    zero: np.ndarray | None = None,
    first: tuple[np.ndarray, np.ndarray] | None = None,
    report: Callable[[], None] = lambda: None,
) -> Eigenpairs | None:
    """The k eigenvalues of A nearest to `shift`, nearest first, as well as `budget` products find them.

    first: k orthonormal vectors (n, k) to start from, and (A − shift · I) times these, which then cost no product. If
    they are accurate enough, they are returned. By default the start is random.

    An eigenvalue lies within `error` of each value, for certain; that none lies nearer to the shift is not certain.
    tol: of the residual relative to the distance |θ − shift|; rounding errors are allowed in any case. norm: ‖A‖₂.
    drawn: the number of the first Gaussian of the seed to start from. zero: rows of A that are known to be zero, whose
    eigenvalues of 0 are left out. report: called after each round. None is returned
    where the budget does not allow one round.
    """
    product = ShiftedProducts(A, shift, budget)
    floor = _ROUNDOFFS_AT_LIMIT * A.eps * norm
    AX: np.ndarray | None = None
    found: Eigenpairs | None = None
    reached = norm
    if first is None:
        draws = [gaussian(A.n, drawn + i, seed=seed, dtype=torch.float64, device=torch.device("cpu")) for i in range(k)]
        start = torch.cat(draws, 1).numpy()
        X = np.linalg.qr(start if zero is None else np.where(zero[:, None], 0.0, start))[0]
    else:
        X, AX, found = _extracted(*first, shift, tol, floor)
        reached = max(float(found.residuals.max()), floor)
    rounds = 0
    try:
        while not (found and found.converged) and rounds < _MAX_ROUNDS:
            X = _round(product, X, AX, max(_INNER_TOLERANCE * reached / norm, 4 * A.eps))
            # A X is computed again: combining columns magnifies rounding.
            X, AX, found = _extracted(X, product(X), shift, tol, floor)
            found = replace(found, hvps=product.made, verified=True)
            reached = max(float(found.residuals.max()), floor)
            rounds += 1
            report()
    except BudgetSpent:
        pass
    return found


def _round(product: ShiftedProducts, X: np.ndarray, AX: np.ndarray | None, rtol: float) -> np.ndarray:
    """The next X: the best k directions of the space that X, the solutions for X and their residuals span."""
    k = X.shape[1]
    Y = np.column_stack([_solved(product, x, rtol, 3 * k) for x in X.T])
    lengths = np.linalg.norm(Y, axis=0)
    Y /= lengths
    AY = product(Y)
    # Where H − σI is singular, the residual of a solution is the part of X in its kernel.
    R = X - AY * lengths
    R /= np.linalg.norm(R, axis=0) + np.finfo(float).tiny
    Z, AZ = np.hstack([Y, R]), np.hstack([AY, product(R)])
    if AX is not None:
        Z, AZ = np.hstack([X, Z]), np.hstack([AX, AZ])
    Z, AZ = _orthonormal(Z, AZ)
    small = np.linalg.svd(AZ, full_matrices=False)[2][-k:].T
    return np.linalg.qr(Z @ small)[0]


def _extracted(
    X: np.ndarray, AX: np.ndarray, shift: float, tol: float, floor: float
) -> tuple[np.ndarray, np.ndarray, Eigenpairs]:
    """Eigenpairs from orthonormal X and (A − shift · I) X, nearest to the shift first; X and A X in the same order."""
    distances, turn = np.linalg.eigh((X.T @ AX + AX.T @ X) / 2)
    order = np.argsort(np.abs(distances))
    distances, turn = distances[order], turn[:, order]
    X, AX = X @ turn, AX @ turn
    residuals = np.linalg.norm(AX - X * distances, axis=0)
    done = bool((residuals <= np.maximum(tol * np.abs(distances), floor)).all())
    return X, AX, Eigenpairs(distances + shift, X, residuals, residuals + floor, done, 0)


def _orthonormal(Z: np.ndarray, AZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An orthonormal basis of the columns of Z, without those that nearly depend on the others, and A times it."""
    values, vectors = np.linalg.eigh(Z.T @ Z)
    kept = values > _SMALLEST_INDEPENDENT_PART * values[-1]
    turn = vectors[:, kept] / np.sqrt(values[kept])
    return Z @ turn, AZ @ turn


def _solved(product: ShiftedProducts, x: np.ndarray, rtol: float, reserve: int) -> np.ndarray:
    """(H − σI)⁻¹ x by MINRES, to a residual of rtol ‖H − σI‖ ‖y‖.

    If the budget, less `reserve` products, ends it before, the last iterate is returned.
    """
    latest = x

    def keep(y: np.ndarray) -> None:
        nonlocal latest
        latest = y.copy()

    whole = product.budget
    product.budget = whole - reserve
    try:
        keep(minres(product.operator(), x, rtol=rtol, maxiter=10 * len(x), callback=keep)[0])
    except BudgetSpent:
        if latest is x:
            raise
    finally:
        product.budget = whole
    return latest
