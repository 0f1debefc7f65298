"""The eigenvalues nearest to a point inside the spectrum, which Lanczos does not resolve: inverse iteration by MINRES.

Each round solves (H − σI) Y ≈ X roughly and adds Y, and the residuals of these solutions, to X. From the space of all
these vectors Z it keeps the k directions in which ‖(H − σI) x‖ is smallest: the smallest singular vectors of
(H − σI) Z, which, unlike Ritz vectors, are never spurious. The next k stay in the space for another round, at no
product, which saves up to half of the rounds where k > 2. (Paige and Saunders 1975, doi:10.1137/0712047; refined
extraction: Jia 1997, doi:10.1016/S0024-3795(96)00238-8.)

Vectors are in float64, as MINRES needs it, and stay on the operator's device until the eigenvectors are returned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hvpspec.distributed.shard import rows_of
from hvpspec.kernels.random_vectors import gaussian
from hvpspec.krylov.lanczos import outside_of
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.krylov.solvers.iterate import following, length
from hvpspec.krylov.solvers.minimal_residuals import minres
from hvpspec.krylov.solvers.shifted import BudgetSpent, ShiftedProducts
from hvpspec.krylov.solvers.together import Procedure, Request, together
from hvpspec.krylov.vectors import column_inner, inner
from hvpspec.results.eigenpairs import Eigenpairs

_INNER_TOLERANCE = 0.05  # the residual of a solution of unit length, relative to the last round's
_MAX_ROUNDS = 50
_MAX_ITERATIONS = 10  # of MINRES, in units of n
_ROUNDOFFS_AT_LIMIT = 2000  # of ‖H‖: a residual this small is as good as rounding in vectors and products allows
_SMALLEST_INDEPENDENT_PART = 1e-6  # of a unit column, outside those before it; less would magnify rounding …
_ROUNDOFFS_OF_INDEPENDENT_PART = 1e4  # … which is that of the products

_Known = tuple[Tensor, Tensor]
"""Vectors (n, ≤ k) and their products."""


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
    zero: Tensor | None = None,
    first: tuple[Tensor, Tensor] | None = None,
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
    known: list[_Known] = []
    found: Eigenpairs | None = None
    reached = norm
    if first is None:
        rows, dtype = rows_of(A.n), torch.float64
        draws = [gaussian(rows, drawn + i, seed=seed, dtype=dtype, device=A.device) for i in range(k)]
        X = orthonormal(outside_of(zero, torch.cat(draws, 1)))[0]
    else:
        X, AX, found = _extracted(*first, shift, tol, floor)
        reached = max(float(found.residuals.max()), floor)
        known = [(X, AX)]
    rounds = 0
    try:
        while not (found and found.converged) and rounds < _MAX_ROUNDS:
            X, others = _round(product, X, known, max(_INNER_TOLERANCE * reached / norm, 4 * A.eps))
            # A X is computed again: combining columns magnifies rounding.
            X, AX, found = _extracted(X, product(X), shift, tol, floor)
            known = [(X, AX), others]
            found = replace(found, hvps=product.made, verified=True)
            reached = max(float(found.residuals.max()), floor)
            rounds += 1
            report()
    except BudgetSpent:
        pass
    return None if found is None else replace(found, vectors=known[0][0].cpu().numpy(), shard=A.shard)


def orthonormal(V: Tensor, smallest: float = 0.0) -> tuple[Tensor, np.ndarray]:
    """V = N B with orthonormal N (n, r) and B (r, m), for V (n, m) in float64.

    A column of which the part outside those before it is not longer than `smallest` adds nothing to N. By Gram-Schmidt,
    twice, on the device of V: B is as accurate as that of a QR decomposition.
    """
    N, B = V[:, :0], np.zeros((V.shape[1], V.shape[1]))
    for j, v in enumerate(V.T):
        w = v[:, None]
        for _ in range(2):
            inside = inner(N, w)
            w = w - N @ inside
            B[: N.shape[1], j] += inside[:, 0].cpu().numpy()
        if (left := length(w)) > smallest:
            B[N.shape[1], j] = left
            N = torch.cat([N, w / left], 1)
    return N, B[: N.shape[1]]


def _round(product: ShiftedProducts, X: Tensor, known: list[_Known], rtol: float) -> tuple[Tensor, _Known]:
    """The next X: the best k directions of the space that the solutions for X, their residuals and what is known span.

    Also returns the next best k.
    """
    k = X.shape[1]
    with product.keeping(3 * k):
        Y = torch.cat(together(product, [_solved(x[:, None].clone(), rtol) for x in X.T]), 1)
    lengths = _lengths(Y)
    Y = Y / lengths
    AY = product(Y)
    # Where H − σI is singular, the residual of a solution is the part of X in its kernel.
    R = X - AY * lengths
    R = R / (_lengths(R) + torch.finfo(R.dtype).tiny)
    AR = product(R)
    Z, AZ = (torch.cat(columns, 1) for columns in zip((Y, AY), (R, AR), *known, strict=True))
    smallest = max(_SMALLEST_INDEPENDENT_PART, _ROUNDOFFS_OF_INDEPENDENT_PART * product.A.eps)
    N, B = orthonormal(Z, smallest)
    kept = (B != 0).argmax(1)  # the columns that have added something
    AN = _times(AZ[:, kept], np.linalg.inv(B[:, kept]))
    best = np.linalg.svd(orthonormal(AN)[1])[2][::-1].T.copy()
    others = best[:, k : 2 * k]
    return orthonormal(_times(N, best[:, :k]))[0], (_times(N, others), _times(AN, others))


def _extracted(X: Tensor, AX: Tensor, shift: float, tol: float, floor: float) -> tuple[Tensor, Tensor, Eigenpairs]:
    """X and (A − shift · I) X as eigenvectors, nearest to the shift first, and the eigenpairs without vectors."""
    small = inner(X, AX).cpu().numpy()
    distances, turn = np.linalg.eigh((small + small.T) / 2)
    order = np.argsort(np.abs(distances))
    distances, turn = distances[order], turn[:, order]
    X, AX = _times(X, turn), _times(AX, turn)
    residuals = _lengths(AX - X * torch.from_numpy(distances).to(X)).cpu().numpy()
    done = bool((residuals <= np.maximum(tol * np.abs(distances), floor)).all())
    return X, AX, Eigenpairs(distances + shift, None, residuals, residuals + floor, done, 0)


def _solved(x: Tensor, rtol: float) -> Procedure[Tensor]:
    """(H − σI)⁻¹ x by MINRES, to a residual of rtol ‖H − σI‖ ‖y‖.

    If the budget ends it before, the last iterate is returned.
    """
    solver, made = minres(x), 0
    now = next(solver)
    try:
        while now.direction is not None and made < _MAX_ITERATIONS * len(x):
            after = following(solver, (yield Request(now.direction)))
            if after is None:
                break
            now, made = after, made + 1
            if now.residual <= rtol * now.norm * length(now.x) or now.image <= rtol * now.norm:
                break
    except BudgetSpent:
        if not made or length(now.x) == 0:
            raise
    return now.x if made else x


def _lengths(V: Tensor) -> Tensor:
    return column_inner(V, V).sqrt()


def _times(V: Tensor, small: np.ndarray) -> Tensor:
    return V @ torch.from_numpy(np.ascontiguousarray(small)).to(V)
