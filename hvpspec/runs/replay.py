"""The figures of a spectrum computed again: from the small matrices that its file holds, and from fresh products.

The small matrices (T, C, inner products of probes) fix the eigenvalues, trace, norm, density and conditioning: a figure
that does not follow from them was not computed by this run. Two products tie the matrices to the operator. With the
start vector g of the recorded seed, gᵀHg and ‖Hg‖ are entries of T and C; the next Lanczos vector gives two more. Where
there is no basis, the first two probes take its place.

What folds of the batches, blocks, single batches, the diagonal and a refinement have added has no such record; that
these are as they were written, the checksum of the figures shows. The gradient has a file of its own
(`gradient_again.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.bounds.quadrature import read_density
from hvpspec.bounds.rounding import SampledRounding
from hvpspec.bounds.zero_rows import density_with_zeros
from hvpspec.distributed.shard import added, rows_of, sharded
from hvpspec.errors import InputError
from hvpspec.estimators.condition_figures import read_condition
from hvpspec.estimators.eigsh import Wanted, current, with_zero_rows
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.kernels.random_vectors import gaussian, probes
from hvpspec.krylov.lanczos import normalised, outside_of
from hvpspec.krylov.operator_view import ROUNDOFFS_PER_PRODUCT, Symmetric
from hvpspec.krylov.vectors import column_inner, inner
from hvpspec.krylov.witness import restored, restored_grams
from hvpspec.options import SpectrumOptions
from hvpspec.results.codec import encode
from hvpspec.results.spectrum import Spectrum

_SHARE_OF_ERROR = 0.25  # by which a figure computed again may differ: other libraries round small matrices otherwise
_RELATIVE = 1e-5  # the same for numbers without an error, relative to the largest in their list
_JUMP = 0.1  # the same for errors and residuals, relative to themselves
_LEAST_STEP = 1e-6  # relative length of what the first product adds: less does not give the second vector
_ROUNDOFFS = 20.0  # of the largest eigenvalue, in double precision: what differs in any case
_PRODUCTS_ROUNDOFFS = 4.0  # times what estimators allow a product, by which two of them may differ
# Of the moment, of the data's folds, and of products that are not in the record.
_NOT_REPLAYED = ("hvps", "seconds", "data_error", "population", "population_reason", "reasons", "converged")
_REFINED = (
    "refined", "nearest_zero", "nearest_range", "kappa", "digits_lost", "finite_difference", "gradient_descent",
    "conjugate_gradients",
)  # fmt: skip


def contradictions(found: Spectrum, options: SpectrumOptions, dtype: torch.dtype) -> tuple[tuple[str, ...], list[str]]:
    """The figures that were computed again, and for each that does not follow from the small matrices a sentence."""
    try:
        with np.errstate(all="ignore"):
            return _compared(found, options, dtype)
    except (
        ValueError,
        ArithmeticError,
        LookupError,
        AssertionError,
        RuntimeError,
    ) as error:  # whatever a file may hold
        return (), [f"the recorded Lanczos matrices are those of no run ({type(error).__name__})"]


def _compared(found: Spectrum, options: SpectrumOptions, dtype: torch.dtype) -> tuple[tuple[str, ...], list[str]]:
    shared = _restored(found, options, dtype)
    again = _figures(shared, found, options)
    # The density may have been read before the rounding of the probes was measured.
    if "density" in again and list(_differences(found, again, ("density",))):
        shared.sampled_rounding = SampledRounding()
        again["density"] = _figures(shared, found, options)["density"]
    return tuple(again), list(_differences(found, again, tuple(again)))


class _Grams:
    """Stands for the pool of probes, of which only inner products are known."""

    numbers: tuple[int, ...] = ()

    def __init__(self, found: Spectrum) -> None:
        assert found.lanczos is not None
        self._grams = restored_grams(found.lanczos.probes or ())
        self.count = sum(gram.count for gram in self._grams)

    def grams(self) -> list[Any]:
        return self._grams


class _NoFolds:
    """Stands for the spread over folds of the data, which is not in the record."""

    def trace(self) -> None:
        return None

    def frobenius_norm(self, norm: float) -> None:
        return None

    def eigenvalues(self, coefficients: np.ndarray) -> None:
        return None

    def population(self, *_: Any) -> tuple[None, None]:
        return None, None


def _no_products(X: Tensor, /) -> Tensor:
    raise RuntimeError("figures are computed again without products")


def _restored(found: Spectrum, options: SpectrumOptions, dtype: torch.dtype) -> SharedPass:
    """The pass as it was at its end, without vectors."""
    kept = found.lanczos
    assert kept is not None
    semidefinite = bool(found.semidefinite)
    A = Symmetric(
        found.parameters, dtype, torch.device("cpu"), _no_products, found.hvps, semidefinite=semidefinite
    )  # fmt: skip
    A.shown = kept.last_roundoff * ROUNDOFFS_PER_PRODUCT
    shared: Any = SharedPass.__new__(SharedPass)
    shared.A, shared._already, shared.rounding = A, 0, found.rounding
    shared.krylov = restored(kept, found.parameters, options.seed, semidefinite=semidefinite)
    shared.pool, shared.spread = _Grams(found), _NoFolds()
    shared.sampled_rounding = SampledRounding(*kept.sampled_rounding)
    whole: SharedPass = shared
    return whole


def _figures(shared: SharedPass, found: Spectrum, options: SpectrumOptions) -> dict[str, Any]:
    """The figures that follow, by the names of their fields."""
    krylov = shared.krylov
    again: dict[str, Any] = {}
    assert found.lanczos is not None
    if found.eigenpairs is not None and krylov.m:
        wanted = Wanted(options.k, options.which, options.tol)
        pairs = current(shared, wanted, options.confidence, rest=found.lanczos.rest)[0]
        again["eigenpairs"] = with_zero_rows(krylov, pairs, wanted)
    if found.lanczos.probes is None:
        return again
    for name in options.sampled:
        if getattr(found, name) is not None:
            again[name] = shared.estimate(name, options.tolerance)
    if found.density is not None and krylov.m:
        sums = shared.sums(options.confidence) if options.sampled else None
        density = read_density([krylov], options.confidence, found.density.hvps, sums)
        again["density"] = density_with_zeros(density, krylov.zeros)
        if found.condition is not None:
            again["condition"] = read_condition(
                shared, density, confidence=options.confidence, damping=options.damping, pairs=found.eigenpairs
            )
    return again


def _differences(found: Spectrum, again: dict[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    """The first number of each figure that differs."""
    assert found.lanczos is not None
    scale = float(np.abs(found.lanczos.relation.T.values).max(initial=0.0))
    floor = _ROUNDOFFS * float(np.finfo(float).eps) / 2 * scale
    refined = found.condition is not None and (found.condition.refined or "refined" in found.condition.reasons)
    left_out = {*_NOT_REPLAYED, *(_REFINED if refined else ())}
    for name in names:
        measured = name == "eigenpairs" and found.eigenpairs is not None and found.eigenpairs.verified
        share, more = (1.0, {"residual", "error"}) if measured else (_SHARE_OF_ERROR, set())
        recorded, computed = (dict(_numbers(encode(of), left_out | more)) for of in (getattr(found, name), again[name]))
        for path, (value, error, size) in recorded.items():
            other, own, _ = computed.get(path, (None, error, 0.0))
            error = min(error, own)  # a bracket with one end moved outwards has a larger one
            allowed = max(floor, share * error if math.isfinite(error) else _RELATIVE * size)
            if not (value is other if value is None or other is None else abs(value - other) <= allowed):
                shown = "nothing" if other is None else f"{other:.10g}"
                where = path if name == "eigenpairs" else f"{name}.{path}"
                yield f"{where} is {_shown(value)}, and the recorded Lanczos matrices give {shown}"
                break


def _shown(value: float | None) -> str:
    return "null" if value is None else f"{value:.10g}"


def _numbers(
    entry: Any, left_out: set[str], path: str = "", error: float = math.inf, size: float = 0.0
) -> Iterator[tuple[str, tuple[float | None, float, float]]]:
    """The numbers of a figure by their paths, each with its error (infinite where it has none) and its size."""
    if isinstance(entry, dict):
        own = _error_of(entry)
        for key, part in entry.items():
            if key in left_out:
                continue
            if key in ("error", "residual") and isinstance(part, float):  # at thresholds, an error may jump
                yield f"{path}{key}", (part, _JUMP * part, 0.0)
            else:
                yield from _numbers(part, left_out, f"{path}{key}", own)
    elif isinstance(entry, list):
        sizes = [abs(part) for part in entry if isinstance(part, int | float)]
        for number, part in enumerate(entry):
            inside = f"{path}[{number}]." if isinstance(part, dict) else f"{path}[{number}]"
            yield from _numbers(part, left_out, inside, math.inf, max(sizes, default=0.0))
    elif not isinstance(entry, bool | str):
        yield path, (entry, error, max(size, abs(entry or 0.0)))


def _error_of(entry: dict[str, Any]) -> float:
    """The error that a figure has; infinite where it has none."""
    if isinstance(error := entry.get("error"), int | float):
        return float(error)
    low, high = entry.get("lower"), entry.get("upper")
    return (high - low) / 2 if isinstance(low, int | float) and isinstance(high, int | float) else math.inf


@dataclass(frozen=True)
class Comparison:
    """Two fresh products compared with the record: by how much they differ, and by how much they may."""

    difference: float
    allowed: float

    @property
    def agree(self) -> bool:
        return bool(self.difference <= self.allowed)


def compared_products(found: Spectrum, A: Symmetric, seed: int) -> Comparison:
    """Two products with the vectors that the run began with; where ranks share them, to be called on all."""
    kept = found.lanczos
    assert kept is not None
    start = kept.of_start or kept.relation
    with sharded(A.shard):
        return _with_probes(found, A, seed) if start.T.shape[0] == 0 else _with_steps(found, A, seed)


def _with_steps(found: Spectrum, A: Symmetric, seed: int) -> Comparison:
    """The first two vectors of the Lanczos basis: rows of [T C], and their lengths."""
    kept = found.lanczos
    assert kept is not None
    start = kept.of_start or kept.relation
    T, C = start.T.dense(), start.C.dense()
    g = normalised(gaussian(rows_of(A.n), 0, seed=seed, dtype=A.dtype, device=A.device))
    image = A @ g
    rounding = _rounding(A, g, image)
    zero, growth = (image == 0).all(1), kept.start_growth
    if int(added(zero.sum()[None])[0]) < kept.zero_rows:
        return Comparison(math.inf, 0.0)
    if growth is None:  # of an older version
        growth = 1 / _length(outside_of(zero, g)) if kept.zero_rows else 1.0
    width = start.segments[0][1] if start.segments else 1
    # The start was 0 in rows in which its image is 0, so that it had another length: the products are the same.
    slope = growth**2 * _dot(g, image)
    measured = [slope, growth * _length(image)]
    recorded = [T[0, 0], math.hypot(*T[:, 0], *C[0])]
    scale = recorded[1]
    if width == 1 and len(T) > 1 and T[1, 0] > _LEAST_STEP * scale:
        following = (image - g * slope) * (growth / T[1, 0])
        second = A @ following
        rounding += _rounding(A, following, second)
        measured += [_dot(following, second), _length(second)]
        recorded += [T[1, 1], math.hypot(*T[:, 1], *C[1])]
        scale += recorded[-1] * (1 + scale / T[1, 0])  # an error of the first image turns the second vector
    return _comparison(measured, recorded, A, kept.last_roundoff, rounding, scale)


def _with_probes(found: Spectrum, A: Symmetric, seed: int) -> Comparison:
    """The first two probes, where there is no basis that they would be orthogonal to."""
    kept = found.lanczos
    assert kept is not None
    if not kept.probes:
        raise InputError("the run has made no product, so that there is nothing to compare with")
    first = restored_grams(kept.probes[:1])[0]
    many = min(2, first.count)
    X = probes(rows_of(A.n), range(many), seed=seed, dtype=A.dtype, device=A.device)
    Y = A @ X
    wy, yy = inner(X, Y).cpu().numpy(), inner(Y, Y).cpu().numpy()
    measured = [*wy.ravel(), *np.sqrt(np.diag(yy))]
    recorded = [*first.wy[:many, :many].ravel(), *np.sqrt(np.diag(first.yy)[:many])]
    length = float(np.sqrt(np.diag(first.ww)[:many].max()))
    scale = max(float(recorded[-1]), float(recorded[-many])) * max(length, 1.0)
    return _comparison(measured, recorded, A, kept.last_roundoff, _rounding(A, X, Y) * length, scale)


def _comparison(
    measured: list[float], recorded: list[float], A: Symmetric, roundoff: float, rounding: float, scale: float
) -> Comparison:
    """rounding: of these products, as measured. scale: of the numbers that are compared."""
    difference = max(abs(a - b) for a, b in zip(measured, recorded, strict=True))
    allowed = _PRODUCTS_ROUNDOFFS * (ROUNDOFFS_PER_PRODUCT * max(A.eps, roundoff) * scale + rounding)
    return Comparison(difference, allowed)


def _rounding(A: Symmetric, X: Tensor, Y: Tensor) -> float:
    """The length of what products in another precision differ by; 0 where that is not measured."""
    again = None if A.recompute is None else A.recompute(X)
    return 0.0 if again is None else _length(Y.double() - again[0].to(Y.device).double())


def _dot(a: Tensor, b: Tensor) -> float:
    return float(column_inner(a, b)[0])


def _length(vectors: Tensor) -> float:
    return float(column_inner(vectors, vectors).max().sqrt())
