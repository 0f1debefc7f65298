"""Trace, Frobenius norm and λ_max of diagonal blocks H_bb. Traces and norms come from the probes of the whole matrix.

With W = [Q F] and S = [[T, C], [Cᵀ, 0]], H is W S Wᵀ + B. The first term is known, and so are its diagonal blocks K_bb;
only B_bb is estimated. For a normal probe ω, of which every block has a part ω_b, and the image y = B ω:

    tr B_bb       = E ω_bᵀ y_b
    ‖B_bb‖_F²     = E (ω_bᵀ y'_b)(ω'_bᵀ y_b)       for two different probes
    ⟨K_bb, B_bb⟩  = E ω_bᵀ K_bb y_b                 for a known K

Entries of B outside the block are multiplied by independent numbers from outside it, and average out: one set of probes
serves all blocks. (For the norm, ω_bᵀ y'_b = Σ B_ij ω_i ω'_j over i in b and all j; only terms with j in b have equal
terms in the second factor.)

The largest eigenvalue cannot be estimated in this way: Lanczos on the block makes products of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvpspec.bounds.eigenvalues import Exclusion, bracket
from hvpspec.bounds.probe_intervals import Remainder, student
from hvpspec.distributed.shard import part, rows_of, sharded, whole
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.krylov.basis import Storage
from hvpspec.krylov.blocks import BlockRows
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.krylov.probes import Grams
from hvpspec.krylov.vectors import probes
from hvpspec.options import SampledQuantity, SpectrumOptions
from hvpspec.results.blocks import BRACKET_WIDTH, Block, Blocks
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.validation import Tolerance

_MAX_STEPS_PER_BLOCK = 100  # products for one λ_max

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


def largest_of_block(
    A: Symmetric, block: BlockRows, *, seed: int, storage: Storage, confidence: float, budget: float, rounding: float
) -> Bracket | None:
    """λ_max of one diagonal block by Lanczos, to BRACKET_WIDTH; None if the budget does not allow a single product.

    rounding: what products of the whole matrix have shown to be their error, which may be large for a small block.
    The lower end is certain, the upper one holds with probability `confidence`.
    """

    def multiply(X: Tensor, /) -> Tensor:
        with sharded(A.shard):  # of ranks, all have the block's vectors as a whole
            return block.take(whole(A @ part(block.embed(X, A.n))))

    masked = Symmetric(block.size, A.dtype, A.device, multiply, decide=A.decide)
    with sharded(None):
        return _largest(SharedPass(masked, seed=seed, storage=storage, probes=False), confidence, budget, rounding)


def _largest(shared: SharedPass, confidence: float, budget: float, rounding: float) -> Bracket | None:
    found: Bracket | None = None
    while shared.hvps < min(budget, _MAX_STEPS_PER_BLOCK, shared.A.n):
        shared.extend(1, lambda values, count: np.argsort(-values, kind="stable")[:count])
        if shared.krylov.undisturbed is not None:
            break  # after a restart the upper end improves no more
        ritz = shared.krylov.ritz()
        found = bracket(ritz, Exclusion.of(shared.krylov), 1, confidence)
        enough = BRACKET_WIDTH * max(abs(found.lower), abs(found.upper))
        # A start with a small component in the eigenvector can make a bracket narrow too early; then the residual is
        # not small.
        if found.upper - found.lower <= enough and ritz.residuals[-1] <= enough:
            break
    return found and Bracket(found.lower - rounding, found.upper + rounding, found.confidence)


def read_blocks(
    probes: BlockProbes,
    tolerance: Tolerance,
    *,
    quantities: Sequence[SampledQuantity],
    largest: Sequence[Bracket | None],
) -> tuple[Block, ...]:
    """The results of all blocks; quantities: which of trace and norm are asked for."""
    found = []
    estimates = probes.estimates(tolerance) if quantities else [(None, None)] * len(probes.blocks)
    for block, (trace, norm), end in zip(probes.blocks, estimates, largest, strict=True):
        trace, norm = trace if "trace" in quantities else None, norm if "frobenius_norm" in quantities else None
        found.append(Block(block.name, block.size, trace, norm, end))
    return tuple(found)


def measured_blocks(
    probes: BlockProbes, options: SpectrumOptions, storage: Storage, left: Callable[[], float]
) -> Iterator[tuple[float | None, Blocks]]:
    """The products that are still to come, if that can be estimated, and the blocks, as they become known.

    left: products that may be made now; they are divided equally among the blocks whose largest eigenvalue is to come.
    """
    shared, count = probes.shared, len(probes.blocks)
    before = shared.hvps
    largest: list[Bracket | None] = [None] * count

    def known() -> Blocks:
        found = read_blocks(probes, options.tolerance, quantities=options.sampled, largest=largest)
        return Blocks(found, before, shared.hvps - before)

    yield None, known()
    for i, block in enumerate(probes.blocks if options.pairs else ()):
        remaining = count - i
        largest[i] = largest_of_block(
            shared.A, block, seed=options.seed, storage=storage, confidence=options.confidence,
            budget=left() / remaining, rounding=shared.A.shown * shared.krylov.projection.norm,
        )  # fmt: skip
        yield (remaining - 1) * (shared.hvps - before) / (i + 1), known()
