"""Eigenpairs, trace, norm, density and conditioning of one operator from one pass over shared products.

The Krylov steps that find the eigenpairs also give the density, the brackets and most of trace and norm. Probes of the
complement give the rest of these, and show whether the steps have missed an eigenvalue.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hvpspec.bounds.missed import interval_of_rest, proved, suspect
from hvpspec.bounds.quadrature import quadrature_error, read_density
from hvpspec.errors import InputError
from hvpspec.estimators.blocks import BlockProbes, largest_of_block, read_blocks
from hvpspec.estimators.condition_figures import read_condition
from hvpspec.estimators.eigsh import (
    Wanted,
    check,
    converged,
    current,
    finish,
    relative_residuals,
    steps_to_tolerance,
    worth_checking,
)
from hvpspec.estimators.extend_or_probe import choose, ends
from hvpspec.estimators.refine import refined
from hvpspec.estimators.shared_pass import SharedPass
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.blocks import find_blocks
from hvpspec.krylov.lanczos import favour
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.krylov.probes import Direction
from hvpspec.options import (
    DEFAULT_REFINE_HVPS,
    PILOT_PROBES,
    Place,
    SampledQuantity,
    SpectrumOptions,
    Which,
    checking_hvps,
    planned_hvps,
    refinement_hvps,
    verification_hvps,
)
from hvpspec.results.blocks import Blocks
from hvpspec.results.density import Density
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bracket
from hvpspec.results.spectrum import Progress, Spectrum

_RESERVED_HVPS = 2 * PILOT_PROBES  # of a budget, for probes
_RESERVED_HVPS_PER_BLOCK = 10  # for its largest eigenvalue, but at most half of what is left for probes
_MAX_VAIN_SEARCHES = 8  # for missed eigenvalues


def spectrum(
    A: Any,
    k: int = 10,
    *,
    which: Which = "LM",
    rtol: float = 0.01,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    tol: float = 1e-3,
    only: str | Iterable[str] | None = None,
    verify: bool = False,
    start: Any = None,
    damping: float = 0.0,
    blocks: str | Iterable[str] | Mapping[str, Any] | None = None,
    refine: bool = False,
    refine_hvps: int = DEFAULT_REFINE_HVPS,
    basis_memory: int | str | None = None,
    basis_on: Place = "device",
    callback: Callable[[Progress], None] | None = None,
) -> Spectrum:
    """Compute eigenvalues, trace, Frobenius norm, density and conditioning of a symmetric operator, with errors.

    Parameters
    ----------
    A : HessianOperator, LinearOperator, sparse or dense array, or torch tensor, shape (n, n)
        The symmetric operator.
    k : int, default 10
        How many eigenpairs; at most n are returned.
    which : {"LM", "LA", "SA", "BE"}, default "LM"
        Which eigenpairs: of largest magnitude, largest, smallest, or half from each end; see `hvpspec.eigsh`.
    rtol : float, default 0.01
        Relative half-width of the intervals of trace and norm. For a trace smaller than the norm it is relative to the
        norm (`relative_to` in the result). The quadrature error of the density is reduced to 2 · `rtol` times the width
        of the spectrum; its sampling error, which is part of ``density.error``, is not reduced (see
        `hvpspec.spectral_density`).
    confidence : float, default 0.95
        The probability that an interval contains the true value.
    max_hvps : int, optional
        Budget of products for everything together, except a refinement; None for no budget. When it is spent, the
        current results are returned, with ``converged=False`` for those that are not within the tolerance.
    tol : float, default 1e-3
        Relative residual of the eigenpairs.
    only : str or iterable of str, optional
        The quantities asked for, of "eigenvalues", "trace", "frobenius_norm" and "density"; by default all. No product
        is made for the others.
    start : array or tensor, shape (n,) or (n, p), optional
        Vectors for a warm start, see `hvpspec.eigsh`. Not used with the density, whose quadrature needs a start that is
        purely random.
    damping : float, default 0
        δ of the conditioning, which is that of A + δI (`condition` in the result, whenever the density is asked for).
        It costs no products.
    blocks : str, iterable of str, or mapping, optional
        Groups of parameters whose diagonal blocks get their own trace, norm and λ_max, as far as these are asked for.
        For a HessianOperator, globs over parameter names, such as ``"layer*"``: each module that a glob matches is one
        group. For any operator, ``{name: slice or positions}``. Traces and norms cost no further products; each λ_max
        costs about 10 to 20 to within 1 %.
    refine : bool, default False
        Search for the eigenvalue nearest to −`damping`, with products of its own; see `hvpspec.condition`.
    refine_hvps : int, default 500
        Budget of products for this search, beyond `max_hvps`.
    seed, verify, basis_memory, basis_on
        As for `hvpspec.eigsh`.
    callback : callable, optional
        Called with a `Progress` before the first product, with the planned number of products, and after each step. An
        exception that it raises, or Ctrl-C, ends the run; the last `Progress` has what was known.

    Returns
    -------
    Spectrum
        ``eigenpairs``, ``trace``, ``frobenius_norm``, ``density``, ``condition`` and ``blocks``.

    Raises
    ------
    InputError
        As for `hvpspec.eigsh`, and for quantities or blocks that A does not have.

    Notes
    -----
    Costs about 2k + 10 HVPs for the eigenpairs of a spectrum with outliers (more if the k-th lies in a dense bulk), and
    for trace and norm at least 8 more; at most n + 16, and 1 that checks these where A is no matrix. If trace or norm
    are asked for, their probes also search for eigenvalues that the Krylov space has missed (copies of a multiple one),
    and add them. What a HessianOperator does once before its first product (``verify``) is not counted in HVPs: it
    takes as long as two of its first batch, and half a one for a loss of one's own; nor are two products in float64
    that measure float32's `rounding`. Sources: arXiv:2205.01736 (trace), arXiv:2105.06595 (density),
    doi:10.1137/S0895479898334605 (Lanczos with a thick restart).

    Examples
    --------
    >>> import numpy as np
    >>> import hvpspec
    >>> found = hvpspec.spectrum(np.diag([5.0, -4.0, 3.0, 2.0, 1.0]), k=2)
    >>> found.eigenpairs.values.round(6)
    array([ 5., -4.])
    >>> round(found.trace.value, 6), found.hvps
    (7.0, 5)
    """
    options = SpectrumOptions(
        k=k, which=which, rtol=rtol, confidence=confidence, tol=tol, seed=seed, max_hvps=max_hvps, only=only,
        verify=verify, damping=damping, refine=refine, refine_hvps=refine_hvps, blocks=blocks,
        basis_memory=basis_memory, basis_on=basis_on,
    )  # fmt: skip
    run = Pass(A, options, start, callback)
    run.measure()
    if options.refine:
        run.refine()
    if run.blocks:
        run.measure_blocks()
    return run.finished()


class Pass:
    """A run under way: `known` is what has been found so far.

    reserved: products of the budget that are kept for the blocks; checks: for measuring the residuals at the end.
    afterwards: products beyond the budget that are still to come.
    """

    def __init__(
        self, A: Any, options: SpectrumOptions, start: Any = None, callback: Callable[[Progress], None] | None = None
    ) -> None:
        operator = as_symmetric(A)
        self.options, self.tolerance, self.callback = options, options.tolerance, callback
        self.budget = math.inf if options.max_hvps is None else float(options.max_hvps)
        self.k = min(options.k, operator.n)
        self.wanted = Wanted(options.k, options.which, options.tol)
        self.storage = check_storage(options.basis_memory, options.basis_on)
        self.blocks = () if options.blocks is None else find_blocks(A, options.blocks)
        self.shared = SharedPass(
            operator, seed=options.seed, storage=self.storage, k=self.k if options.pairs else 1,
            probes=bool(options.sampled), towards=start if options.pairs and not options.density else None,
        )  # fmt: skip
        if options.sampled and not ends(self.shared, self.tolerance, options.max_hvps):
            raise InputError("rtol=0 needs a budget (max_hvps), or a basis_memory that holds n vectors.")
        self.block_probes = BlockProbes(self.shared, self.blocks)
        self.to_check = self.shared.checks * checking_hvps(options)
        self.reserved, self.checks = 0.0, verification_hvps(options, operator.n) + self.to_check
        self.afterwards = refinement_hvps(options)
        self.start = time.perf_counter()
        predicted = planned_hvps(options, operator.n, [block.size for block in self.blocks])
        self.known = Spectrum(
            operator.n, None, None, None, 0, 0.0, complete=False, asked=options.quantities, predicted=predicted,
            which=options.which,
        )  # fmt: skip

    @property
    def left(self) -> float:
        """Products of the budget that may be made now."""
        return self.budget - self.shared.hvps - self.checks - self.reserved

    def report(self, stage: str, further: float | None, **found: Any) -> None:
        """Updates what is known and calls the callback. further: products still to come, if that can be estimated."""
        hvps = self.shared.hvps
        self.known = replace(self.known, **found, hvps=hvps, seconds=time.perf_counter() - self.start)
        if self.callback is not None:
            expected = None
            if further is not None and math.isfinite(further):
                expected = int(min(hvps + math.ceil(further) + self.checks, self.budget)) + self.afterwards
            self.callback(Progress(stage, hvps, expected, self.known))

    def report_refinement(self) -> None:
        self.report("nearest to zero", None)

    def finished(self) -> Spectrum:
        seconds = time.perf_counter() - self.start
        return replace(self.known, hvps=self.shared.hvps, seconds=seconds, complete=True)

    def measure(self) -> None:
        """Everything except the refinement and the blocks."""
        options, shared, predicted = self.options, self.shared, self.known.predicted or 0
        shared.A.expect(predicted)
        self.report("plan", predicted - self.checks - self.afterwards)
        if options.pairs:
            self._find_eigenpairs()
        if options.sampled:
            self._make_pilot_probes()
            if options.pairs:
                for_blocks = sum(min(_RESERVED_HVPS_PER_BLOCK, block.size) for block in self.blocks)
                self.reserved = max(min(for_blocks, self.left // 2), 0.0)
                self._find_missed()
            self._estimate_trace_and_norm()
        if options.density:
            self._find_density()
        wider = check(shared, self.to_check, self.wanted if options.pairs else None)
        self.known = replace(self.known, rounding=shared.rounding)
        if wider and self.known.density is not None:
            self.known = replace(self.known, density=self._read_density(self.known.density.converged))
        if options.pairs:
            pairs, chosen, ritz = current(shared, self.wanted, options.confidence)
            checked = self.wanted if self.checks > self.to_check and len(chosen) == self.k else None
            self.known = replace(self.known, eigenpairs=finish(shared, pairs, chosen, ritz, checked))
        if options.sampled:
            self.known = replace(self.known, **self._estimates())
        if self.known.density is not None:
            condition = read_condition(
                shared, self.known.density, confidence=options.confidence, damping=options.damping,
                pairs=self.known.eigenpairs,
            )  # fmt: skip
            self.known = replace(self.known, condition=condition)

    def refine(self) -> None:
        """Sharpens the conditioning with products beyond the budget."""
        if self.known.condition is None:
            return
        self.afterwards = 0
        self.report_refinement()
        sharper = refined(
            self.known.condition, self.shared, k=1, budget=self.options.refine_hvps, tol=self.options.tol,
            seed=self.options.seed, report=self.report_refinement,
        )  # fmt: skip
        self.known = replace(self.known, condition=sharper)

    def measure_blocks(self) -> None:
        """The blocks; the rest of the budget is divided equally among those whose largest eigenvalue is to come."""
        options, count, before = self.options, len(self.blocks), self.shared.hvps
        self.reserved = 0.0
        largest: list[Bracket | None] = [None] * count

        def known(largest: Sequence[Bracket | None]) -> Blocks:
            found = read_blocks(self.block_probes, self.tolerance, quantities=options.sampled, largest=largest)
            return Blocks(found, before, self.shared.hvps - before)

        self.report("blocks", None, blocks=known(largest))
        for i, block in enumerate(self.blocks if options.pairs else ()):
            remaining = count - i
            largest[i] = largest_of_block(
                self.shared.A, block, seed=options.seed, storage=self.storage, confidence=options.confidence,
                budget=self.left / remaining, rounding=self.shared.A.shown * self.shared.krylov.projection.norm,
            )  # fmt: skip
            self.report("blocks", (remaining - 1) * (self.shared.hvps - before) / (i + 1), blocks=known(largest))

    def _find_eigenpairs(self) -> None:
        shared = self.shared
        for_probes = min(_RESERVED_HVPS, self.left // 2) if self.options.sampled else 0
        history: list[tuple[int, float]] = []  # products, and the largest relative residual at that point
        while (left := self.left - for_probes) > 0:
            shared.extend(int(min(left, shared.A.n)), self.wanted.choose)
            worth = worth_checking(shared.krylov) and (self.callback or converged(shared.krylov, self.wanted))
            if left > 1 and not worth:
                continue
            pairs, _, _ = current(shared, self.wanted, self.tolerance.confidence)
            if len(pairs.values) == self.k:
                history.append((shared.hvps, float(relative_residuals(pairs).max())))
            steps = steps_to_tolerance(history, self.wanted.tol)
            after = 2 * PILOT_PROBES if self.options.sampled else 0
            self.report("eigenvalues", None if steps is None else min(steps, left - 1) + after, eigenpairs=pairs)
            if pairs.converged:
                return

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
                shared.extend(move.count)
            else:
                shared.probe(move.count)

    def _estimates(self) -> dict[SampledQuantity, Any]:
        return {name: self.shared.estimate(name, self.tolerance) for name in self.options.sampled}

    def _find_density(self) -> None:
        shared = self.shared
        while shared.krylov.m == 0 and self.left > 0:
            shared.extend(1)
        if shared.krylov.m == 0:
            return
        found = self.known.eigenpairs is not None and self.known.eigenpairs.converged
        while True:
            density = self._read_density()
            width = density.support[1] - density.support[0]
            fine = quadrature_error(density) <= 2 * self.tolerance.rtol * width or shared.dimension == 0
            self.report("density", None, density=replace(density, converged=fine))
            # After a restart or with a second start vector, the quadrature remains that of the first space. If the
            # space has become invariant meanwhile, it must show again that it has all copies of the eigenvalues found.
            done = fine and (not found or converged(shared.krylov, self.wanted))
            if done or self.left <= 0 or not shared.can_extend or shared.krylov.undisturbed is not None:
                return
            shared.extend(1)

    def _read_density(self, converged: bool = False) -> Density:
        shared, confidence = self.shared, self.tolerance.confidence
        sums = shared.sums(confidence) if self.options.sampled else None
        return replace(read_density([shared.krylov], confidence, shared.hvps, sums), converged=converged)

    def _find_missed(self) -> None:
        """Searches for eigenvalues among those asked for that the start vector could not show, and adds them.

        Where the probes suggest that there is one, a product decides. The basis is then extended from a new random
        vector, and not from the direction that the probes show: it must remain independent of them.
        """
        shared, searches = self.shared, 0
        while searches < _MAX_VAIN_SEARCHES and shared.dimension > 1 and self.left > 1:
            pairs, _, _ = current(shared, self.wanted, self.tolerance.confidence)
            if len(pairs.values) < self.k or not pairs.converged:
                return
            found = self._suspect(pairs)
            if found is None:
                return
            if not proved(shared.A, shared.krylov, *found):
                searches += 1
                shared.probe(int(min(PILOT_PROBES, self.left)))  # to make the next suspicion more reliable
                continue
            shared.add_random()
            added = shared.krylov.m
            while self.left > 0 and shared.can_extend:
                shared.extend(1)
                if not worth_checking(shared.krylov):
                    continue
                pairs, chosen, ritz = current(shared, self.wanted, self.tolerance.confidence)
                self.report("missed eigenvalues", None, eigenpairs=pairs, **self._estimates())
                if not pairs.converged:
                    worst = chosen[np.argmax(relative_residuals(pairs))]
                    favour(shared.krylov, ritz.coefficients[:, worst])
                elif shared.krylov.m - added >= PILOT_PROBES or self._suspect(pairs) is None:
                    break

    def _suspect(self, pairs: Eigenpairs) -> tuple[Direction, tuple[float, float]] | None:
        """A direction that seems to show an eigenvalue outside the interval that holds all others; no product."""
        assert pairs.smallest is not None
        assert pairs.largest is not None
        wanted = self.wanted
        rest = interval_of_rest(pairs.values, wanted.which, wanted.tol, pairs.smallest, pairs.largest)
        found = suspect(self.shared.pool, wanted.which, rest)
        return None if found is None else (found, rest)
