"""Block Lanczos with full reorthogonalisation and a thick restart: H Q = Q T + F Cᵀ, small matrices in float64.

Q (n × m) is the basis, F (n × p) the frontier: orthonormal vectors, orthogonal to Q, that come next; C (m × p) couples
the two. A step multiplies some frontier vectors by H, moves them into the basis, and puts what is new in the products
on the frontier. With p = 1 it is the Lanczos recurrence; T is then tridiagonal and C has one entry.

Every new vector is orthogonalised against the whole basis, after its known part is taken off, and once more if it has
shrunk; without that, float32 Lanczos shows ghosts. (Paige 1972, doi:10.1093/imamat/10.3.373; "twice is enough": Giraud
et al. 2005, doi:10.1007/s00211-005-0615-4; block Lanczos: Golub and Underwood 1977,
doi:10.1016/B978-0-12-587260-7.50018-2; thick restart: Wu and Simon 2000, doi:10.1137/S0895479898334605.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from hvpspec.krylov.basis import Basis
from hvpspec.krylov.operator_view import Symmetric, refuse_asymmetric
from hvpspec.krylov.vectors import column_inner, gaussian, inner
from hvpspec.options import Place

_ROUNDING = 50  # what a product may be off by, in roundoffs of ‖T‖, without its asymmetry showing it
_MUCH_LEFT = 0.5  # of the squared length, after a pass of Gram-Schmidt: then there is no need for another
_CLOSED = 100  # a remainder below so many roundoffs of ‖T‖ is rounding: the space is invariant


@dataclass(frozen=True)
class Ritz:
    """Ritz values (ascending), their coefficients in the basis (columns), residuals, and what rounding may add."""

    values: np.ndarray
    coefficients: np.ndarray
    residuals: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Projection:
    """The small matrices alone.

    T (m, m), coupling C (m, p); defects (m,): ‖H q_j − Q T e_j − F Cᵀ e_j‖, what should have been zero, as measured.
    segments: where each segment starts, and with how many random vectors. A segment ends in an invariant subspace;
    nothing couples the next one to it, as that starts from fresh random vectors orthogonal to the basis.
    """

    T: np.ndarray
    coupling: np.ndarray
    defects: np.ndarray
    segments: tuple[tuple[int, int], ...]

    @property
    def norm(self) -> float:
        """An upper bound on ‖[T C]‖₂ that is near it: the scale of rounding errors."""
        rows = np.abs(self.T).sum(1) + np.abs(self.coupling).sum(1)
        return float(np.max(rows, initial=0.0))

    def shifted(self, damping: float) -> np.ndarray:
        """[T + δI; Cᵀ], shape (m + p, m): its singular values are the stationary ‖(H + δI) Q s‖ for unit s."""
        return np.vstack([self.T + damping * np.eye(len(self.T)), self.coupling.T])

    def ritz(self, eps: float, first: int = 0, end: int | None = None) -> Ritz:
        """The eigenpairs of T on the vectors from number `first` up to `end` (whole segments)."""
        values, vectors = eigh(self.T[first:end, first:end], driver="evd")
        residuals = np.linalg.norm(self.coupling[first:end].T @ vectors, axis=0)
        # H Q = Q T + F Cᵀ + E with ‖E e_j‖ = defect_j, so that ‖E s‖ ≤ Σ_j defect_j |s_j|. Entries of E that show no
        # asymmetry, such as those on the diagonal, are taken to be of the same size as those that do.
        m = len(self.T)
        hidden = 3 * float(np.linalg.norm(self.defects)) / max(m * (m - 1) / 2, 1) ** 0.5
        noise = self.defects[first:end] @ np.abs(vectors) + hidden + _ROUNDING * eps * self.norm
        return Ritz(values, vectors, residuals, noise)


@dataclass
class Krylov:
    """The basis, the frontier, and the projection.

    `undisturbed` is the projection as it was before the first restart or added vector: from then on the space is no
    longer the Krylov space of its start, which is what certificates and quadrature rest on. `share` is the random part
    of a start that leans towards given vectors (1: all of it): s = share · ĝ + something that ĝ does not depend on.
    """

    basis: Basis
    frontier: Tensor
    projection: Projection
    eps: float
    seed: int
    drawn: int = 0
    undisturbed: Projection | None = field(default=None)
    share: float = 1.0

    @property
    def of_start(self) -> Projection:
        """The projection on the largest Krylov space of the start alone."""
        return self.undisturbed or self.projection

    @property
    def leans(self) -> bool:
        """Whether the start is not random alone."""
        return self.share != 1

    @property
    def m(self) -> int:
        return self.basis.m

    @property
    def n(self) -> int:
        return self.basis.matrix.shape[0]

    @property
    def segment(self) -> int:
        """The first vector of the current segment; m itself when one has just ended."""
        return self.projection.segments[-1][0]

    def ritz(self) -> Ritz:
        return self.projection.ritz(self.eps)

    def vectors(self, coefficients: np.ndarray) -> Tensor:
        """Basis times coefficients, columns normalised: shape (n, k)."""
        return normalised(self.basis.combine(coefficients))


@dataclass(frozen=True)
class Step:
    """What a step added: basis vectors X (n, w) and the remainder (I − P) H X, P projecting on the new basis."""

    vectors: Tensor
    remainder: Tensor
    before: int


def start(
    A: Symmetric, *, seed: int, block: int = 1, place: Place = "device", drawn: int = 0, towards: Tensor | None = None
) -> Krylov:
    """A Krylov space with no vector yet: `block` random ones on its frontier (fewer if n is less), the first `drawn`
    of the seed left out. `towards`: a unit vector (n, 1) that is added to the first of them."""
    basis = Basis(A.n, A.dtype, A.device, place)
    nothing = Projection(np.zeros((0, 0)), np.zeros((0, 0)), np.zeros(0), ())
    krylov = Krylov(basis, torch.empty(A.n, 0, dtype=A.dtype, device=A.device), nothing, A.eps, seed, drawn)
    _open_segment(krylov, min(block, A.n))
    if towards is not None:
        mixed = krylov.frontier + towards
        krylov.share = 1 / _length(mixed)
        krylov.frontier = normalised(mixed)
    return krylov


def extend(krylov: Krylov, multiply: Callable[[Tensor], Tensor], width: int | None = None) -> Step:
    """One step with the first `width` frontier vectors (None: all), that many products; theirs come first again.

    Raises InputError when the operator shows itself to be not symmetric.
    """
    known, m = krylov.projection, krylov.m
    X = krylov.frontier[:, :width]
    waiting = krylov.frontier[:, X.shape[1] :]
    W = multiply(X)
    krylov.basis.append(X)
    coefficients = orthogonalise(krylov.basis, waiting, W, known.coupling[:, : X.shape[1]])
    T, defects = _bordered(known, coefficients[: m + X.shape[1]], X.shape[1])
    coupling = np.zeros((len(T), waiting.shape[1]))
    coupling[:m] = known.coupling[:, X.shape[1] :]
    coupling[m:] = coefficients[len(T) :].T

    scale = max(float(np.max(np.abs(T).sum(1))), float(np.abs(coefficients).max()))
    fresh, triangle, lost = _split(krylov, waiting, W, _CLOSED * krylov.eps * scale)
    defects[m:] += lost
    krylov.frontier = torch.cat([fresh, waiting], 1)
    rows = np.zeros((len(T), fresh.shape[1]))
    rows[m:] = triangle.T
    krylov.projection = Projection(T, np.hstack([rows, coupling]), defects, known.segments)
    step = Step(X, _times(krylov.frontier, krylov.projection.coupling[m:].T), m)
    if krylov.frontier.shape[1] == 0 and krylov.m < krylov.n:
        _open_segment(krylov, 1)
    return step


def add_random(krylov: Krylov) -> None:
    """Puts a fresh random vector at the head of the frontier: another chance to meet what the others do not see."""
    known = krylov.projection
    krylov.undisturbed = krylov.of_start
    krylov.frontier = torch.cat([_draw(krylov), krylov.frontier], 1)
    coupling = np.hstack([np.zeros((len(known.T), 1)), known.coupling])
    krylov.projection = Projection(known.T, coupling, known.defects, known.segments)


def favour(krylov: Krylov, coefficients: np.ndarray) -> None:
    """Puts that frontier vector at the head which the residual of a Ritz vector (its coefficients) leans to most."""
    coupling = krylov.projection.coupling
    order = np.argsort(-np.abs(coupling.T @ coefficients), kind="stable")[:1]
    order = np.concatenate([order, np.delete(np.arange(coupling.shape[1]), order)])
    krylov.frontier = krylov.frontier[:, torch.from_numpy(order).to(krylov.frontier.device)]
    krylov.projection = replace(krylov.projection, coupling=coupling[:, order])


def restart(krylov: Krylov, best: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Shrinks the basis to those Ritz vectors that `best(values)` names; the frontier stays, coupled to all of them.

    Returns S (m, k): the basis has become Q S.
    """
    known, ended = krylov.projection, krylov.segment
    krylov.undisturbed = krylov.of_start
    # Segments that have ended are solved apart from the current one: nothing couples them, and nothing must mix them.
    values, vectors = np.zeros(len(known.T)), np.zeros_like(known.T)
    for part in (slice(0, ended), slice(ended, None)):
        if known.T[part, part].size:
            # Divide and conquer: the vectors of SciPy's default may be a thousand roundoffs from orthogonal.
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
    """T with `width` more rows and columns, and the defects: what symmetry says of these coefficients, checked."""
    m = len(known.T)
    block = coefficients[m:]
    expected = known.coupling[:, :width]
    T = np.block([[known.T, expected], [expected.T, (block + block.T) / 2]])
    difference = np.vstack([coefficients[:m] - expected, (block - block.T) / 2])
    defects = np.linalg.norm(difference, axis=0)
    scale = max(float(np.linalg.norm(coefficients, axis=0).max()), known.norm)
    refuse_asymmetric(float(defects.max()), scale)
    return T, np.concatenate([known.defects, defects])


def orthogonalise(basis: Basis, others: Tensor, W: Tensor, foreseen: np.ndarray | None = None) -> np.ndarray:
    """Subtracts from W (n, b), in place, its part in the basis and the others; the coefficients (m + p, b), in float64.

    foreseen (m' ≤ m, b): the coefficients of the first m' basis vectors as known beforehand. Taken off first, with
    those of the few vectors since then, they spare the second pass, which is needed only where much cancels.
    """
    total = np.zeros((basis.m + others.shape[1], W.shape[1]))
    if foreseen is not None and len(foreseen):
        first = int(np.flatnonzero(foreseen.any(1))[0]) if foreseen.any() else len(foreseen)
        recent = inner(basis.matrix[:, len(foreseen) :], W).cpu().numpy()
        total[first : basis.m] = np.vstack([foreseen[first:], recent])
        basis.subtract(W, total[first : basis.m], first)
    for _ in range(2 if len(total) else 0):
        before = column_inner(W, W)
        inside = basis.inner(W)
        basis.subtract(W, inside)
        total[: basis.m] += inside.cpu().numpy()
        if others.shape[1]:
            beside = inner(others, W)
            W -= others @ beside.to(W.dtype)
            total[basis.m :] += beside.cpu().numpy()
        if foreseen is not None and bool((column_inner(W, W) > _MUCH_LEFT * before).all()):
            break
    return total


def _split(krylov: Krylov, waiting: Tensor, W: Tensor, closed: float) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """W = N B with orthonormal N (n, r), r ≤ w; columns that shrink to rounding errors add nothing to N.

    Returns N, B (r, w), and the lengths of what was left out.
    """
    columns: list[Tensor] = []
    triangle = np.zeros((W.shape[1], W.shape[1]))
    lost = np.zeros(W.shape[1])
    for j in range(W.shape[1]):
        w = W[:, j : j + 1]
        before = _length(w)
        if columns:
            others = torch.cat(columns, 1)
            for _ in range(2):
                inside = inner(others, w)
                w = w - others @ inside.to(w.dtype)
                triangle[: len(columns), j] += inside[:, 0].cpu().numpy()
        length = _length(w)
        if length <= closed or krylov.m + waiting.shape[1] + len(columns) == krylov.n:
            lost[j] = length
            continue
        w = w / length
        if columns and length < 0.1 * before:  # what the earlier columns left may lean on the basis again
            orthogonalise(krylov.basis, torch.cat([waiting, *columns], 1), w)
            w = normalised(w)
        triangle[len(columns), j] = length
        columns.append(w)
    N = torch.cat(columns, 1) if columns else W[:, :0]
    return N, triangle[: len(columns)], lost


def _open_segment(krylov: Krylov, width: int) -> None:
    known = krylov.projection
    for _ in range(width):
        krylov.frontier = torch.cat([krylov.frontier, _draw(krylov)], 1)
    krylov.projection = Projection(
        known.T, np.zeros((krylov.m, width)), known.defects, (*known.segments, (krylov.m, width))
    )


def _draw(krylov: Krylov) -> Tensor:
    """A fresh random unit vector orthogonal to basis and frontier, shape (n, 1)."""
    like = krylov.frontier
    vector = normalised(gaussian(krylov.n, krylov.drawn, seed=krylov.seed, dtype=like.dtype, device=like.device))
    krylov.drawn += 1
    for _ in range(2):  # the second time cleans up what normalising a small remainder has magnified
        orthogonalise(krylov.basis, krylov.frontier, vector)
        vector = normalised(vector)
    return vector


def normalised(vectors: Tensor) -> Tensor:
    """Columns of unit length, the lengths taken in float64: a float32 sum over many entries is off by 1e-5."""
    return vectors / column_inner(vectors, vectors).sqrt().to(vectors.dtype)


def _length(vector: Tensor) -> float:
    return float(column_inner(vector, vector).sqrt())


def _times(vectors: Tensor, small: np.ndarray) -> Tensor:
    return vectors @ torch.from_numpy(np.ascontiguousarray(small)).to(vectors)
