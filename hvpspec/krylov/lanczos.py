"""Block Lanczos with full reorthogonalisation and a thick restart: H Q = Q T + F Cᵀ, small matrices in float64.

Q (n × m) is the basis and F (n × p) the frontier: orthonormal vectors, orthogonal to Q, that are next to enter the
basis; C (m × p) couples the two. A step multiplies some frontier vectors by H, moves them into the basis, and adds what
is new in the products to the frontier. With p = 1 this is the Lanczos recurrence: T is tridiagonal and C has one
nonzero entry.

Every new vector is orthogonalised against the whole basis, after its known part has been subtracted, and a second time
if it has become much shorter; without this, Lanczos in float32 produces ghosts, spurious copies of eigenvalues that
have converged. (Paige 1972, doi:10.1093/imamat/10.3.373; "twice is enough": Giraud
et al. 2005, doi:10.1007/s00211-005-0615-4; block Lanczos: Golub and Underwood 1977,
doi:10.1016/B978-0-12-587260-7.50018-2; thick restart: Wu and Simon 2000, doi:10.1137/S0895479898334605.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from hvpspec.distributed.shard import added, rows_of
from hvpspec.kernels.full_precision import full_precision
from hvpspec.kernels.random_vectors import gaussian
from hvpspec.krylov.basis import Basis, orthogonalise
from hvpspec.krylov.operator_view import ROUNDOFFS_PER_PRODUCT, Symmetric, refuse_asymmetric
from hvpspec.krylov.vectors import column_inner, inner, subtract_times, times
from hvpspec.options import Place

COINCIDING = 1e-8  # of ‖H‖: Ritz values that are closer than this are copies of one eigenvalue
_ROUNDOFFS_PER_SUM = 16  # the error of a sum over the basis, in unit roundoffs of ‖H‖ √(1 + m)
_ROUNDOFFS_OF_CLOSED_SPACE = 100  # of ‖T‖: a shorter remainder is rounding, and the space is invariant
# Of the length of a new vector: if less is left by the other new ones, it may have components in the basis again.
_LARGE_LOSS = 0.1


@dataclass(frozen=True)
class Ritz:
    """Ritz values (ascending), their coefficients in the basis (columns), residuals, and the effect of rounding.

    floor: below which H is known to have no eigenvalue.
    """

    values: np.ndarray
    coefficients: np.ndarray
    residuals: np.ndarray
    noise: np.ndarray
    floor: float = -math.inf


@dataclass(frozen=True)
class Projection:
    """The small matrices.

    T (m, m), coupling C (m, p); defects (m,): ‖H q_j − Q T e_j − F Cᵀ e_j‖ as measured; zero but for rounding.
    segments: where each segment starts, and with how many random vectors. A segment ends in an invariant subspace.
    The next one starts from new random vectors orthogonal to the basis, and is not coupled to it.
    """

    T: np.ndarray
    coupling: np.ndarray
    defects: np.ndarray
    segments: tuple[tuple[int, int], ...]

    @property
    def norm(self) -> float:
        """A close upper bound on ‖[T C]‖₂: the scale of rounding errors."""
        rows = np.abs(self.T).sum(1) + np.abs(self.coupling).sum(1)
        return float(np.max(rows, initial=0.0))

    @property
    def squared_norm(self) -> float:
        """‖T‖_F² + 2 ‖C‖_F²: the part of ‖H‖_F² that is known."""
        return float((self.T**2).sum() + 2 * (self.coupling**2).sum())

    def shifted(self, damping: float) -> np.ndarray:
        """[T + δI; Cᵀ], shape (m + p, m): its singular values are the stationary values of ‖(H + δI) Q s‖, ‖s‖ = 1."""
        return np.vstack([self.T + damping * np.eye(len(self.T)), self.coupling.T])

    def ritz(self, eps: float, first: int = 0, end: int | None = None) -> Ritz:
        """The eigenpairs of T on the vectors from number `first` up to `end` (whole segments)."""
        values, vectors = eigh(self.T[first:end, first:end], driver="evd")
        residuals = np.linalg.norm(self.coupling[first:end].T @ vectors, axis=0)
        # H Q = Q T + F Cᵀ + E with ‖E e_j‖ = defect_j, so that ‖E s‖ ≤ Σ_j defect_j |s_j|. Errors that show no
        # asymmetry, such as those on the diagonal of E, are assumed to be as large as those that do.
        m = len(self.T)
        hidden = 3 * float(np.linalg.norm(self.defects)) / max(m * (m - 1) / 2, 1) ** 0.5
        noise = self.defects[first:end] @ np.abs(vectors) + hidden + ROUNDOFFS_PER_PRODUCT * eps * self.norm
        return Ritz(values, vectors, residuals, noise)

    def product_error(self, eps: float, end: int | None = None) -> float:
        """A bound on ‖H Q − Q T − F Cᵀ‖ over the first `end` vectors: as measured, and what rounding may hide."""
        return float(np.linalg.norm(self.defects[:end])) + ROUNDOFFS_PER_PRODUCT * eps * self.norm

    def sum_error(self, eps: float, norm: float) -> float:
        """What errors of the products add to a sum over the basis, such as tr T, where ‖H‖ is at most `norm`."""
        return _ROUNDOFFS_PER_SUM * eps * math.sqrt(1 + len(self.T)) * norm + float(np.linalg.norm(self.defects))


@dataclass
class Krylov:
    """The basis, the frontier, and the projection.

    `undisturbed` is the projection before the first restart or added vector: after that, the space is no longer the
    Krylov space of its start, on which certificates and quadrature rely. `share` is the random part of the start:
    s = share · ĝ + a, where ĝ is a random unit vector and a, which is zero in a cold start, does not depend on it.

    starts: random vectors that have been put into it. whole: the length of the vectors, where ranks have parts of them.
    semidefinite: whether H is known to have no negative eigenvalue. zero: which rows of H are known to be zero
    (n_rows,). The space is then that of the other rows: all vectors are 0 in these, and n is the number of the others.
    growth: the factor by which the start has grown, as it is 0 there.
    """

    basis: Basis
    frontier: Tensor
    projection: Projection
    eps: float
    seed: int
    drawn: int = 0
    undisturbed: Projection | None = field(default=None)
    share: float = 1.0
    starts: int = 0
    zero: Tensor | None = None
    zeros: int = 0
    growth: float = 1.0
    whole: int | None = None
    semidefinite: bool = False

    @property
    def of_start(self) -> Projection:
        """The projection on the largest space that is the Krylov space of its start."""
        return self.undisturbed or self.projection

    @property
    def warm(self) -> bool:
        """Whether the start is not purely random."""
        return self.share != 1

    @property
    def m(self) -> int:
        return self.basis.m

    @property
    def n(self) -> int:
        return (self.rows if self.whole is None else self.whole) - self.zeros

    @property
    def rows(self) -> int:
        """The length of the vectors, or of this rank's part of them."""
        return self.basis.matrix.shape[0]

    @property
    def positions(self) -> range:
        """Those that this rank has of the vectors."""
        return range(self.rows) if self.whole is None else rows_of(self.whole)

    @property
    def segment(self) -> int:
        """The number of the first vector of the current segment; m if one has just ended."""
        return self.projection.segments[-1][0]

    def ritz(self) -> Ritz:
        ritz = self.projection.ritz(self.eps)
        return replace(ritz, floor=self.floor(ritz.values, float(np.max(ritz.noise, initial=0.0))))

    def floor(self, values: np.ndarray, noise: float) -> float:
        """Below which H is known to have no eigenvalue; not where its Ritz values, known to `noise`, say otherwise."""
        agrees = float(np.min(values, initial=0.0)) >= -2 * noise
        return 0.0 if self.semidefinite and agrees else -math.inf

    def vectors(self, coefficients: np.ndarray) -> Tensor:
        """Basis times coefficients, with normalised columns: shape (n, k)."""
        return normalised(self.basis.combine(coefficients))


@dataclass(frozen=True)
class Step:
    """What a step added: basis vectors X (n, w) and the remainder (I − P) H X, with P the projector on the new basis.

    before: vectors in the basis before the step.
    """

    vectors: Tensor
    remainder: Tensor
    before: int


def start(
    A: Symmetric, *, seed: int, block: int = 1, place: Place = "device", drawn: int = 0, towards: Tensor | None = None
) -> Krylov:
    """A Krylov space with an empty basis and `block` random vectors (at most n) on its frontier.

    drawn: how many of the first Gaussians of the seed are skipped. towards: a unit vector (n, 1) that is added to the
    first random vector.
    """
    rows = rows_of(A.n)
    basis = Basis(len(rows), A.dtype, A.device, place)
    nothing = Projection(np.zeros((0, 0)), np.zeros((0, 0)), np.zeros(0), ())
    frontier = torch.empty(len(rows), 0, dtype=A.dtype, device=A.device)
    krylov = Krylov(basis, frontier, nothing, A.eps, seed, drawn, whole=A.n, semidefinite=A.semidefinite)
    _open_segment(krylov, min(block, A.n))
    if towards is not None:
        mixed = krylov.frontier + towards
        krylov.share = 1 / _length(mixed)
        krylov.frontier = normalised(mixed)
    return krylov


def extend(krylov: Krylov, multiply: Callable[[Tensor], Tensor], width: int | None = None) -> Step:
    """One step with the first `width` frontier vectors (None: all), at one product each.

    The new frontier vectors come first. Raises InputError if the products show that the operator is not symmetric.
    """
    X = krylov.frontier[:, :width]
    waiting = krylov.frontier[:, X.shape[1] :]
    W = multiply(X)
    with full_precision(W.device):
        return _appended(krylov, X, waiting, W)


def _appended(krylov: Krylov, X: Tensor, waiting: Tensor, W: Tensor) -> Step:
    """The step with the frontier vectors X and their products W, which are overwritten."""
    known, m = krylov.projection, krylov.m
    krylov.basis.append(X)
    removed = orthogonalise(krylov.basis, waiting, W, known.coupling[:, : X.shape[1]])
    coefficients = removed.coefficients
    T, defects = _bordered(known, coefficients[: m + X.shape[1]], X.shape[1])
    coupling = np.zeros((len(T), waiting.shape[1]))
    coupling[:m] = known.coupling[:, X.shape[1] :]
    coupling[m:] = coefficients[len(T) :].T

    scale = max(float(np.max(np.abs(T).sum(1))), float(np.abs(coefficients).max()))
    fresh, triangle, lost = _factor(
        krylov, waiting, W, removed.lengths, _ROUNDOFFS_OF_CLOSED_SPACE * krylov.eps * scale
    )
    defects[m:] += lost
    krylov.frontier = torch.cat([fresh, waiting], 1) if waiting.shape[1] else fresh
    rows = np.zeros((len(T), fresh.shape[1]))
    rows[m:] = triangle.T
    krylov.projection = Projection(T, np.hstack([rows, coupling]), defects, known.segments)
    step = Step(X, times(krylov.frontier, krylov.projection.coupling[m:].T), m)
    if krylov.frontier.shape[1] == 0 and krylov.m < krylov.n:
        _open_segment(krylov, 1)
    return step


def confine(krylov: Krylov, zero: Tensor) -> float:
    """Confines an empty space to the rows of H that are not zero; the factor by which its start vector has grown."""
    krylov.zero, krylov.zeros = zero, int(added(zero.sum()))
    inside = outside_of(zero, krylov.frontier)
    krylov.frontier, krylov.growth = normalised(inside), 1 / _length(inside)
    return krylov.growth


def outside_of(zero: Tensor | None, X: Tensor) -> Tensor:
    """X with 0 in the rows that are known to be zero."""
    return X if zero is None else X.masked_fill(zero[:, None], 0.0)


def add_random(krylov: Krylov) -> None:
    """Puts a new random vector at the head of the frontier: another chance to find what the others do not contain."""
    known = krylov.projection
    krylov.undisturbed = krylov.of_start
    krylov.frontier = torch.cat([_draw(krylov), krylov.frontier], 1)
    coupling = np.hstack([np.zeros((len(known.T), 1)), known.coupling])
    krylov.projection = Projection(known.T, coupling, known.defects, known.segments)


def favour(krylov: Krylov, coefficients: np.ndarray) -> None:
    """Puts the frontier vector first that contributes most to the residual of a Ritz vector (its coefficients)."""
    coupling = krylov.projection.coupling
    order = np.argsort(-np.abs(coupling.T @ coefficients), kind="stable")[:1]
    order = np.concatenate([order, np.delete(np.arange(coupling.shape[1]), order)])
    krylov.frontier = krylov.frontier[:, torch.from_numpy(order).to(krylov.frontier.device)]
    krylov.projection = replace(krylov.projection, coupling=coupling[:, order])


def restart(krylov: Krylov, best: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Shrinks the basis to the Ritz vectors that `best(values)` selects; the frontier stays and is coupled to them all.

    Returns S (m, k): the new basis is Q S.
    """
    known, ended = krylov.projection, krylov.segment
    krylov.undisturbed = krylov.of_start
    # Segments that have ended are diagonalised separately from the current one: they are not coupled and must not mix.
    values, vectors = np.zeros(len(known.T)), np.zeros_like(known.T)
    for part in (slice(0, ended), slice(ended, None)):
        if known.T[part, part].size:
            # Divide and conquer ("evd"): the vectors of SciPy's default may be a thousand roundoffs from orthogonal.
            values[part], vectors[part, part] = eigh(known.T[part, part], driver="evd")
    keep = np.sort(best(values))
    S = np.ascontiguousarray(vectors[:, keep])
    krylov.basis.compress(S)
    left = int((keep < ended).sum())
    krylov.projection = Projection(
        np.diag(values[keep]),
        S.T @ known.coupling,
        known.defects @ np.abs(S),
        ((0, 1), (left, 1)) if left else ((0, 1),),
    )
    return S


def _bordered(known: Projection, coefficients: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """T with `width` more rows and columns, and the defects: by how much the coefficients violate symmetry."""
    m = len(known.T)
    block = coefficients[m:]
    expected = known.coupling[:, :width]
    T = np.block([[known.T, expected], [expected.T, (block + block.T) / 2]])
    difference = np.vstack([coefficients[:m] - expected, (block - block.T) / 2])
    defects = np.linalg.norm(difference, axis=0)
    scale = max(float(np.linalg.norm(coefficients, axis=0).max()), known.norm)
    refuse_asymmetric(float(defects.max()), scale)
    return T, np.concatenate([known.defects, defects])


def _factor(
    krylov: Krylov, waiting: Tensor, W: Tensor, lengths: np.ndarray, rounding: float
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """W = N B with orthonormal N (n, r), r ≤ w; columns no longer than `rounding` add nothing to N.

    Returns N, which overwrites W, then B (r, w), and the lengths of the parts that were left out. lengths: of W.
    """
    kept = 0
    triangle = np.zeros((W.shape[1], W.shape[1]))
    lost = np.zeros(W.shape[1])
    for j in range(W.shape[1]):
        w, others = W[:, j : j + 1], W[:, :kept]
        before = length = float(lengths[j])
        if kept:
            inside, length = _without(others, w)
            triangle[:kept, j] = inside
        if length <= rounding or krylov.m + waiting.shape[1] + kept == krylov.n:
            lost[j] = length
            continue
        w = w / length
        if kept and length < _LARGE_LOSS * before:
            orthogonalise(krylov.basis, torch.cat([waiting, others], 1), w)
            w = normalised(w)
        triangle[kept, j] = length
        W[:, kept : kept + 1] = w
        kept += 1
    return W[:, :kept], triangle[:kept], lost


def _without(others: Tensor, w: Tensor) -> tuple[np.ndarray, float]:
    """Subtracts from w (n, 1), in place, its components in the others, twice; these, and the length of what is left."""
    found = []
    for _ in range(2):
        found.append(inner(others, w))
        subtract_times(w, others, found[-1])
    read = torch.cat([found[0] + found[1], column_inner(w, w).sqrt()[None]]).cpu().numpy()[:, 0]
    return read[:-1], float(read[-1])


def _open_segment(krylov: Krylov, width: int) -> None:
    known = krylov.projection
    for _ in range(width):
        krylov.frontier = torch.cat([krylov.frontier, _draw(krylov)], 1)
    krylov.projection = Projection(
        known.T, np.zeros((krylov.m, width)), known.defects, (*known.segments, (krylov.m, width))
    )


def _draw(krylov: Krylov) -> Tensor:
    """A new random unit vector orthogonal to basis and frontier, shape (n, 1)."""
    like = krylov.frontier
    vector = gaussian(krylov.positions, krylov.drawn, seed=krylov.seed, dtype=like.dtype, device=like.device)
    vector = normalised(outside_of(krylov.zero, vector))
    krylov.drawn += 1
    krylov.starts += 1
    for _ in range(2):  # the second pass removes errors that normalising a short remainder has magnified
        orthogonalise(krylov.basis, krylov.frontier, vector)
        vector = normalised(vector)
    return vector


def normalised(vectors: Tensor) -> Tensor:
    """Columns scaled to unit length. The lengths are in float64: a sum of many entries in float32 is off by 1e-5."""
    return vectors / column_inner(vectors, vectors).sqrt().to(vectors.dtype)


def _length(vector: Tensor) -> float:
    return float(column_inner(vector, vector).sqrt())
