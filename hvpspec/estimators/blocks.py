"""Trace, norm, both ends and density of diagonal blocks H_bb. The first two come from the probes of the whole matrix.

With W = [Q F] and S = [[T, C], [Cᵀ, 0]], H is W S Wᵀ + B. The first term is known, and so are its diagonal blocks K_bb;
only B_bb is estimated. For a normal probe ω, of which every block has a part ω_b, and the image y = B ω:

    tr B_bb       = E ω_bᵀ y_b
    ‖B_bb‖_F²     = E (ω_bᵀ y'_b)(ω'_bᵀ y_b)       for two different probes
    ⟨K_bb, B_bb⟩  = E ω_bᵀ K_bb y_b                 for a known K

Entries of B outside the block are multiplied by independent numbers from outside it, and average out: one set of probes
serves all blocks. (For the norm, ω_bᵀ y'_b = Σ B_ij ω_i ω'_j over i in b and all j; only terms with j in b have equal
terms in the second factor.)

The eigenvalues cannot be estimated in this way: Lanczos on the block makes products of its own. The space that gives
λ_max gives λ_min and the density as well, with some more steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hvpspec.bounds.probe_intervals import Remainder, student
from hvpspec.distributed.shard import Shard, rows_of, sharded
from hvpspec.estimators.density import SharedDensity
from hvpspec.estimators.passes.ends import Ends
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.kernels.random_vectors import probes
from hvpspec.krylov.basis import Storage
from hvpspec.krylov.blocks import BlockRows
from hvpspec.krylov.operator_view import Multiply, Symmetric
from hvpspec.krylov.probes import Grams
from hvpspec.options import SampledQuantity, SpectrumOptions
from hvpspec.results.density import Density
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.results.parts import BRACKET_WIDTH, Block, Blocks
from hvpspec.validation import Tolerance

_MAX_STEPS_PER_BLOCK = 100  # products for one λ_max
_FEW_ROWS = 50  # whose eigenvalues are all computed, where the density is asked for

_ValueAndError = tuple[float, float]


@dataclass(frozen=True)
class _BlockGrams:
    """Some probes in one block: inner products of ω_b and y_b, and ω_bᵀ K_bb y_b for each probe."""

    grams: Grams
    across: np.ndarray


class BlockProbes:
    """Collects what the blocks need from the probes of a pass: small matrices only."""

    def __init__(self, shared: SharedPass, blocks: Sequence[BlockRows]) -> None:
        self.shared = shared
        self.blocks = blocks
        self._own = [block.within(rows_of(shared.A.n)) for block in blocks]  # rows that this rank has
        self._basis_grams: tuple[int, list[np.ndarray]] = (-1, [])  # at which size of the basis, and the matrices
        if blocks:
            shared.gather = self._gather

    def estimates(self, tolerance: Tolerance) -> list[tuple[Estimate, Estimate]]:
        """Trace and norm of each block; no HVP."""
        shared = self.shared
        pool, known = shared.pool, shared.krylov.projection
        gathered: list[list[_BlockGrams]] = list(pool.gathered)
        if pool.numbers:
            gathered.append(self._gather(pool.numbers, pool.images))
        S, rounding = self._known(), known.sum_error(shared.krylov.eps, known.norm)
        rounding += max(shared.sampled_rounding.trace, shared.sampled_rounding.norm)
        found = []
        for index, (block, G) in enumerate(zip(self.blocks, self._grams(), strict=True)):
            SG = S @ G
            trace, squares = float(np.trace(SG)), float((SG * SG.T).sum())
            if shared.dimension == 0:
                both = (trace, 0.0), (math.sqrt(max(squares, 0.0)), 0.0)
            else:
                pieces = [entry[index] for entry in gathered]
                both = _trace_and_norm(pieces, block.size, trace, squares, tolerance.confidence)
            norm = 0.0 if math.isnan(both[1][0]) else both[1][0]
            found.append((
                self._estimate(both[0], rounding, tolerance, norm), self._estimate(both[1], rounding, tolerance, 0.0)
            ))  # fmt: skip
        return found

    def _estimate(self, found: _ValueAndError, rounding: float, tolerance: Tolerance, norm: float) -> Estimate:
        shared, value, error = self.shared, found[0], found[1] + rounding
        fine = shared.dimension == 0 or error <= tolerance.allowed(value, norm)
        relative_to = tolerance.relative_to(value, norm)
        return Estimate(value, error, tolerance.confidence, fine, shared.hvps, shared.method, relative_to)

    def _known(self) -> np.ndarray:
        known = self.shared.krylov.projection
        p = known.coupling.shape[1]
        return np.block([[known.T, known.coupling], [known.coupling.T, np.zeros((p, p))]])

    def _grams(self) -> list[np.ndarray]:
        """W_bᵀ W_b of each block, with W = [Q F]; computed once for each size of the basis."""
        krylov = self.shared.krylov
        Q, F = krylov.basis.matrix, krylov.frontier
        if self._basis_grams[0] != krylov.m:
            grams = []
            for block in self._own:
                QQ, FF = block.inner(Q, Q).to(F.device), block.inner(F, F)
                QF = block.inner(Q, F)
                grams.append(torch.cat([torch.cat([QQ, QF], 1), torch.cat([QF.T, FF], 1)]).cpu().numpy())
            self._basis_grams = (krylov.m, grams)
        return self._basis_grams[1]

    def _gather(self, numbers: Sequence[int], images: Tensor) -> list[_BlockGrams]:
        krylov = self.shared.krylov
        Q, F = krylov.basis.matrix, krylov.frontier
        drawn = probes(krylov.positions, numbers, seed=krylov.seed, dtype=images.dtype, device=images.device)
        S, found = self._known(), []
        for block in self._own:
            small = [block.inner(a, b) for a, b in ((drawn, drawn), (drawn, images), (images, images))]
            known = [torch.cat([block.inner(Q, V), block.inner(F, V)]) for V in (drawn, images)]
            ww, wy, yy, Ww, Wy = np.split(
                torch.cat([*small, *known]).cpu().numpy(), np.cumsum([len(part) for part in [*small, *known]])[:-1]
            )
            found.append(_BlockGrams(Grams(ww, wy, yy), (Ww * (S @ Wy)).sum(0)))
        return found


def _trace_and_norm(
    pieces: Sequence[_BlockGrams], size: int, known: float, squares: float, confidence: float
) -> tuple[_ValueAndError, _ValueAndError]:
    """Trace and norm of a block, each with its half-width. known, squares: tr K_bb and ‖K_bb‖_F²."""
    unknown = (math.nan, math.inf)
    grams = tuple(piece.grams for piece in pieces)
    count = sum(entry.count for entry in grams)
    if count == 0:
        return unknown, unknown
    rest, half = Remainder(grams, size).trace(confidence)
    trace = (known + rest, half)
    if count < 3:
        return trace, unknown
    # B_bb = (B_bb − c I) + c I: with c the mean diagonal entry, the estimate from the probes has less variance.
    c = rest / size
    quadratic = np.concatenate([np.diag(entry.wy) for entry in grams])
    across = np.concatenate([piece.across for piece in pieces])
    pairs, partners = [], []
    for entry in grams:
        centred = entry.wy - c * entry.ww
        products = centred * centred.T
        pairs.append(products.sum(1) - np.diag(products))
        partners.append(np.full(len(products), len(products) - 1.0))
    pair, partner = np.concatenate(pairs), np.concatenate(partners)
    if partner.sum() <= 2 * partner.max():
        return trace, unknown
    linear = 2 * across + 2 * c * quadratic
    constant = squares - c**2 * size
    total = constant + float(linear.mean()) + float(pair.sum() / partner.sum())
    # The jackknife: the estimate without each probe in turn (Efron and Stein 1981, doi:10.1214/aos/1176345462).
    without = (linear.sum() - linear) / (count - 1) + (pair.sum() - 2 * pair) / (partner.sum() - 2 * partner)
    deviation = math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    half = student(confidence, count - 1) * deviation
    least = max(known + rest, -(known + rest)) / math.sqrt(size)  # |tr H_bb| ≤ √size ‖H_bb‖_F
    norm = math.sqrt(max(total, least**2, 0.0))
    upper, lower = math.sqrt(max(total, 0.0) + half), math.sqrt(max(total - half, 0.0))
    return trace, (norm, max(upper - norm, norm - lower))


@dataclass(frozen=True)
class _Own:
    """What products with one block itself have shown, and how many these were: for λ_max, and beyond that."""

    largest: Bracket | None = None
    smallest: Bracket | None = None
    density: Density | None = None
    for_largest: int = 0
    beyond: int = 0


class OwnSpace:
    """The Krylov space of one diagonal block: λ_max, and with further steps λ_min and the density.

    rounding: what products of the whole matrix have shown to be their error, which may be large for a small block.
    """

    def __init__(
        self, A: Symmetric, block: BlockRows, options: SpectrumOptions, storage: Storage, rounding: float
    ) -> None:  # fmt: skip
        own = shard_of_block(A, block)
        masked = Symmetric(block.size, A.dtype, A.device, masking(A, block, own), decide=A.decide, shard=own)
        with sharded(own):
            self._shared = SharedPass(
                masked, seed=options.seed, storage=storage, probes=False, find_zero=options.block_density
            )
            self._ends = Ends(self._shared, options.confidence, rounding=rounding)
        self._options = options

    def largest(self, budget: float) -> _Own:
        """λ_max, to BRACKET_WIDTH; nothing where the budget does not allow a single product."""
        with sharded(self._shared.A.shard):
            return self._largest(budget)

    def _largest(self, budget: float) -> _Own:
        found: Bracket | None = None
        for _ in self._ends.steps(min(budget, _MAX_STEPS_PER_BLOCK), 1):
            found = self._ends.bracket(1)
            if self._ends.within(1, BRACKET_WIDTH * max(abs(found.lower), abs(found.upper))):
                break
        if self._shared.hvps:
            found = self._ends.bracket(1)
        return _Own(found, for_largest=self._shared.hvps)

    def whole(self, known: _Own, budget: float) -> Iterator[_Own]:
        """The density, and λ_min to BRACKET_WIDTH of the block's norm, with so many products more."""
        found = self._whole(known, budget)
        while True:
            with sharded(self._shared.A.shard):  # not where this is waiting: others' vectors are not the block's
                if (latest := next(found, None)) is None:
                    return
            yield latest

    def _whole(self, known: _Own, budget: float) -> Iterator[_Own]:
        shared, ends, before = self._shared, self._ends, self._shared.hvps

        def left() -> float:
            return before + budget - shared.hvps

        def found(density: Density) -> _Own:
            beyond = shared.hvps - before
            return replace(known, largest=ends.bracket(1), smallest=ends.bracket(-1), density=density, beyond=beyond)

        density = SharedDensity(shared, self._options.tolerance, sums=False)
        for latest in density.found(left, None):
            yield found(latest)
        if density.rest is None:
            return
        fine, few = density.rest.converged, shared.A.n <= _FEW_ROWS

        def done() -> bool:
            return shared.dimension == 0 or (not few and ends.within(-1, BRACKET_WIDTH * ends.norm))

        for _ in () if done() else ends.steps(before + budget, -1):
            if done():
                break
        if density.grown:
            yield found(density.read(fine))


def shard_of_block(A: Symmetric, block: BlockRows) -> Shard | None:
    """Which rows of a block's own vectors this rank has, as many as others; all where there are fewer than ranks."""
    return Shard(A.shard.group, block.size) if A.shard and block.size >= A.shard.group.size else None


def masking(A: Symmetric, block: BlockRows, own: Shard | None) -> Multiply:
    """What multiplies with the diagonal block.

    Of ranks, each gives and gets its rows of the block's vectors, and in between has its rows of the whole ones.
    """
    if A.shard is None:
        return lambda X: block.take(A @ block.embed(X, A.n))
    shard = A.shard
    here, numbers = block.within(shard.rows), block.numbered_within(shard.rows)

    def multiply(X: Tensor, /) -> Tensor:
        given = X if own is None else own.whole(X)
        with sharded(shard):
            product = A @ here.embed(numbers.take(given), len(shard.rows))
        found = numbers.embed(here.take(product), block.size)
        return shard.group.added(found.contiguous()) if own is None else own.added_part(found)

    return multiply


def read_blocks(
    probes: BlockProbes,
    tolerance: Tolerance,
    *,
    quantities: Sequence[SampledQuantity],
) -> tuple[Block, ...]:
    """What the probes say of all blocks; quantities: which of trace and norm are asked for."""
    found = []
    estimates = probes.estimates(tolerance) if quantities else [(None, None)] * len(probes.blocks)
    for block, (trace, norm) in zip(probes.blocks, estimates, strict=True):
        trace, norm = trace if "trace" in quantities else None, norm if "frobenius_norm" in quantities else None
        found.append(Block(block.name, block.size, trace, norm))
    return tuple(found)


def measured_blocks(
    probes: BlockProbes, options: SpectrumOptions, storage: Storage, left: Callable[[], float]
) -> Iterator[tuple[float | None, Blocks]]:
    """The products that are still to come, if that can be estimated, and the blocks, as they become known.

    left: products that may be made now; they are divided equally among the blocks whose largest eigenvalue is to come.
    The products of densities have a budget of their own, which is divided in the same way; they are not among those to
    come, and those that were made count against these.
    """
    shared, count = probes.shared, len(probes.blocks)
    before, sampled = shared.hvps, read_blocks(probes, options.tolerance, quantities=options.sampled)
    own = [_Own()] * count

    def known() -> Blocks:
        found = tuple(
            replace(block, largest=each.largest, smallest=each.smallest, density=each.density)
            for block, each in zip(sampled, own, strict=True)
        )
        return Blocks(found, before, for_largest(), beyond())

    def for_largest() -> int:
        return sum(each.for_largest for each in own)

    def beyond() -> int:
        return sum(each.beyond for each in own)

    yield None, known()
    rounding = shared.A.shown * shared.krylov.projection.norm
    for i, block in enumerate(probes.blocks if options.pairs or options.block_density else ()):
        space, remaining = OwnSpace(shared.A, block, options, storage, rounding), count - i
        if options.pairs:
            own[i] = space.largest((left() + beyond()) / remaining)
        if options.block_density:
            yield None, known()
            for latest in space.whole(own[i], (options.block_hvps - beyond()) // remaining):
                own[i] = latest
                yield None, known()
        yield (remaining - 1) * for_largest() / (i + 1) - beyond(), known()
