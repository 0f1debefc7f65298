"""The course of `hvpspec.spectrum`: which products are made in which order, and what is known after each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hvpspec.errors import InputError
from hvpspec.estimators import eigsh
from hvpspec.estimators.blocks import BlockProbes, measured_blocks
from hvpspec.estimators.condition_figures import read_condition
from hvpspec.estimators.density import SharedDensity
from hvpspec.estimators.diagonal import DiagonalProbes, measured_diagonal
from hvpspec.estimators.gradients.gradient import check_loss, in_spectrum
from hvpspec.estimators.passes.extend_or_probe import choose, ends
from hvpspec.estimators.passes.search import Search
from hvpspec.estimators.passes.shared_pass import Budget, SharedPass
from hvpspec.estimators.refine import refined
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.blocks import find_blocks
from hvpspec.krylov.log.journal import Journal
from hvpspec.krylov.operator_view import Symmetric, matrix_of, preconditioned_by
from hvpspec.krylov.witness import witness
from hvpspec.options import (
    PILOT_PROBES,
    SampledQuantity,
    SpectrumOptions,
    beyond_budget,
    checking_hvps,
    gradient_hvps,
    planned_hvps,
    verification_hvps,
)
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.spectrum import Progress, Spectrum
from hvpspec.system.time_limit import Pace

_RESERVED_HVPS = 2 * PILOT_PROBES  # of a budget, for probes
FURTHER_HVPS = 2 * PILOT_PROBES  # beyond the n that a basis of the whole space takes: the ceiling of a run
_NO_TIME = "there was no time left to measure it"
_RESERVED_HVPS_PER_BLOCK = 10  # for its largest eigenvalue, but at most half of what is left for probes


class Pass:
    """A run under way: `known` is what has been found so far.

    to_check: products of the budget that are kept for checking all others. afterwards: products beyond the budget that
    are still to come.
    """

    def __init__(
        self, A: Any, operator: Symmetric, options: SpectrumOptions, start: Any = None,
        callback: Callable[[Progress], None] | None = None, journal: Journal | None = None, pace: Pace | None = None,
    ) -> None:  # fmt: skip
        if start is not None and options.block_size > 1:
            raise InputError("start needs block_size=1; leave out one of the two.")
        self.options, self.tolerance, self.callback = options, options.tolerance, callback
        self.A = check_loss(A) if options.gradient else A
        self.k, self.wanted = min(options.k, operator.n), eigsh.Wanted(options.k, options.which, options.tol)
        self.storage = check_storage(options.basis_memory, options.basis_on)
        self.blocks = () if options.blocks is None else find_blocks(A, options.blocks)
        self.shared = SharedPass(
            operator, seed=options.seed, block=options.block_size, storage=self.storage,
            k=self.k if options.pairs else 1, probes=bool(options.sampled) or options.diagonal,
            towards=start if options.pairs and not options.density else None, find_zero=True,
        )  # fmt: skip
        if options.sampled and options.time_limit is None and not ends(self.shared, self.tolerance, options.max_hvps):
            raise InputError("rtol=0 needs a budget (max_hvps), or a basis_memory that holds n vectors.")
        self.to_check = self.shared.checks * checking_hvps(options)
        self.along = gradient_hvps(options) * (1 if preconditioned_by(A) is None else 2)
        self.checks = verification_hvps(options, operator.n) + self.to_check + self.along
        self.budget = Budget(self.shared, options.max_hvps, self.checks, pace or Pace())
        self.search = Search(self.shared, self.wanted, self.tolerance.confidence, lambda: self.left, self.report_missed)
        self.block_probes = BlockProbes(self.shared, self.blocks)
        self.sizes = [block.size for block in self.blocks]
        self.diagonal_probes = DiagonalProbes(self.shared, collects=options.diagonal)
        self.names, self.afterwards = getattr(A, "parameters", None), beyond_budget(options, operator.n, self.sizes)
        self.start, self.journal = time.perf_counter(), journal
        predicted = planned_hvps(options, operator.n, self.sizes)
        if journal is not None:
            journal.plan(predicted, operator.n * operator.dtype.itemsize)
        self.density = SharedDensity(self.shared, self.tolerance, sums=bool(options.sampled))
        self.known = Spectrum(
            operator.n, None, None, None, 0, 0.0, complete=False, asked=options.quantities, predicted=predicted,
            which=options.which, matrix=matrix_of(A), preconditioned=preconditioned_by(A),
            semidefinite=operator.semidefinite or None,
            rounding_reason=None if operator.recompute is None else "it is measured at the end",
        )  # fmt: skip

    @property
    def left(self) -> float:
        """Products that may be made now."""
        return self.budget.left

    @property
    def seconds(self) -> float:
        """That the run has taken, before it was resumed as well."""
        return time.perf_counter() - self.start if self.journal is None else self.journal.seconds

    def report(self, stage: str, further: float | None, **found: Any) -> None:
        """Updates what is known and calls the callback. further: products still to come, if that can be estimated."""
        hvps = self.shared.hvps
        if "eigenpairs" in found:
            found["eigenpairs"] = eigsh.with_zero_rows(self.shared.krylov, found["eigenpairs"], self.wanted)
        self.known = replace(self.known, **found, hvps=hvps, seconds=self.seconds)
        if self.callback is not None:
            expected = None
            if further is not None and math.isfinite(further):
                expected = int(min(hvps + math.ceil(further) + self.checks, self.budget.whole)) + self.afterwards
            known = replace(self.known, eigenpairs=self._shown_whole(self.known.eigenpairs))
            self.callback(Progress(stage, hvps, expected, known))

    def _shown_whole(self, pairs: Eigenpairs | None) -> Eigenpairs | None:
        """The pairs, not final before it is shown that no copy is missing, where there are probes to show that."""
        if pairs is None or pairs.all_copies or not self.options.sampled:
            return pairs
        return replace(pairs, converged=False)

    def report_refinement(self) -> None:
        self.report("nearest to zero", None)

    def report_missed(self, pairs: Eigenpairs) -> None:
        self.report("missed eigenvalues", None, eigenpairs=pairs, **self._estimates())

    def finished(self) -> Spectrum:
        found = replace(self.known, hvps=self.shared.hvps, seconds=self.seconds)
        return replace(found, complete=True, out_of_time=self.budget.out_of_time)

    def measure(self) -> None:
        """Everything except the refinement and the blocks."""
        shared, predicted = self.shared, int(min(self.known.predicted or 0, self.budget.whole + self.afterwards))
        shared.promise(FURTHER_HVPS, self.checks)
        shared.A.expect(predicted)
        self.report("plan", predicted - self.checks - self.afterwards)
        with self.budget.within_time():
            self._explore()
        if self.budget.out_of_time:
            self._explore()  # without a product: reads what those made so far tell
        self.budget.out_of_time |= self.budget.time_binds and not self.finished().converged
        self._conclude()
        shared.A.limit = math.inf  # blocks, a refinement and further vectors have budgets of their own

    def _explore(self) -> None:
        """All products but those that check and verify."""
        options = self.options
        if options.pairs:
            self._find_eigenpairs()
        if options.sampled:
            self._make_pilot_probes()
            if options.pairs:
                for_blocks = sum(min(_RESERVED_HVPS_PER_BLOCK, block.size) for block in self.blocks)
                self.budget.reserved = max(min(for_blocks, self.left // 2), 0.0)
                self.search.by_probes()
            self._estimate_trace_and_norm()
        if options.density:
            self._find_density()
        if options.pairs and options.sampled and self.search.to_the_end() and options.density and self.density.grown:
            self._find_density()

    def _conclude(self) -> None:
        """The products that check and verify, as far as there is time, and all figures with what they show."""
        options, shared, wider = self.options, self.shared, False
        with self.budget.within_time():
            wider = eigsh.check(shared, self.to_check, self.wanted if options.pairs else None)
        unmeasured = self.budget.out_of_time and shared.rounding is None and shared.A.recompute is not None
        unmeasured &= shared.hvps > 0
        self.known = replace(self.known, rounding=shared.rounding, rounding_reason=_NO_TIME if unmeasured else None)
        if self.density.rest is not None and (wider or self.density.grown):
            self.known = replace(self.known, density=self.density.read(self.density.rest.converged))
        if options.pairs and shared.krylov.m:
            self.known = replace(self.known, eigenpairs=self._shown_whole(self._final_pairs()))
        if options.sampled:
            estimates = {name: found for name, found in self._estimates().items() if not math.isnan(found.value)}
            self.known = replace(self.known, **{**dict.fromkeys(options.sampled), **estimates})
        asked: dict[str, Any] = {"confidence": options.confidence, "damping": options.damping}
        rest, pairs, of = self.density.rest, self.known.eigenpairs, shared.sampled_rounding
        condition = None if rest is None else read_condition(shared, rest, pairs=pairs, **asked)
        kept = witness(shared.krylov, shared.pool, shared.A.eps, self.search.rest(), (of.trace, of.norm))
        self.known = replace(self.known, condition=condition, lanczos=kept if shared.hvps else None)

    def _final_pairs(self) -> Eigenpairs:
        """With vectors, and verified where that is asked for."""
        shared, (pairs, chosen, ritz) = self.shared, self.search.current()
        found = None
        if verification_hvps(self.options, shared.A.n) and len(chosen) == self.k:
            with self.budget.within_time():
                found = eigsh.finish(shared, pairs, chosen, ritz, self.wanted)
        found = found or eigsh.finish(shared, pairs, chosen, ritz, None)
        return eigsh.with_zero_rows(shared.krylov, found, self.wanted)

    def measure_gradient(self) -> None:
        """Where the gradient lies in what has been found."""
        if self.along and self.along <= self.budget.unspent and not self.budget.out_of_time:
            self.report("gradient", self.along - self.checks)
            with self.budget.within_time():
                found = in_spectrum(self.A, self.shared.A, self.known, self.options.confidence)
                self.known = replace(self.known, gradient=found)

    def refine(self) -> None:
        """Sharpens the conditioning with products beyond the budget."""
        if self.known.condition is None or not self.options.refine:
            return
        self.afterwards = beyond_budget(replace(self.options, refine=False), self.shared.A.n, self.sizes)
        self.report_refinement()
        sharper = replace(self.known.condition, reasons={**self.known.condition.reasons, "refined": _NO_TIME})
        with self.budget.within_time():
            sharper = refined(
                self.known.condition, self.shared, k=1, budget=self.options.refine_hvps, tol=self.options.tol,
                seed=self.options.seed, report=self.report_refinement,
            )  # fmt: skip
        self.known = replace(self.known, condition=sharper)

    def measure_parts(self) -> None:
        """The blocks, from the rest of the budget; and the diagonal, with products beyond it."""
        options, self.budget.reserved = self.options, 0.0
        with self.budget.within_time():
            if self.blocks:
                for further, blocks in measured_blocks(self.block_probes, options, self.storage, lambda: self.left):
                    self.report("blocks", further, blocks=blocks)
        self.afterwards = 0
        with self.budget.within_time():
            for found in measured_diagonal(self.diagonal_probes, options, self.blocks, self.names):
                self.report("diagonal", None, diagonal=found)

    def _find_eigenpairs(self) -> None:
        before, for_probes = self.shared.hvps, _RESERVED_HVPS if self.options.sampled else 0
        found = self.search.eigenpairs(
            lambda: self.budget.left_besides(for_probes, before), watched=self.callback is not None, after=for_probes
        )
        for further, pairs in found:
            self.report("eigenvalues", further, eigenpairs=pairs)

    def _make_pilot_probes(self) -> None:
        """The first probes, unless the basis will span the whole space before these pay off."""
        shared = self.shared
        if shared.pool.count < PILOT_PROBES < shared.dimension and self.left > 0:
            shared.probe(int(min(PILOT_PROBES - shared.pool.count, self.left)))
            found = self._estimates()
            self.report("trace and norm", choose(shared, found, self.tolerance, self.left).expected, **found)

    def _estimate_trace_and_norm(self) -> None:
        shared = self.shared
        while True:
            found = self._estimates()
            move = choose(shared, found, self.tolerance, self.left)
            self.report("trace and norm", move.expected, **found)
            if move.action == "stop":
                return
            if move.action == "extend":
                shared.extend(int(min(max(move.count, shared.block), self.left)))
            elif self.options.pairs and shared.pool.full(move.count) and self.search.to_the_end():
                continue  # while all probes are kept as vectors, so that the basis can grow; fewer products are left
            else:
                shared.probe(move.count)

    def _estimates(self) -> dict[SampledQuantity, Any]:
        return {name: self.shared.estimate(name, self.tolerance) for name in self.options.sampled}

    def _find_density(self) -> None:
        pairs = self.known.eigenpairs
        for density in self.density.found(lambda: self.left, self.wanted if pairs and pairs.converged else None):
            self.report("density", None, density=density)
