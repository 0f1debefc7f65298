"""The diagonal: what a Krylov basis knows of it, and random probes of the rest.

With the projector P = Q Qᵀ on the basis, H Q = Q T + F Cᵀ and B = (I − P) H (I − P),

    diag H = diag(P H + H P − P H P) + diag B,      the first part: Σ_j Q ⊙ (Q T) + 2 Σ_j Q ⊙ (F Cᵀ),

which takes no product. For the second, each row of B is looked at by itself: of y = B ω with standard normal ω,

    y_i = B_ii ω_i + (a term that does not depend on ω_i, of variance Σ_{j≠i} B_ij²),

so that B_ii is the slope of a regression through the origin over the probes, exact where B is diagonal, and the
residuals give its standard error (Bekas, Kokiopoulou and Saad, doi:10.1016/j.apnum.2007.01.003; deflation as in XDiag:
Epperly, Tropp and Webber, arXiv:2301.07825).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor

from hvpspec.distributed.shard import over_ranks, whole
from hvpspec.errors import InputError
from hvpspec.estimators.passes.extend_or_probe import choose, ends
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.kernels.random_vectors import probes
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.blocks import BlockRows, NamedParameters
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.options import LEAST_HVPS_TO_CHECK, Place, SpectrumOptions
from hvpspec.results.diagonal import Diagonal, DiagonalMean
from hvpspec.results.estimate import Estimate
from hvpspec.validation import Tolerance, check_budget, check_seed

_VECTORS_AT_ONCE = 8  # normal vectors that are made again together, and basis vectors
_FLOAT64_VECTORS = 10  # sums, and what is computed from them
_LEAST_PROBES = 2


@over_ranks
def diagonal(
    A: Any,
    *,
    rtol: float = 0.1,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    basis_memory: int | str | None = None,
    basis_on: Place = "device",
    callback: Callable[[Diagonal], None] | None = None,
) -> Diagonal:
    """Estimate the diagonal of a symmetric operator, with its relative error.

    Parameters
    ----------
    A : HessianOperator, LinearOperator, sparse or dense array, or torch tensor, shape (n, n)
        The symmetric operator.
    rtol : float, default 0.1
        Stop when ‖values − diag(A)‖ is at most this share of ‖values‖.
    confidence : float, default 0.95
        The probability that it is.
    seed, basis_memory, basis_on
        As for `hvpspec.eigsh`; the memory is for basis and probes.
    max_hvps : int, optional
        Budget of products; None for no budget. When it is spent, the current estimate is returned with
        ``converged=False``.
    callback : callable, optional
        Called with the current `Diagonal` after each set of probes.

    Returns
    -------
    Diagonal
        `values` (n,), `error` relative to their length, standard errors, and means of blocks with intervals.

    Raises
    ------
    InputError
        For options out of range, an operator that is not symmetric, or ``rtol=0`` with nothing that ends the run.

    Notes
    -----
    Costs one HVP for each basis vector and each probe, one more that checks these where A is no matrix, and at most
    n + 8 in all if a basis of n vectors fits in memory. The number of probes is about (2 / rtol)² times the sum of the
    squared entries outside the diagonal of what the basis leaves, over ‖diag(A)‖². Where these are much larger than the
    diagonal, no method that uses products alone is cheap.
    Bekas, Kokiopoulou and Saad, doi:10.1016/j.apnum.2007.01.003; Epperly, Tropp and Webber, arXiv:2301.07825.

    Examples
    --------
    >>> import numpy as np
    >>> import hvpspec
    >>> found = hvpspec.diagonal(np.diag(np.arange(1.0, 101.0)))
    >>> bool(np.allclose(found.values, np.arange(1.0, 101.0))), found.hvps < 20
    (True, True)
    """
    tolerance, seed, budget = Tolerance(rtol, 0.0, confidence), check_seed(seed), check_budget(max_hvps)
    operator = as_symmetric(A)
    shared = SharedPass(operator, seed=seed, storage=check_storage(basis_memory, basis_on))
    if not ends(shared, tolerance, budget):
        raise InputError("rtol=0 needs a budget (max_hvps), or a basis_memory that holds n vectors.")
    probes = DiagonalProbes(shared)
    limit = math.inf if budget is None else budget
    kept = shared.checks if limit > LEAST_HVPS_TO_CHECK else 0
    for found in probes.measured(tolerance, lambda: limit - kept * bool(shared.krylov.m) - shared.hvps):
        if callback is not None and shared.hvps:
            callback(found)
    shared.check(kept)
    return probes.read(tolerance)


class DiagonalProbes:
    """Collects what the diagonal needs from the probes of a pass, from which others may collect as well.

    Of probes that are dropped it keeps the sums of ω ⊙ y, ω ⊙ ω and y ⊙ y.
    """

    def __init__(self, shared: SharedPass, *, collects: bool = True) -> None:
        """To be made after those that collect from the same probes, and before the first one is drawn.

        collects: whether a diagonal is asked for at all.
        """
        self.shared, self._others = shared, shared.gather
        self._dropped: tuple[int, Tensor] | None = None
        if collects:
            shared.gather = self._gather

    def measured(self, tolerance: Tolerance, left: Callable[[], float]) -> Iterator[Diagonal]:
        """The diagonal as it becomes known, until it is within the tolerance or no product is left."""
        shared = self.shared
        while True:
            found = self.read(tolerance)
            yield found
            length = 0.0 if found.values is None else float(np.linalg.norm(found.values.astype(float)))
            half = found.error * length if length else math.inf
            estimate = Estimate(length, half, tolerance.confidence, converged=found.converged, hvps=shared.hvps)
            move = choose(shared, {"trace": estimate}, tolerance, left())
            if move.action == "stop":
                return
            if move.action == "extend":
                shared.extend(move.count)
            else:
                shared.probe(move.count)

    def read(self, tolerance: Tolerance) -> Diagonal:
        """What is known now; no product."""
        shared, sums = self.shared, self._all_sums()
        known, n = _known(shared), shared.A.n
        rounding = shared.krylov.projection.sum_error(shared.A.eps, shared.krylov.projection.norm)
        rows = len(known)  # that this rank has
        count, errors = 0, torch.full((rows,), math.inf, dtype=torch.float64)
        if shared.dimension == 0:
            errors = torch.full((rows,), rounding / math.sqrt(n), dtype=torch.float64)
        elif sums is not None:
            count = sums[0]
            more, errors = _slopes(*sums)
            known += more
        known, errors = whole(known[:, None])[:, 0], whole(errors[:, None])[:, 0]
        length = float(known.norm())
        spread = float(errors.norm())
        if shared.dimension:
            spread = _factor(errors, count, tolerance.confidence) * spread + rounding if count else math.inf
        error = spread / length if length else (0.0 if spread == 0 else math.inf)
        dtype = shared.A.dtype
        return Diagonal(
            known.to(dtype).cpu().numpy(), error, tolerance.confidence, converged=error <= tolerance.rtol or not spread,
            hvps=shared.hvps, standard_errors=errors.to(dtype).cpu().numpy(), probes=count,
        )  # fmt: skip

    def _gather(self, numbers: Sequence[int], images: Tensor) -> Any:
        count, sums = len(numbers), self._sums(numbers, images)
        if self._dropped is not None and self.shared.pool.frozen:
            count, sums = count + self._dropped[0], sums.add_(self._dropped[1])
        self._dropped = count, sums
        return self._others(numbers, images)

    def _all_sums(self) -> tuple[int, Tensor] | None:
        """The number of all probes, and the three sums; None where there are too few probes."""
        pool, parts = self.shared.pool, []
        if pool.frozen and self._dropped is not None:
            parts.append(self._dropped)
        if pool.numbers:
            parts.append((len(pool.numbers), self._sums(pool.numbers, pool.images)))
        count = sum(size for size, _ in parts)
        return None if count < _LEAST_PROBES else (count, sum((sums for _, sums in parts[1:]), parts[0][1]))

    def _sums(self, numbers: Sequence[int], images: Tensor) -> Tensor:
        """Of some probes, shape (3, n), in float64."""
        krylov = self.shared.krylov
        found = torch.zeros(3, krylov.rows, dtype=torch.float64, device=images.device)
        for start in range(0, len(numbers), _VECTORS_AT_ONCE):
            some = slice(start, start + _VECTORS_AT_ONCE)
            drawn = probes(krylov.positions, numbers[some], seed=krylov.seed, dtype=images.dtype, device=images.device)
            for omega, y in zip(drawn.T, images[:, some].T, strict=True):
                w, z = omega.double(), y.double()
                found[0].addcmul_(w, z)
                found[1].addcmul_(w, w)
                found[2].addcmul_(z, z)
        return found


def measured_diagonal(
    probes: DiagonalProbes, options: SpectrumOptions, blocks: Sequence[BlockRows], parameters: NamedParameters | None
) -> Iterator[Diagonal]:
    """The diagonal as it becomes known, from products of its own besides those made so far.

    It has the means of the blocks or, without any, of each parameter. Nothing where it is not asked for.
    """
    if not options.diagonal:
        return
    shared, before = probes.shared, probes.shared.hvps
    parts: list[tuple[str, Any]] = [(block.name, block.positions) for block in blocks]
    if not parts and parameters is not None:
        parts = [(name, (parameters.slice(name),)) for name in parameters.names]
    where = [(name, rows.cpu().numpy() if isinstance(rows, Tensor) else np.r_[rows]) for name, rows in parts]
    tolerance = Tolerance(options.diagonal_rtol, 0.0, options.confidence)
    for found in probes.measured(tolerance, lambda: options.diagonal_hvps + before - shared.hvps):
        means = tuple(DiagonalMean(name, len(rows), found.mean(rows)) for name, rows in where)
        yield replace(found, own_hvps=shared.hvps - before, means=means)


def working_bytes(n: int, itemsize: int) -> int:
    """Memory that it takes, besides basis and probes: sums, values and errors in float64, and a few vectors."""
    return n * (8 * _FLOAT64_VECTORS + 2 * itemsize * _VECTORS_AT_ONCE)


def _slopes(count: int, sums: Tensor) -> tuple[Tensor, Tensor]:
    """diag B and its standard errors."""
    wy, ww, yy = sums
    residual = (yy - wy.square() / ww).clamp(min=0.0)
    return wy / ww, (residual / ((count - 1) * ww)).sqrt()


def _factor(errors: Tensor, count: int, confidence: float) -> float:
    """How many times √(Σ s²) of the standard errors s the length of the error is at most.

    Its square is a sum of D = (Σ s²)² / Σ s⁴ terms of about one size (Satterthwaite), of D / 2 at least where the
    entries' errors are correlated: their covariances are B_ij², and Σ B_ij⁴ ≤ Σ_i (Σ_j B_ij²)².
    """
    squares = errors.square()
    total, largest = float(squares.sum()), float(squares.max())
    if total == 0 or count < _LEAST_PROBES:
        return 1.0
    terms = max((total / largest) ** 2 / float((squares / largest).square().sum()) / 2, 1.0)
    return math.sqrt(special.fdtri(terms, terms * (count - 1), confidence))


def _known(shared: SharedPass) -> Tensor:
    """diag(P H + H P − P H P), (n,) in float64: Σ_j Q ⊙ (Q T + 2 F Cᵀ), a few columns at a time."""
    krylov = shared.krylov
    total = torch.zeros(krylov.rows, dtype=torch.float64, device=shared.A.device)
    coupling = torch.from_numpy(krylov.projection.coupling)
    for start in range(0, krylov.m, _VECTORS_AT_ONCE):
        some = slice(start, min(start + _VECTORS_AT_ONCE, krylov.m))
        columns = krylov.basis.matrix[:, some].to(total.device)
        image = krylov.basis.combine(krylov.projection.T[:, some])
        image += 2 * krylov.frontier @ coupling[some].T.to(image)
        for q, own in zip(columns.T, image.T, strict=True):
            total.addcmul_(q.double(), own.double())
    return total
