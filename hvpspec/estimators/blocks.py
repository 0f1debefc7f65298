"""Trace, Frobenius norm and λ_max of diagonal blocks H_bb. Traces and norms come from the probes of the whole matrix.

With W = [Q F] and S = [[T, C], [Cᵀ, 0]], H is W S Wᵀ + B. The first part is known, in each block as well: what is
estimated is B_bb. For the signs ω of a probe, which every block has a part of, and the image y = B ω:

    tr B_bb       = E ω_bᵀ y_b
    ‖B_bb‖_F²     = E (ω_bᵀ y'_b)(ω'_bᵀ y_b)       for two different probes
    ⟨K_bb, B_bb⟩  = E ω_bᵀ K_bb y_b                 for a known K

Entries of B outside the block meet signs from outside once, and average out: one set of probes serves all blocks. (For
the norm, ω_bᵀ y'_b = Σ B_ij ω_i ω'_j over i in b and all j, and only terms with j in b, too, meet their equals in the
second factor.)

The largest eigenvalue has no such road: Lanczos on the block takes products of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from hvpspec.bounds.eigenvalues import Exclusion, bracket
from hvpspec.bounds.probe_intervals import Remainder
from hvpspec.estimators.shared_pass import Figure, OnePass
from hvpspec.krylov.basis import Storage
from hvpspec.krylov.blocks import Group
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.krylov.probes import Grams
from hvpspec.krylov.vectors import inner, rademacher
from hvpspec.results.blocks import BRACKET_WIDTH, Block
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.validation import Tolerance

_STEPS = 100  # the most products for one λ_max


@dataclass(frozen=True)
class _Seen:
    """What some probes tell of one block: inner products of ω_b and y_b, and ω_bᵀ K_bb y_b for each probe."""

    grams: Grams
    across: np.ndarray


class BlockProbes:
    """Gathers from the probes of a pass what its blocks need. Costs memory for the small matrices alone."""

    def __init__(self, one: OnePass, groups: Sequence[Group]) -> None:
        self._one = one
        self.groups = groups
        self._grams_of: tuple[int, list[np.ndarray]] = (-1, [])
        if groups:
            one.pool.gather = self._see

    def estimates(self, tolerance: Tolerance) -> list[tuple[Estimate, Estimate]]:
        """Trace and norm of each block; no HVP."""
        one = self._one
        pool, krylov = one.pool, one.krylov
        seen: list[list[_Seen]] = list(pool.gathered)
        if pool.numbers:
            seen.append(self._see(pool.numbers, pool.images))
        S, rounding = self._known(), 16 * krylov.eps * math.sqrt(1 + krylov.m) * krylov.projection.norm
        found = []
        for index, (group, G) in enumerate(zip(self.groups, self._grams(), strict=True)):
            pieces = [entry[index] for entry in seen]
            SG = S @ G
            known, squares = float(np.trace(SG)), float((SG * SG.T).sum())
            off = rounding + float(np.linalg.norm(krylov.projection.defects))
            if one.dimension == 0:
                trace, norm = (known, off), (math.sqrt(max(squares, 0.0)), off)
            else:
                trace, norm = _interval(pieces, group.size, known, squares, tolerance.confidence)
                trace, norm = (trace[0], trace[1] + off), (norm[0], norm[1] + off)
            method = "exact" if one.dimension == 0 else "krylov" if krylov.m else "hutchinson"
            scale = 0.0 if math.isnan(norm[0]) else norm[0]
            estimates = []
            for value, error, least in ((*trace, scale), (*norm, 0.0)):
                fine = one.dimension == 0 or error <= tolerance.allowed(value, least)
                relative_to = "frobenius_norm" if abs(value) < least else "value"
                estimates.append(Estimate(value, error, tolerance.confidence, fine, one.hvps, method, relative_to))
            found.append((estimates[0], estimates[1]))
        return found

    def _known(self) -> np.ndarray:
        known = self._one.krylov.projection
        p = known.coupling.shape[1]
        return np.block([[known.T, known.coupling], [known.coupling.T, np.zeros((p, p))]])

    def _rows(self, group: Group) -> Tensor:
        """W_b: shape (size, m + p), on the device."""
        krylov = self._one.krylov
        frontier = group.take(krylov.frontier)
        return torch.cat([group.take(krylov.basis.matrix).to(frontier.device), frontier], 1)

    def _grams(self) -> list[np.ndarray]:
        """W_bᵀ W_b of each block; kept while the basis stays the same."""
        m = self._one.krylov.m
        if self._grams_of[0] != m:
            grams = []
            for group in self.groups:
                rows = self._rows(group)
                grams.append(inner(rows, rows).cpu().numpy())
            self._grams_of = (m, grams)
        return self._grams_of[1]

    def _see(self, numbers: Sequence[int], images: Tensor) -> list[_Seen]:
        krylov = self._one.krylov
        signs = rademacher(krylov.n, numbers, seed=krylov.seed, dtype=images.dtype, device=images.device)
        S, found = self._known(), []
        for group in self.groups:
            omega, y, rows = group.take(signs), group.take(images), self._rows(group)
            small = [
                inner(a, b).cpu().numpy() for a, b in ((omega, omega), (omega, y), (y, y), (rows, omega), (rows, y))
            ]
            found.append(_Seen(Grams(*small[:3]), (small[3] * (S @ small[4])).sum(0)))
        return found


def _interval(
    pieces: Sequence[_Seen], size: int, known: float, squares: float, confidence: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Trace and norm of a block, each with its half-width. known, squares: tr K_bb and ‖K_bb‖_F²."""
    grams = tuple(piece.grams for piece in pieces)
    count = sum(entry.count for entry in grams)
    if count == 0:
        return (math.nan, math.inf), (math.nan, math.inf)
    rest, half = Remainder(grams, size).trace(confidence)
    if count < 3:
        return (known + rest, half), (math.nan, math.inf)
    # B_bb = (B_bb − c I) + c I: with c its mean diagonal entry, signs meet less of what they cannot tell apart.
    c = rest / size
    signs = np.concatenate([np.diag(entry.wy) for entry in grams])
    across = np.concatenate([piece.across for piece in pieces])
    pairs, partners = [], []
    for entry in grams:
        centred = entry.wy - c * entry.ww
        products = centred * centred.T
        pairs.append(products.sum(1) - np.diag(products))
        partners.append(np.full(len(products), len(products) - 1.0))
    pair, partner = np.concatenate(pairs), np.concatenate(partners)
    if partner.sum() <= 2 * partner.max():
        return (known + rest, half), (math.nan, math.inf)
    linear = 2 * across + 2 * c * signs
    constant = squares - c**2 * size
    total = constant + float(linear.mean()) + float(pair.sum() / partner.sum())
    # The jackknife: the figure without each probe in turn (Efron and Stein 1981, doi:10.1214/aos/1176345462).
    without = (linear.sum() - linear) / (count - 1) + (pair.sum() - 2 * pair) / (partner.sum() - 2 * partner)
    deviation = math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    wide = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * (1 + 2 / (count - 1)) * deviation
    least = max(known + rest, -(known + rest)) / math.sqrt(size)  # |tr H_bb| ≤ √size ‖H_bb‖_F
    norm = math.sqrt(max(total, least**2, 0.0))
    upper, lower = math.sqrt(max(total, 0.0) + wide), math.sqrt(max(total - wide, 0.0))
    return (known + rest, half), (norm, max(upper - norm, norm - lower))


def largest_of_block(
    A: Symmetric, group: Group, *, seed: int, storage: Storage, confidence: float, budget: float
) -> Bracket | None:
    """λ_max of one diagonal block, by Lanczos on it, to 1 %; None when the budget does not allow a single product.

    The lower end is certain, the upper one holds with probability `confidence`.
    """

    def multiply(block: Tensor, /) -> Tensor:
        return group.take(A @ group.embed(block, A.n))

    masked = Symmetric(group.size, A.dtype, A.device, multiply)
    one = OnePass(masked, seed=seed, storage=storage, probes=False)
    found: Bracket | None = None
    while one.hvps < min(budget, _STEPS, group.size):
        one.extend(1, lambda values, count: np.argsort(-values, kind="stable")[:count])
        if one.krylov.undisturbed is not None:
            break  # after a restart the bound on what was missed gets no better
        ritz = one.krylov.ritz()
        found = bracket(ritz, Exclusion.of(one.krylov), 1, confidence)
        enough = BRACKET_WIDTH * max(abs(found.lower), abs(found.upper))
        # A start that has little of the eigenvector can make a bracket narrow too soon; the residual then is not small.
        if found.upper - found.lower <= enough and ritz.residuals[-1] <= enough:
            break
    return found


def read_blocks(
    probes: BlockProbes, tolerance: Tolerance, *, figures: Sequence[Figure], largest: Sequence[Bracket | None]
) -> tuple[Block, ...]:
    """All that is known of the blocks; figures: which of trace and norm are wanted."""
    found = []
    estimates = probes.estimates(tolerance) if figures else [(None, None)] * len(probes.groups)
    for group, (trace, norm), end in zip(probes.groups, estimates, largest, strict=True):
        trace, norm = trace if "trace" in figures else None, norm if "frobenius_norm" in figures else None
        found.append(Block(group.name, group.size, trace, norm, end))
    return tuple(found)
