"""Every figure of one operator from one pass over shared products.

The Krylov steps that bring out the eigenpairs also give the density, the brackets and most of trace and norm; probes of
the complement give the rest of those, and show whether the steps have missed an eigenvalue.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hvpspec.bounds.quadrature import quadrature_error, read_density
from hvpspec.errors import InputError
from hvpspec.estimators.blocks import BlockProbes, largest_of_block, read_blocks
from hvpspec.estimators.condition_figures import read_condition
from hvpspec.estimators.eigsh import Wanted, converged, current, finish, worth_checking
from hvpspec.estimators.extend_or_probe import choose, ends
from hvpspec.estimators.refine import refined
from hvpspec.estimators.shared_pass import Figure, OnePass
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.blocks import find_groups
from hvpspec.krylov.lanczos import favour
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.krylov.vectors import column_inner
from hvpspec.options import PILOT_PROBES, Place, SpectrumOptions, planned_hvps, refinement_hvps, verification_hvps
from hvpspec.results.blocks import Blocks
from hvpspec.results.estimate import Bracket
from hvpspec.results.spectrum import Progress, Spectrum

_RESERVE = 2 * PILOT_PROBES  # products of a budget that are kept for probes
_KEPT = 10  # products of a budget that are kept for each of them, but no more than half of what the probes have
_TINY = np.finfo(float).tiny
_SEARCHES = 8  # how often a search for missed eigenvalues may turn out to have been in vain


def spectrum(
    A: Any,
    k: int = 10,
    *,
    rtol: float = 0.01,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    tol: float = 1e-3,
    only: Iterable[str] | None = None,
    verify: bool = False,
    start: Any = None,
    damping: float = 0.0,
    blocks: str | Iterable[str] | Mapping[str, Any] | None = None,
    refine: bool = False,
    refine_hvps: int = 500,
    basis_memory: int | str | None = None,
    basis_on: Place = "device",
    callback: Callable[[Progress], None] | None = None,
) -> Spectrum:
    """Eigenvalues, trace, Frobenius norm and spectral density of a symmetric operator, each with its error.

    A: HessianOperator, SciPy LinearOperator, sparse or dense array, or torch tensor, of shape (n, n).
    k: how many eigenpairs of largest magnitude (at most n), to a relative residual of `tol`.
    rtol, confidence: of the intervals of trace and norm; the quadrature of the density is brought to 2 · rtol times the
        width of the spectrum (its sampling error, part of `density.error`, is what it is: see `spectral_density`).
        For a trace smaller than the norm the tolerance is relative to the norm (`relative_to` in the result).
    max_hvps: the budget for all figures together (None: none). Once it is spent, what there is comes back, with
        `converged=False` where it is not within tolerance.
    only: the figures wanted, of "eigenvalues", "trace", "frobenius_norm", "density"; nothing is spent on the others.
    verify: multiply the eigenvectors once more (k HVPs) and report residuals measured so.
    damping: δ of the conditioning figures, which are those of A + δI (`condition` in the result; there whenever the
        density is asked for). They cost no products of their own.
    blocks: groups of parameters, each with trace, norm and λ_max of its own diagonal block (as far as these figures are
        asked for): one glob or several over names, for a HessianOperator, such as "layer*" (each thing inside the
        model that a glob matches is a group), or {name: slice or positions}. Traces and norms cost no HVP beyond those
        of trace and norm of the whole; each λ_max costs its own, about 10 to 20 to ±1 %.
    refine, refine_hvps: look for the eigenvalue nearest to −damping, with products of its own: see `hvpspec.condition`.
    seed, start, basis_memory, basis_on: as for `hvpspec.eigsh`. Where the density is asked for `start` is not used:
        its quadrature needs a start that is random alone.
    callback: called with a Progress before the first product, which has the prediction, and after each step; an
        exception it raises, or Ctrl-C, ends the run, and the last Progress holds what was known.

    Costs about 2k + 10 HVPs for the eigenpairs of a spectrum with outliers (more where the k-th lies in a dense bulk)
    and, from 8 probes on, what trace and norm need beyond; at most n + 16. Where trace or norm are asked for, their
    probes also look for eigenvalues that the Krylov space has missed (copies of a multiple one), and bring them in.

    Raises InputError for options out of range or an operator that is not symmetric.
    """
    options = SpectrumOptions(
        k=k, rtol=rtol, confidence=confidence, tol=tol, seed=seed, max_hvps=max_hvps, only=only, verify=verify,
        damping=damping, refine=refine, refine_hvps=refine_hvps, blocks=blocks, basis_memory=basis_memory,
        basis_on=basis_on,
    )  # fmt: skip
    run = Pass(A, options, start, callback)
    run.measure()
    if options.refine:
        run.refine()
    if run.blocks:
        run.measure_blocks()
    return run.finished()


class Pass:
    """One pass under way. known: what has been found so far."""

    def __init__(
        self, A: Any, options: SpectrumOptions, start: Any = None, callback: Callable[[Progress], None] | None = None
    ) -> None:
        operator = as_symmetric(A)
        self.options, self.tolerance = options, options.tolerance
        self.budget = math.inf if options.max_hvps is None else float(options.max_hvps)
        self.k = min(options.k, operator.n)
        self.wanted = Wanted(options.k, options.which, options.tol)
        self.storage = check_storage(options.basis_memory, options.basis_on)
        self.blocks = () if options.blocks is None else find_groups(A, options.blocks)
        self.one = OnePass(
            operator, seed=options.seed, storage=self.storage, k=self.k if options.pairs else 1,
            probes=bool(options.sampled), towards=start if options.pairs and not options.density else None,
        )  # fmt: skip
        if options.sampled and not ends(self.one, self.tolerance, options.max_hvps):
            raise InputError("rtol=0 needs a budget (max_hvps), or a basis_memory that holds n vectors.")
        self.block_probes = BlockProbes(self.one, self.blocks)
        self.callback, self.kept = callback, 0.0
        self.checks = verification_hvps(options, operator.n)  # products kept for the end
        self.afterwards = refinement_hvps(options)  # products beyond the budget that are still to come
        self.start = time.perf_counter()
        self.predicted = planned_hvps(options, operator.n, [block.size for block in self.blocks])
        self.known = Spectrum(
            operator.n, None, None, None, 0, 0.0, complete=False, asked=options.quantities, predicted=self.predicted
        )

    @property
    def left(self) -> float:
        return self.budget - self.one.hvps - self.checks - self.kept

    def report(self, stage: str, further: float | None, **figures: Any) -> None:
        """Takes down what is known, and tells it; `further`: products still to come, if that can be told."""
        one = self.one
        self.known = replace(self.known, **figures, hvps=one.hvps, seconds=time.perf_counter() - self.start)
        if self.callback is not None:
            expected = None
            if further is not None and math.isfinite(further):
                expected = int(min(one.hvps + math.ceil(further) + self.checks, self.budget)) + self.afterwards
            self.callback(Progress(stage, one.hvps, expected, self.known))

    def measure(self) -> None:
        """Everything but the blocks and the refinement."""
        options = self.options
        self.one.A.expect(self.predicted)
        self.report("plan", self.predicted - self.checks - self.afterwards)
        if options.pairs:
            self._eigenvalues()
        if options.sampled:
            self._pilots()
            if options.pairs:
                self.kept = max(min(sum(min(_KEPT, block.size) for block in self.blocks), self.left // 2), 0.0)
                self._missed()
            self._trace_and_norm()
        if options.density:
            self._density()
        if options.pairs:
            pairs, chosen, ritz = current(self.one, self.wanted, options.confidence)
            checked = self.wanted if self.checks and len(chosen) == self.k else None
            self.known = replace(self.known, eigenpairs=finish(self.one, pairs, chosen, ritz, checked))
        if options.sampled:
            self.known = replace(self.known, **self._estimates())
        if self.known.density is not None:
            condition = read_condition(
                self.one, self.known.density, confidence=options.confidence, damping=options.damping,
                pairs=self.known.eigenpairs,
            )  # fmt: skip
            self.known = replace(self.known, condition=condition)

    def refine(self) -> None:
        """Sharpens the conditioning by products of its own, beyond the budget."""
        if self.known.condition is None:
            return
        self.afterwards = 0
        self.refining()
        sharper = refined(
            self.known.condition, self.one, k=1, budget=self.options.refine_hvps, tol=self.options.tol,
            seed=self.options.seed, report=self.refining,
        )  # fmt: skip
        self.known = replace(self.known, condition=sharper)

    def refining(self) -> None:
        self.report("nearest to zero", None)

    def finished(self) -> Spectrum:
        seconds = time.perf_counter() - self.start
        return replace(self.known, hvps=self.one.hvps, seconds=seconds, complete=True)

    # --- the stages ---------------------------------------------------------------------------------------------

    def _eigenvalues(self) -> None:
        one = self.one
        reserve = min(_RESERVE, self.left // 2) if self.options.sampled else 0
        history: list[tuple[int, float]] = []  # products, and the worst relative residual then
        while (left := self.left - reserve) > 0:
            one.extend(int(min(left, one.A.n)), self.wanted.choose)
            if left > 1 and (
                not worth_checking(one.krylov) or not (self.callback or converged(one.krylov, self.wanted))
            ):
                continue
            pairs, _, _ = current(one, self.wanted, self.tolerance.confidence)
            if len(pairs.values) == self.k:
                worst = np.max(pairs.residuals / np.maximum(np.abs(pairs.values), _TINY))
                history.append((one.hvps, float(worst)))
            steps = _foresee(history, self.wanted.tol)
            after = 0 if not self.options.sampled else 2 * PILOT_PROBES
            self.report("eigenvalues", None if steps is None else min(steps, left - 1) + after, eigenpairs=pairs)
            if pairs.converged:
                return

    def _pilots(self) -> None:
        """The first probes, unless the basis will span the whole space before that pays."""
        one = self.one
        if one.pool.count < PILOT_PROBES < one.dimension and self.left > 0:
            one.probe(int(min(PILOT_PROBES - one.pool.count, self.left)))
            figures = self._estimates()
            self.report("trace and norm", choose(one, figures, self.tolerance, self.left).expected, **figures)

    def _trace_and_norm(self) -> None:
        one = self.one
        while True:
            figures = self._estimates()
            move = choose(one, figures, self.tolerance, self.left)
            self.report("trace and norm", move.expected, **figures)
            if move.action == "stop":
                return
            if move.action == "extend":
                one.extend(move.count)
            else:
                one.probe(move.count)

    def _estimates(self) -> dict[Figure, Any]:
        return {name: self.one.estimate(name, self.tolerance) for name in self.options.sampled}

    def _density(self) -> None:
        one = self.one
        while one.krylov.m == 0 and self.left > 0:
            one.extend(1)
        if one.krylov.m == 0:
            return
        found = self.known.eigenpairs is not None and self.known.eigenpairs.converged
        while True:
            sums = one.sums(self.tolerance.confidence) if self.options.sampled else None
            density = read_density([one.krylov], self.tolerance.confidence, one.hvps, sums)
            width = density.support[1] - density.support[0]
            fine = quadrature_error(density) <= 2 * self.tolerance.rtol * width or one.dimension == 0
            self.report("density", None, density=replace(density, converged=fine))
            # After a restart or with a second start vector the quadrature is that of the first space, and stays so.
            # A space that has closed meanwhile must show once more that it has all copies of the eigenvalues found.
            done = fine and (not found or converged(one.krylov, self.wanted))
            if done or self.left <= 0 or not one.can_extend or one.krylov.undisturbed is not None:
                return
            one.extend(1)

    def measure_blocks(self) -> None:
        """Figures of the blocks; the budget that is left is shared among those whose largest eigenvalue is to come."""
        one, options, count = self.one, self.options, len(self.blocks)
        self.kept = 0.0
        largest: list[Bracket | None] = [None] * count
        shared = one.hvps

        def known(largest: Sequence[Bracket | None]) -> Blocks:
            found = read_blocks(self.block_probes, self.tolerance, figures=options.sampled, largest=largest)
            return Blocks(found, shared, one.hvps - shared)

        self.report("blocks", None, blocks=known(largest))
        for i, block in enumerate(self.blocks if options.pairs else ()):
            remaining = count - i
            largest[i] = largest_of_block(
                one.A, block, seed=options.seed, storage=self.storage, confidence=options.confidence,
                budget=self.left / remaining,
            )  # fmt: skip
            self.report("blocks", (remaining - 1) * (one.hvps - shared) / (i + 1), blocks=known(largest))

    def _missed(self) -> None:
        """Looks for eigenvalues beyond the k-th that the start vector could not show, and brings them in.

        What the probes' images lean to is a direction w with ‖B w‖ ≤ ‖B‖₂. Where their estimate of that exceeds the
        k-th eigenvalue, one product with w decides; w itself stays out of the basis, which must not know the probes.
        """
        one, searches = self.one, 0
        while searches < _SEARCHES and one.dimension > 1 and self.left > 1:
            pairs, _, _ = current(one, self.wanted, self.tolerance.confidence)
            if len(pairs.values) < self.k or not pairs.converged or not self._suspicious(pairs.values):
                return
            if not self._proved(pairs.values):
                searches += 1
                one.probe(int(min(PILOT_PROBES, self.left)))  # they make the next suspicion better founded
                continue
            one.add_random()
            added = one.krylov.m
            while self.left > 0 and one.can_extend:
                one.extend(1)
                if not worth_checking(one.krylov):
                    continue
                pairs, chosen, ritz = current(one, self.wanted, self.tolerance.confidence)
                self.report("missed eigenvalues", None, eigenpairs=pairs, **self._estimates())
                if not pairs.converged:
                    worst = chosen[np.argmax(pairs.residuals / np.maximum(np.abs(pairs.values), _TINY))]
                    favour(one.krylov, ritz.coefficients[:, worst])
                elif not self._suspicious(pairs.values) or one.krylov.m - added >= PILOT_PROBES:
                    break

    def _suspicious(self, values: np.ndarray) -> bool:
        found = self.one.pool.strongest()
        return found is not None and found[0] > (1 + self.wanted.tol) * float(np.abs(values).min())

    def _proved(self, values: np.ndarray) -> bool:
        """Whether there is an eigenvalue beyond the k-th that the basis lacks; one product."""
        one = self.one
        found = one.pool.strongest()
        assert found is not None
        image = one.A @ found[1]
        for _ in range(2):
            image = image - one.krylov.basis.combine(one.krylov.basis.inner(image))
        length = float(column_inner(image, image).sqrt())
        return length > (1 + self.wanted.tol) * float(np.abs(values).min()) + float(one.krylov.ritz().noise.max())


def _foresee(history: list[tuple[int, float]], tol: float) -> int | None:
    """Steps until the residuals reach the tolerance, if they go on falling as of late; None if they do not fall."""
    if len(history) < 4:
        return None
    (m, now), (m_before, before) = history[-1], history[-1 - len(history) // 2]
    if not 0 < now < before < math.inf or tol <= 0:
        return None
    return math.ceil(max(0.0, math.log(now / tol)) * (m - m_before) / math.log(before / now))
