"""What the whole run will take, from what a few products took: HVPs, seconds and memory, expected and at most.

A few products with normal vectors x show a spectrum roughly: E xᵀHx = tr H, E |Hx|² = ‖H‖_F², and ‖H‖_F² |Hx|² / |H²x|²
is about r = ‖H‖_F⁴ / ‖H²‖_F², the number of eigenvalues that make up the norm. Where these are few, the k-th eigenpair
takes as many Lanczos steps as the plan says; where they are many, it lies at the edge of a bulk, and takes about twice
as many. Probes to a relative half-width ε of the trace number N = 2 (2/ε)² ‖B‖_F² / max(tr H, ‖H‖_F)², as the variance
of one is at most 2 ‖B‖_F², where B is what the basis leaves of H: after m steps about exp(−m/r) of ‖H‖_F², and a bulk.
For the norm they are ½ (2/ε)² / r without a basis.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hvpspec.estimators.diagonal import working_bytes
from hvpspec.estimators.passes.shared_pass import least_basis, share_room
from hvpspec.krylov.basis import check_storage, peak_vectors
from hvpspec.krylov.blocks import find_blocks
from hvpspec.krylov.probes import MAX_LIVE_PROBES
from hvpspec.krylov.vectors import column_inner, inner
from hvpspec.memory import high_water
from hvpspec.operators.hessian import HessianOperator
from hvpspec.options import (
    PILOT_PROBES,
    RANK_OF_BULK,
    SMALLEST_PLANNED_RTOL,
    VERIFICATION_PRODUCTS,
    WEIGHING_PRODUCTS,
    SpectrumOptions,
    beyond_budget,
    checking_hvps,
    fewest,
    gradient_hvps,
    planned_for_blocks,
    planned_for_diagonal,
    planned_hvps,
    planned_probes,
    planned_steps,
    probes_for_bulk,
    verification_hvps,
)
from hvpspec.preflight.of_ranks import rows_of_rank, whole_vectors
from hvpspec.results.preflight import Finding, Preflight
from hvpspec.wording import counted

_SECONDS_PER_PRODUCT = 3.2e-3  # of estimators and the journal, however short the vectors, as measured on a CPU
_SECONDS_OF_SAMPLING = 0.07  # of a run with trace or norm besides, the same
_SHORT = 6000  # entries of vectors whose arithmetic takes hardly longer than calling it
_PASSES_PER_PRODUCT = 18  # over the vector itself, in inner products of two vectors with themselves
_PASSES_PER_VECTOR = 0.5  # for each basis vector that is subtracted
_COMPILER_BYTES = 120 << 20  # what tracing and compiling take besides what they keep, as measured
_DENSE_BULK_FACTOR = 20  # times the planned steps, for eigenvalues in a dense bulk, at most
_EDGE_OF_BULK_FACTOR = 2.2  # times the planned steps, for eigenvalues at the edge of a bulk, as measured
_EVEN_BULK_FACTOR = 10.0  # the same where it ends abruptly, as there most eigenvalues are about as large as the largest
_EVEN_SHARE = 0.6  # of the rows, that make up the norm then
_RANK_OF_OUTLIERS = 10.0  # eigenvalues that make up the norm: if there are more, the k-th is at the edge of a bulk
_RANK_WITHOUT_BULK = 15.0  # if there are more, a bulk has a share in the norm,
_BULK_PER_RANK = 0.1  # which grows by this with each, as measured,
_MOST_BULK = 0.6  # up to this
_FURTHER_RANK = 1.0  # of what the first steps leave, which has a few smaller outliers
_QUANTILE = 2.0  # of the intervals, roughly; a little more at worst
_TRACE_SPREAD = 1.5  # standard errors by which the trace may be smaller than estimated
_FLOAT64_COST = 2.0  # of a product in float64, compared with float32, where that was not measured
_SECOND_COLUMN = 0.6  # of its cost, where two vectors are multiplied at once
_WORKING_VECTORS = 2  # of a Lanczos step besides the basis and the product: what enters it, and what is next


@dataclass(frozen=True)
class Forecast:
    """Products and probes among them that are expected, both at most, and basis vectors that are expected."""

    hvps: int
    probes: int
    most_hvps: int
    most_probes: int
    steps: int


@dataclass(frozen=True)
class Moments:
    """What a few products show of a spectrum.

    ratio: |tr H| / ‖H‖_F. error: its standard error where no eigenvalue dominates. rank: ‖H‖_F⁴ / ‖H²‖_F², the number
    of eigenvalues that make up the norm. rows: those that are not zero.
    """

    ratio: float
    error: float
    rank: float
    rows: int

    def squared_ratio(self, fewer: float = 0.0) -> float:
        """An estimate of max(tr H, ‖H‖_F)² / ‖H‖_F², or what it is `fewer` standard errors below."""
        return max(self.ratio - fewer * self.error, 1.0) ** 2


def read_moments(X: Tensor, HX: Tensor, rank: float) -> Moments | None:
    """From X (n, p) with standard normal entries and its product; None where that is zero."""
    norm = float(inner(HX, HX).diagonal().mean())
    if not 0 < norm < math.inf:
        return None
    trace = float(inner(X, HX).diagonal().mean())
    rows = int((HX != 0).any(1).sum())
    return Moments(abs(trace) / math.sqrt(norm), math.sqrt(2 / X.shape[1]), min(max(rank, 1.0), rows), rows)


def norm_rank(HX: Tensor, Hu: Tensor) -> float:
    """‖H‖_F⁴ / ‖H²‖_F², about, from products (n, p) with normal vectors, and one with u = Hx / |Hx| for one of these.

    |Hu|² does not depend on how much of an eigenvector x has by chance, where one dominates; |Hx|² does, and is large
    for the longest one, so that its mean over all is taken.
    """
    square, again = float(column_inner(HX, HX).mean()), float(inner(Hu, Hu)[0, 0])
    return square / again if 0 < again < math.inf else 1.0


def forecast(
    n: int, options: SpectrumOptions, moments: Moments | None = None, block_sizes: tuple[int, ...] = ()
) -> Forecast:
    """How many HVPs a spectrum of an n × n matrix is expected to take, and at most.

    block_sizes: rows of each block that is asked for.
    """
    rows = n if moments is None else moments.rows
    beyond = beyond_budget(options, rows, block_sizes)
    most_beyond = beyond + min(options.diagonal_hvps, rows + PILOT_PROBES) * options.diagonal
    most_beyond -= planned_for_diagonal(options, rows)
    plan, planned = planned_hvps(options, rows, block_sizes) - beyond, planned_steps(options, rows)
    steps, further, probes = float(planned), planned_probes(options), planned_probes(options)
    others = checking_hvps(options) + verification_hvps(options, rows) + gradient_hvps(options)
    others += planned_for_blocks(options, block_sizes)
    most = math.inf if options.sampled else 0.0
    if moments is not None and options.pairs:
        steps *= _edge_of_bulk(moments)
    if moments is not None and options.sampled:
        steps, further, probes = _with_probes(steps, moments, options)
        most = _most_probes(moments, options)
    whole = max(plan, rows + 2 * PILOT_PROBES + others)  # a basis of the whole space ends the run
    ceiling = min(whole, options.max_hvps or math.inf)
    hvps = math.ceil(min(others + steps + further, ceiling))
    bulk = (_DENSE_BULK_FACTOR - 1) * planned if options.pairs else 0
    worst = math.ceil(min(max(others + planned + bulk + most, hvps), ceiling))
    basis = int(min(steps, rows, hvps))
    return Forecast(hvps + beyond, int(min(probes, hvps)), worst + most_beyond, int(min(most, worst)), basis)


def _edge_of_bulk(moments: Moments) -> float:
    """How many times the planned steps the eigenpairs take."""
    if moments.rank > max(_EVEN_SHARE * moments.rows, _RANK_OF_OUTLIERS):
        return _EVEN_BULK_FACTOR
    return min(max(moments.rank / _RANK_OF_OUTLIERS, 1.0), _EDGE_OF_BULK_FACTOR)


def _with_probes(steps: float, moments: Moments, options: SpectrumOptions) -> tuple[float, float, float]:
    """Steps until all that is left is bulk or worth probing, what follows, and the probes among that.

    steps: those that the eigenpairs take.
    """
    needed, rank = _without_basis(options, moments.squared_ratio(), moments.rank), moments.rank
    if rank >= RANK_OF_BULK:
        left = slow = needed * math.exp(-steps / rank)
    else:
        bulk = min(_BULK_PER_RANK * max(rank - _RANK_WITHOUT_BULK, 0.0), _MOST_BULK)
        rate = rank + _FURTHER_RANK
        if "trace" not in options.sampled:  # fourth powers make up the norm's variance
            bulk, rate = bulk**2, rate / 2
        least = max(rate, min(probes_for_bulk(options.rtol), needed))
        steps = max(steps, rate * math.log(max(needed / least, 1.0)))
        left = needed * math.exp(-steps / rate)
        slow = max(needed * bulk * math.exp(-steps / RANK_OF_BULK), min(probes_for_bulk(options.rtol), needed))
    probes, rank = max(left, slow, PILOT_PROBES), max(rank, RANK_OF_BULK)
    return steps, fewest(probes, rank), min(probes, rank)


def _without_basis(options: SpectrumOptions, squared_ratio: float, rank: float) -> float:
    """Probes that would be needed without a basis."""
    unit = (_QUANTILE / max(options.rtol, SMALLEST_PLANNED_RTOL)) ** 2
    return max(
        2 * unit / squared_ratio if "trace" in options.sampled else 0.0,
        unit / 2 / rank if "frobenius_norm" in options.sampled else 0.0,
    )


def _most_probes(moments: Moments, options: SpectrumOptions) -> float:
    return max(PILOT_PROBES, 1.2 * _without_basis(options, moments.squared_ratio(_TRACE_SPREAD), moments.rank / 4))


def check_room(H: HessianOperator, options: SpectrumOptions) -> tuple[int, int]:
    """How many long vectors there is room for, and how many of them for the basis. It makes no product.

    Of ranks, it is the room that one of them has for its rows. Raises InputError if a run needs more.
    """
    n, dtype = int(H.shape[0]), H.torch_dtype
    room = check_storage(options.basis_memory, options.basis_on).vectors(rows_of_rank(H), dtype, H.device)
    least = least_basis(min(options.k, n) if options.pairs else 1, min(options.block_size, n))
    capacity, _ = share_room(room, n, dtype.itemsize, least, probes=bool(options.sampled))
    return room, capacity


def _small_basis(capacity: int, steps: int) -> tuple[Finding, ...]:
    """A note where the basis will be restarted."""
    if steps <= capacity:
        return ()
    return (
        Finding(
            "basis",
            f"memory holds a basis of {counted(capacity, 'vector')}, and about {steps:,} are expected to be needed",
            "it is reduced to its best vectors when it is full, which costs further products, and no finer density can "
            "be had; raise basis_memory (--basis-memory), or keep the basis on the CPU or on disk (basis_on)",
            "note",
        ),
    )


def with_forecast(
    H: HessianOperator,
    known: Preflight,
    moments: Moments | None,
    held: int | None,
    options: SpectrumOptions,
    in_float64: float | None = None,
) -> Preflight:
    """The preflight with products, seconds and memory of the whole run, with what is done once besides its products.

    held: bytes in use after a product, besides what that itself took. in_float64: seconds of a product of the first
    batch in float64, where it is known. Of ranks, memory is that of each.
    """
    blocks = () if options.blocks is None else find_blocks(H, options.blocks)
    n, rows, itemsize = int(H.shape[0]), rows_of_rank(H), H.torch_dtype.itemsize
    plan = forecast(n, options, moments, tuple(block.size for block in blocks))
    pairs = min(options.k, n) if options.pairs else 0  # whose vectors are made in the end
    (room, capacity), so_far = check_room(H, options), high_water(H.device)
    pace = _seconds_of_an_inner_product(H)
    weighing = 0 if H.objective.loss.weighs_exactly else WEIGHING_PRODUCTS
    besides, one = VERIFICATION_PRODUCTS / H.batch_count() + weighing, known.seconds or 0.0
    again = _FLOAT64_COST * one if in_float64 is None else in_float64 * H.batch_count()
    rounding = _columns_in_float64(H, options) * again
    # Products have taken longer than the fastest one, by which an operator expects, where others use the machine.
    load = max(one / fastest, 1.0) if (fastest := H.expected_seconds(1)) > 0 else 1.0
    compiler = _COMPILER_BYTES if H.engine == "autograd" and H.device.type == "cpu" else 0

    def seconds(hvps: int, probes: int) -> float:
        steps = hvps - probes
        subtractions = steps**2 / 2 + steps * probes
        estimator = _SECONDS_OF_SAMPLING * bool(options.sampled) + hvps * _SECONDS_PER_PRODUCT
        estimator += pace * (_PASSES_PER_PRODUCT * hvps + _PASSES_PER_VECTOR * subtractions)
        return besides * one + rounding + load * (H.expected_seconds(hvps) + estimator)

    def memory(hvps: int, probes: int, further: int = 0) -> int | None:
        if held is None or known.memory is None:
            return None
        vectors = peak_vectors(hvps - probes) + 2 * min(probes, MAX_LIVE_PROBES)
        long = (max(min(vectors, room), min(hvps - probes, room) + pairs) + _WORKING_VECTORS) * rows * itemsize
        long += working_bytes(rows, itemsize) if options.diagonal else 0
        long += whole_vectors(H, options)
        run = held + known.memory + long + H.expected_saved_bytes(hvps, known.memory) + further
        return max(run, so_far or 0)

    return replace(
        known,
        findings=(*known.findings, *_small_basis(capacity, plan.steps)),
        expected_hvps=plan.hvps,
        expected_seconds=seconds(plan.hvps, plan.probes),
        expected_memory=memory(plan.hvps, plan.probes),
        most_hvps=plan.most_hvps,
        most_seconds=max(seconds(plan.most_hvps, plan.most_probes), seconds(plan.hvps, plan.probes)),
        most_memory=memory(plan.most_hvps, min(plan.most_probes, plan.most_hvps // 2), compiler),
    )


def _columns_in_float64(H: HessianOperator, options: SpectrumOptions) -> float:
    """What the products in float64 take that measure float32's rounding at the end, in the time of one of them."""
    if H.torch_dtype == torch.float64 or H.engine == "finite-difference":
        return 0.0
    columns = bool(options.pairs or options.density) + bool(options.sampled)
    return 1 + _SECOND_COLUMN if columns == 2 else float(columns)


def _seconds_of_an_inner_product(H: HessianOperator) -> float:
    """Of two long vectors with themselves, without what it takes however short they are; of short ones, 0."""
    rows = rows_of_rank(H)
    if rows < 2 * _SHORT:
        return 0.0
    X = torch.ones(rows, 2, dtype=H.torch_dtype, device=H.device)

    def seconds(vectors: Tensor) -> float:
        fastest = math.inf
        for _ in range(3):
            start = time.perf_counter()
            float(inner(vectors, vectors)[0, 0])
            fastest = min(fastest, time.perf_counter() - start)
        return fastest

    return max(seconds(X) - seconds(X[:_SHORT]), 0.0) * rows / (rows - _SHORT)
