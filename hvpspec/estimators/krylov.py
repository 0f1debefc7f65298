"""Lanczos with full reorthogonalisation: A Q = Q T + β q eᵀ, T tridiagonal, small matrices in float64.

Every new vector is orthogonalised twice against the whole basis; without that, float32 Lanczos shows ghosts.
(Paige 1972, doi:10.1093/imamat/10.3.373; "twice is enough": Giraud et al. 2005, doi:10.1007/s00211-005-0615-4.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from hvpspec.estimators.symmetric import Symmetric, refuse_asymmetric
from hvpspec.estimators.vectors import column_inner, gaussian, inner

_ROUNDING = 50  # what a product may be off by, in roundoffs of ‖T‖, without its asymmetry showing it
_CLOSED = 100  # a residual below so many roundoffs of ‖T‖ is rounding: the space is invariant


@dataclass(frozen=True)
class Ritz:
    """Ritz values (ascending), their coefficients in the basis (columns), residuals and error bounds."""

    values: np.ndarray
    coefficients: np.ndarray
    residuals: np.ndarray
    errors: np.ndarray


@dataclass
class Krylov:
    """A basis of m orthonormal vectors, the rows of `storage[:m]`, and T on it.

    Where the space closes (an invariant subspace) a fresh random vector starts a new segment, with nothing coupling
    it to those before: `betas` is 0 there, and `segments` has its first index. A single start vector sees only one
    vector of each eigenspace; the segments find the others.
    """

    storage: Tensor
    eps: float
    m: int = 0
    alphas: list[float] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)  # betas[j] couples vectors j and j + 1; the last is the residual's
    defects: list[float] = field(default_factory=list)  # ‖A q_j − Q T e_j − …‖: what should have been zero
    segments: list[int] = field(default_factory=lambda: [0])

    @property
    def basis(self) -> Tensor:
        """Shape (n, m)."""
        return self.storage[: self.m].T

    @property
    def norm(self) -> float:
        """‖T‖₁ ≥ ‖T‖₂: the scale of rounding errors."""
        betas = np.zeros(len(self.alphas) + 1)
        betas[1 : len(self.betas) + 1] = self.betas
        return float(np.max(np.abs(self.alphas) + betas[:-1] + betas[1:], initial=0.0))

    @property
    def closed(self) -> bool:
        """Whether the current segment has just ended in an invariant subspace."""
        return self.betas[-1] == 0.0

    def ritz(self, first: int = 0) -> Ritz:
        """The eigenpairs of T on the vectors from number `first` on (the start of a segment)."""
        values, vectors = eigh_tridiagonal(self.alphas[first:], self.betas[first:-1])
        residuals = self.betas[-1] * np.abs(vectors[-1])
        # A Q = Q T + β q eᵀ + E with ‖E e_j‖ = defect_j (measured), so that ‖E s‖ ≤ Σ_j defect_j |s_j|.
        noise = np.array(self.defects[first:]) @ np.abs(vectors)
        return Ritz(values, vectors, residuals, residuals + noise + _ROUNDING * self.eps * self.norm)

    def vectors(self, coefficients: np.ndarray) -> Tensor:
        """Basis times coefficients, columns normalised: shape (n, k)."""
        small = torch.from_numpy(np.ascontiguousarray(coefficients)).to(self.storage)
        return _normalised(self.basis @ small)


def lanczos(A: Symmetric, *, seed: int, max_steps: int) -> Iterator[Krylov]:
    """Grows a Krylov space one product at a time, yielding it (the same object) after each.

    Ends after max_steps products or when the basis spans the whole space. Raises InputError when the operator shows
    itself to be not symmetric.
    """
    krylov = Krylov(torch.empty(min(32, max_steps), A.n, dtype=A.dtype, device=A.device), A.eps)
    vector = _fresh(A, krylov, seed)
    while vector is not None and krylov.m < max_steps:
        _append(krylov, vector, max_steps)
        _step(A, krylov, residual := A @ vector)
        beta = math.sqrt(float(column_inner(residual, residual)))
        if krylov.m == A.n or beta <= _CLOSED * A.eps * krylov.norm:
            krylov.defects[-1] += beta
            krylov.betas.append(0.0)
        else:
            krylov.betas.append(beta)
        yield krylov
        if not krylov.closed:
            vector = residual / beta
        else:
            krylov.segments.append(krylov.m)
            vector = _fresh(A, krylov, seed)


def _step(A: Symmetric, krylov: Krylov, product: Tensor) -> None:
    """Orthogonalises the product in place and records its coefficients."""
    coefficients = _orthogonalise(krylov.basis, product).cpu().numpy()
    last = krylov.m - 1
    krylov.alphas.append(float(coefficients[last]))
    # For a symmetric A these are β_{m−1} and zeros: what they are instead measures the products' own noise.
    before = coefficients[:last].copy()
    if last:
        before[-1] -= krylov.betas[-1]
    krylov.defects.append(float(np.linalg.norm(before)))
    scale = max(float(np.linalg.norm(coefficients)), krylov.norm if krylov.betas else 0.0)
    refuse_asymmetric(krylov.defects[-1], scale)


def _orthogonalise(basis: Tensor, vector: Tensor) -> Tensor:
    """Subtracts from `vector` (n, 1), in place, its part in the basis, twice; the coefficients, shape (m,)."""
    total = torch.zeros(basis.shape[1], dtype=torch.float64, device=basis.device)
    for _ in range(2):
        coefficients = inner(basis, vector)
        vector -= basis @ coefficients.to(basis.dtype)
        total += coefficients[:, 0]
    return total


def _fresh(A: Symmetric, krylov: Krylov, seed: int) -> Tensor | None:
    """A random unit vector orthogonal to the basis; None when the basis spans the whole space."""
    if krylov.m == A.n:
        return None
    vector = gaussian(A.n, len(krylov.segments) - 1, seed=seed, dtype=A.dtype, device=A.device)
    for _ in range(2):  # the second time cleans up what normalising a small remainder has magnified
        _orthogonalise(krylov.basis, vector)
        vector = _normalised(vector)
    return vector


def _normalised(vectors: Tensor) -> Tensor:
    """Columns of unit length, the lengths taken in float64: a float32 sum over many entries is off by 1e-5."""
    return vectors / column_inner(vectors, vectors).sqrt().to(vectors.dtype)


def _append(krylov: Krylov, vector: Tensor, max_steps: int) -> None:
    capacity = krylov.storage.shape[0]
    if krylov.m == capacity:
        grown = krylov.storage.new_empty(min(2 * capacity, max_steps), krylov.storage.shape[1])
        grown[:capacity] = krylov.storage
        krylov.storage = grown
    krylov.storage[krylov.m] = vector[:, 0]
    krylov.m += 1
