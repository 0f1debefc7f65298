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
from hvpspec.estimators.shared_pass import PILOTS, Figure, OnePass
from hvpspec.krylov.basis import Storage, check_storage
from hvpspec.krylov.blocks import Group, find_groups
from hvpspec.krylov.lanczos import favour
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.krylov.vectors import column_inner
from hvpspec.options import QUANTITIES
from hvpspec.results.blocks import Blocks
from hvpspec.results.condition import Condition
from hvpspec.results.estimate import Bracket
from hvpspec.results.spectrum import Progress, Spectrum
from hvpspec.validation import Tolerance, check_budget, check_count, check_damping, check_seed

_RESERVE = 2 * PILOTS  # products of a budget that are kept for probes
_LARGEST = 15  # products that the largest eigenvalue of a block is foreseen to take
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
    basis_on: str = "device",
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
    if refine and "density" not in check_only(only):
        raise InputError("refine sharpens the conditioning, which needs the density: add that to the figures (only).")
    run = Pass(
        A, Wanted(k, "LM", tol), Tolerance(rtol, 0.0, confidence), check_seed(seed), check_budget(max_hvps),
        check_only(only), verify, check_storage(basis_memory, basis_on), start, callback, check_damping(damping),
        () if blocks is None else find_groups(A, blocks), check_count("refine_hvps", refine_hvps) if refine else 0,
    )  # fmt: skip
    return run.go()


def check_only(only: Iterable[str] | None) -> tuple[str, ...]:
    """The figures asked for, in the usual order, or InputError."""
    if only is None:
        return QUANTITIES
    wanted = (only,) if isinstance(only, str) else tuple(only)
    unknown = [name for name in wanted if name not in QUANTITIES]
    if unknown or not wanted:
        names = ", ".join(f'"{name}"' for name in QUANTITIES)
        raise InputError(f"only must name figures among {names}; got {unknown[0] if unknown else 'none'!r}.")
    return tuple(name for name in QUANTITIES if name in wanted)


class Pass:
    """One pass under way."""

    def __init__(
        self, A: Any, wanted: Wanted, tolerance: Tolerance, seed: int, budget: int | None, asked: tuple[str, ...],
        verify: bool, storage: Storage, start: Any, callback: Callable[[Progress], None] | None, damping: float = 0.0,
        groups: tuple[Group, ...] = (), refine_hvps: int = 0, afterwards: int = 0,
    ) -> None:  # fmt: skip
        operator = as_symmetric(A)
        self.wanted, self.tolerance, self.asked, self.verify = wanted, tolerance, asked, verify
        figures: tuple[Figure, ...] = ("trace", "frobenius_norm")
        self.sampled = tuple(name for name in figures if name in asked)
        self.pairs = "eigenvalues" in asked
        self.budget = math.inf if budget is None else float(budget)
        self.k = min(wanted.k, operator.n)
        self.one = OnePass(
            operator, seed=seed, storage=storage, k=self.k if self.pairs else 1, probes=bool(self.sampled),
            towards=start if self.pairs and "density" not in asked else None,
        )  # fmt: skip
        if self.sampled and not ends(self.one, tolerance, budget):
            raise InputError("rtol=0 needs a budget (max_hvps), or a basis_memory that holds n vectors.")
        self.checks = self.k if verify and self.pairs and self.budget > self.k + 1 else 0  # products kept for the end
        self.callback, self.damping, self.storage, self.seed = callback, damping, storage, seed
        self.refine_hvps, self.kept = refine_hvps, 0.0
        # Products beyond the budget: those of a refinement, here or by the caller, which may turn out to need none.
        self.afterwards = (refine_hvps or afterwards) // (2 if damping else 1)
        self.groups, self.blocks = groups, BlockProbes(self.one, groups)
        self.start = time.perf_counter()
        self.predicted = self._predicted()
        self.known = Spectrum(
            operator.n, None, None, None, 0, 0.0, complete=False, asked=asked, predicted=self.predicted
        )

    def _predicted(self) -> int:
        """Products in all: what spectra with some outliers over a bulk take."""
        steps = 2 * self.k + 10 if self.pairs else 25 if "density" in self.asked else 0
        probes = PILOTS + 0.5 / max(self.tolerance.rtol, 1e-9) if self.sampled else 0
        products = min(steps + probes, self.one.A.n + (PILOTS if self.sampled else 0))
        largest = sum(min(_LARGEST, group.size) for group in self.groups) if self.pairs else 0
        return int(min(products + self.checks + largest, self.budget)) + self.afterwards

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

    def refining(self) -> None:
        self.report("nearest to zero", None)

    def go(self) -> Spectrum:
        self.one.A.expect(self.predicted)
        self.report("plan", self.predicted - self.checks - self.afterwards)
        if self.pairs:
            self._eigenvalues()
        if self.sampled:
            self._pilots()
            if self.pairs:
                self.kept = max(min(sum(min(_KEPT, group.size) for group in self.groups), self.left // 2), 0.0)
                self._missed()
            self._trace_and_norm()
        if "density" in self.asked:
            self._density()
        if self.pairs:
            pairs, chosen, ritz = current(self.one, self.wanted, self.tolerance.confidence)
            checked = self.wanted if self.checks and len(chosen) == self.k else None
            self.known = replace(self.known, eigenpairs=finish(self.one, pairs, chosen, ritz, checked))
        if self.sampled:
            self.known = replace(self.known, **self._estimates())
        if self.known.density is not None:
            self.known = replace(self.known, condition=self.condition())
        if self.refine_hvps and self.known.condition is not None:
            self.afterwards = 0
            self.report("nearest to zero", None)
            sharper = refined(
                self.known.condition, self.one, k=1, budget=self.refine_hvps, tol=self.wanted.tol, seed=self.seed,
                report=self.refining,
            )  # fmt: skip
            self.known = replace(self.known, condition=sharper)
        self.kept = 0.0
        if self.groups:
            self._blocks()
        seconds = time.perf_counter() - self.start
        return replace(self.known, hvps=self.one.hvps, seconds=seconds, complete=True)

    def condition(self, **options: Any) -> Condition:
        """The conditioning as it is known now; no HVP."""
        assert self.known.density is not None
        return read_condition(
            self.one, self.known.density, confidence=self.tolerance.confidence, damping=self.damping,
            pairs=self.known.eigenpairs, **options,
        )  # fmt: skip

    # --- the stages ---------------------------------------------------------------------------------------------

    def _eigenvalues(self) -> None:
        one = self.one
        reserve = min(_RESERVE, self.left // 2) if self.sampled else 0
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
            after = 0 if not self.sampled else 2 * PILOTS
            self.report("eigenvalues", None if steps is None else min(steps, left - 1) + after, eigenpairs=pairs)
            if pairs.converged:
                return

    def _pilots(self) -> None:
        """The first probes, unless the basis will span the whole space before that pays."""
        one = self.one
        if one.pool.count < PILOTS < one.dimension and self.left > 0:
            one.probe(int(min(PILOTS - one.pool.count, self.left)))
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
        return {name: self.one.estimate(name, self.tolerance) for name in self.sampled}

    def _density(self) -> None:
        one = self.one
        while one.krylov.m == 0 and self.left > 0:
            one.extend(1)
        if one.krylov.m == 0:
            return
        found = self.known.eigenpairs is not None and self.known.eigenpairs.converged
        while True:
            sums = one.sums(self.tolerance.confidence) if self.sampled else None
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

    def _blocks(self) -> None:
        """Figures of the groups; the budget that is left is shared among those whose largest eigenvalue is to come."""
        one = self.one
        largest: list[Bracket | None] = [None] * len(self.groups)
        shared = one.hvps

        def known(largest: Sequence[Bracket | None]) -> Blocks:
            found = read_blocks(self.blocks, self.tolerance, figures=self.sampled, largest=largest)
            return Blocks(found, shared, one.hvps - shared)

        self.report("blocks", None, blocks=known(largest))
        for i, group in enumerate(self.groups if self.pairs else ()):
            remaining = len(self.groups) - i
            largest[i] = largest_of_block(
                one.A, group, seed=self.seed, storage=self.storage, confidence=self.tolerance.confidence,
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
                one.probe(int(min(PILOTS, self.left)))  # they make the next suspicion better founded
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
                elif not self._suspicious(pairs.values) or one.krylov.m - added >= PILOTS:
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
