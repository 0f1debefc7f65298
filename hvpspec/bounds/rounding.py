"""What comparisons of products show of their errors: one wrong product among good ones, and rounding.

The products of a Krylov space obey H Q = Q T + F Cᵀ + E, where E is their errors. Its part that contradicts symmetry is
measured in each step (`Projection.defects`); the rest shows only in further products:

- *Wrong products.* For z = Q s with random signs s, H z − (Q T + F Cᵀ) s is E s but for the sign and the error of this
  product itself. A single wrong column counts with its full length, whichever it is, and many with ‖E‖_F on average.
- *Rounding.* All float32 products may err by the same symmetric matrix, so that they agree with each other. A product
  in float64 with a random combination w of the Ritz vectors of interest, compared with (Q T + F Cᵀ) times the same,
  shows by how much, and one with a probe ω what this adds to the trace and the norm.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvpspec.distributed.shard import rows_of
from hvpspec.kernels.random_vectors import gaussian, rademacher
from hvpspec.krylov.lanczos import Krylov
from hvpspec.krylov.operator_view import (
    ROUNDOFFS_PER_PRODUCT,
    AsymmetricProducts,
    Recompute,
    Symmetric,
    refuse_asymmetric,
)
from hvpspec.krylov.vectors import column_inner, inner, times
from hvpspec.results.estimate import Rounding
from hvpspec.wording import dtype_name

_CHECK_NUMBER = 1 << 40  # of the random numbers, beyond all probes
_SHARE_PER_SUM = 3.2  # sums over the basis allow 16 roundoffs where products do 50: a wrong product enters both whole
_MARGIN = 2.0  # a random combination of errors may be shorter than the longest of them
_LARGE = {torch.float64: 1e-9, torch.float32: 5e-5}  # relative: beyond what cancels in any ordinary loss
_LARGE_BESIDE_FRESH = 1e-5  # relative, in float32: beyond what may cancel in other products and not in a fresh one
_TIMES_FRESH = 10.0  # what the errors of products may be, relative to that of a fresh one
_SYMMETRIC_IN_FLOAT64 = 1e-6  # relative: an operator with a smaller asymmetry in float64 is symmetric


@dataclass(frozen=True)
class SampledRounding:
    """What rounding adds to the sampled parts of the trace and the norm, at about 95 %."""

    trace: float = 0.0
    norm: float = 0.0


def check_products(A: Symmetric, krylov: Krylov) -> None:
    """One product with all basis vectors: what it shows of wrong products enters the operator's `eps` from now on.

    Raises InputError where they are off by more than a symmetric operator's products can be.
    """
    norm = krylov.projection.norm
    if krylov.m == 0 or norm == 0:
        return
    signs = rademacher(
        krylov.m, [_CHECK_NUMBER], seed=krylov.seed, dtype=torch.float64, device=torch.device("cpu")
    ).numpy()
    signs /= math.sqrt(krylov.m)
    vector = krylov.basis.combine(signs)
    if krylov.zero is not None and krylov.zeros:  # as columns, these rows add nothing
        vector += _random_unit(krylov, krylov.zero, vector)
    off = math.sqrt(krylov.m) * _length(A @ vector - _expected(krylov, signs))
    refuse_asymmetric(off, norm)
    measured = A.dtype != torch.float64 and A.recompute is not None  # which `measure_rounding` judges
    if off > _LARGE[A.dtype] * norm and A.noise() == 0 and not measured:
        warnings.warn(
            f"the operator's products contradict one another by {off / norm:.1e} of its norm, which is far more than "
            f"rounding in {dtype_name(A.dtype)}; the errors include that. Has something changed during the run, or "
            "does the operator compute in a lower precision?",
            RuntimeWarning,
            stacklevel=2,
        )
    if off > ROUNDOFFS_PER_PRODUCT * krylov.eps * norm:
        A.shown = max(A.shown, _SHARE_PER_SUM * off / norm)
        krylov.eps = A.eps


def measure_rounding(
    A: Symmetric, krylov: Krylov, coefficients: np.ndarray, probe: tuple[Tensor, Tensor] | None
) -> tuple[Rounding | None, SampledRounding]:
    """What products show that are computed again: one with a random combination of the Ritz vectors that have these
    coefficients (m, k), and one with a probe ω whose product with A is known. None where that is not possible.

    It enters the operator's `eps` from now on.
    """
    columns, products, parts = [], [], coefficients.shape[1]
    if A.recompute is None:
        return None, SampledRounding()
    if parts:
        weights = gaussian(parts, _CHECK_NUMBER, seed=krylov.seed, dtype=torch.float64, device=torch.device("cpu"))
        mixed = coefficients @ (weights / weights.norm()).numpy()
        columns.append(krylov.basis.combine(mixed))
        products.append(_expected(krylov, mixed))
    if probe is not None:
        columns.append(probe[0])
        products.append(probe[1])
    again = A.recompute(torch.cat(columns, 1)) if columns else None
    if again is None:
        return None, SampledRounding()
    errors = torch.cat(products, 1).double() - again[0].to(columns[0].device)
    sampled, norm, error = SampledRounding(), krylov.projection.norm, 0.0
    if probe is not None:
        length, along = _length(errors[:, -1:]), float(inner(probe[0].double(), errors[:, -1:]))
        sampled = SampledRounding(abs(along) + 2 * math.sqrt(2) * length, _MARGIN * length)
        error = length / _length(probe[0])
        norm = max(norm, _length(probe[1]) / _length(probe[0]))
    if again[1] == "float64":
        _compare_with_fresh(A, torch.cat(columns, 1), errors, again[0], norm)
    if parts:
        error = max(error, _MARGIN * math.sqrt(parts) * _length(errors[:, :1]))
    A.shown = max(A.shown, error / norm if norm else 0.0)
    krylov.eps = A.eps
    return Rounding(error, error / norm if norm else 0.0, again[1], len(columns)), sampled


def _compare_with_fresh(A: Symmetric, X: Tensor, errors: Tensor, exact: Tensor, norm: float) -> None:
    """Warns where the products of the run err by more than float32 can explain, as fresh products of X show."""
    lengths = column_inner(X, X).sqrt()
    off = float((column_inner(errors, errors).sqrt() / lengths).max())
    if A.fresh is None or A.noise() != 0 or off <= _LARGE_BESIDE_FRESH * norm:
        return
    rounding = A.fresh(X).double() - exact.to(X.device)
    usual = float((column_inner(rounding, rounding).sqrt() / lengths).max())
    if off > _TIMES_FRESH * usual + _LARGE_BESIDE_FRESH * norm:
        warnings.warn(
            f"the products of this run are off by {off / norm:.1e} of the norm, and fresh ones by {usual / norm:.1e}, "
            "as the same in float64 show: far more than rounding; the errors include that. Has something changed "
            "during the run? Another --engine may show whether the engine is at fault.",
            RuntimeWarning,
            stacklevel=2,
        )


def explained(A: Symmetric, error: AsymmetricProducts, seed: int) -> Exception:
    """The error itself, or one that names float32 where products in float64 are symmetric. Costs two of these."""
    rows = rows_of(A.n)
    X = torch.cat([gaussian(rows, _CHECK_NUMBER + i, seed=seed, dtype=A.dtype, device=A.device) for i in range(2)], 1)
    off = symmetric_in_float64(A.recompute, X)
    if off is None:
        return error
    return AsymmetricProducts(
        f"{dtype_name(A.dtype)} leaves too few digits of this loss's Hessian: its products are not symmetric, and in "
        f"float64 they are (to {off:.0e}, as tried). Use dtype=float64 (--dtype float64)."
    )


def symmetric_in_float64(recompute: Recompute | None, X: Tensor) -> float | None:
    """The relative asymmetry of two products in float64, each from a pass of its own; None where it is not as small as
    that of a symmetric operator, or cannot be measured."""
    if recompute is None:
        return None
    products = []
    for x in X.T[:2]:
        again = recompute(x[:, None])  # together they would agree even if the data change from pass to pass
        if again is None or again[1] != "float64":
            return None
        products.append(again[0].to(X.device))
    off = asymmetry(X, torch.cat(products, 1))
    return off if off <= _SYMMETRIC_IN_FLOAT64 else None


def asymmetry(X: Tensor, products: Tensor) -> float:
    """|xᵀHy − yᵀHx| for the first two random vectors, relative to about ‖H‖_F: as large as xᵀHy is."""
    X, products = X[:, :2].double(), products[:, :2].double()
    across, lengths = inner(X, products), column_inner(products, products).sqrt()
    scale = math.sqrt(float(lengths.prod()))
    return float(abs(across[0, 1] - across[1, 0])) / scale if scale else 0.0


def _expected(krylov: Krylov, coefficients: np.ndarray) -> Tensor:
    """(Q T + F Cᵀ) times the coefficients (m, k): what the products made so far say of H Q times these."""
    known = krylov.projection
    image = krylov.basis.combine(known.T @ coefficients)
    return image + times(krylov.frontier, known.coupling.T @ coefficients)


def _random_unit(krylov: Krylov, zero: Tensor, like: Tensor) -> Tensor:
    """A unit vector (n, 1) with random signs in the rows that are zero (n,) and 0 in the others."""
    numbers = [_CHECK_NUMBER + 1]
    signs = rademacher(krylov.positions, numbers, seed=krylov.seed, dtype=like.dtype, device=like.device)
    return signs.masked_fill(~zero[:, None].to(like.device), 0.0) / math.sqrt(krylov.zeros)


def _length(vector: Tensor) -> float:
    return float(column_inner(vector, vector).sqrt())
