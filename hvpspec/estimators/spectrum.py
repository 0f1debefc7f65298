"""Every figure of one operator from one pass over shared products.

The Krylov steps that bring out the eigenpairs also give the density, the brackets and most of trace and norm; probes of
the complement give the rest of those, and show whether the steps have missed an eigenvalue.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from hvpspec.errors import InputError
from hvpspec.estimators.adaptive import choose, ends
from hvpspec.estimators.basis import check_storage
from hvpspec.estimators.density import quadrature_error, read_density
from hvpspec.estimators.eigsh import Wanted, converged, current, finish, worth_checking
from hvpspec.estimators.krylov import favour
from hvpspec.estimators.onepass import PILOTS, Figure, OnePass
from hvpspec.estimators.options import Tolerance, check_budget, check_seed
from hvpspec.estimators.symmetric import as_symmetric
from hvpspec.estimators.vectors import column_inner
from hvpspec.results import FIGURES, Progress, Spectrum

_RESERVE = 2 * PILOTS  # products of a budget that are kept for probes
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
    seed, basis_memory, basis_on: as for `hvpspec.eigsh`.
    callback: called with a Progress before the first product, which has the prediction, and after each step; an
        exception it raises, or Ctrl-C, ends the run, and the last Progress holds what was known.

    Costs about 2k + 10 HVPs for the eigenpairs of a spectrum with outliers (more where the k-th lies in a dense bulk)
    and, from 8 probes on, what trace and norm need beyond; at most n + 16. Where trace or norm are asked for, their
    probes also look for eigenvalues that the Krylov space has missed (copies of a multiple one), and bring them in.

    Raises InputError for options out of range or an operator that is not symmetric.
    """
    run = _Run(
        A, Wanted(k, "LM", tol), Tolerance(rtol, 0.0, confidence), check_seed(seed), check_budget(max_hvps),
        check_only(only), verify, check_storage(basis_memory, basis_on), callback,
    )  # fmt: skip
    return run.go()


def check_only(only: Iterable[str] | None) -> tuple[str, ...]:
    """The figures asked for, in the usual order, or InputError."""
    if only is None:
        return FIGURES
    wanted = (only,) if isinstance(only, str) else tuple(only)
    unknown = [name for name in wanted if name not in FIGURES]
    if unknown or not wanted:
        names = ", ".join(f'"{name}"' for name in FIGURES)
        raise InputError(f"only must name figures among {names}; got {unknown[0] if unknown else 'none'!r}.")
    return tuple(name for name in FIGURES if name in wanted)


class _Run:
    """One pass under way."""

    def __init__(
        self, A: Any, wanted: Wanted, tolerance: Tolerance, seed: int, budget: int | None, asked: tuple[str, ...],
        verify: bool, storage: Any, callback: Callable[[Progress], None] | None,
    ) -> None:  # fmt: skip
        operator = as_symmetric(A)
        self.wanted, self.tolerance, self.asked, self.verify = wanted, tolerance, asked, verify
        figures: tuple[Figure, ...] = ("trace", "frobenius_norm")
        self.sampled = tuple(name for name in figures if name in asked)
        self.pairs = "eigenvalues" in asked
        self.budget = math.inf if budget is None else float(budget)
        self.k = min(wanted.k, operator.n)
        self.one = OnePass(
            operator, seed=seed, storage=storage, k=self.k if self.pairs else 1, probes=bool(self.sampled)
        )
        if self.sampled and not ends(self.one, tolerance, budget):
            raise InputError("rtol=0 needs a budget (max_hvps), or a basis_memory that holds n vectors.")
        self.checks = self.k if verify and self.pairs and self.budget > self.k + 1 else 0  # products kept for the end
        self.callback = callback
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
        return int(min(products + self.checks, self.budget))

    @property
    def left(self) -> float:
        return self.budget - self.one.hvps - self.checks

    def report(self, stage: str, further: float | None, **figures: Any) -> None:
        """Takes down what is known, and tells it; `further`: products still to come, if that can be told."""
        one = self.one
        self.known = replace(self.known, **figures, hvps=one.hvps, seconds=time.perf_counter() - self.start)
        if self.callback is not None:
            expected = None
            if further is not None and math.isfinite(further):
                expected = int(min(one.hvps + math.ceil(further) + self.checks, self.budget))
            self.callback(Progress(stage, one.hvps, expected, self.known))

    def go(self) -> Spectrum:
        self.one.A.expect(self.predicted)
        self.report("plan", self.predicted - self.checks)
        if self.pairs:
            self._eigenvalues()
        if self.sampled:
            self._pilots()
            if self.pairs:
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
        seconds = time.perf_counter() - self.start
        return replace(self.known, hvps=self.one.hvps, seconds=seconds, complete=True)

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
            self.report("trace and norm", None, **self._estimates())

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
        while True:
            density = read_density([one.krylov], self.tolerance.confidence, one.hvps)
            width = density.support[1] - density.support[0]
            fine = quadrature_error(density) <= 2 * self.tolerance.rtol * width or one.dimension == 0
            self.report("density", None, density=replace(density, converged=fine))
            # After a restart or with a second start vector the quadrature is that of the first space, and stays so.
            if fine or self.left <= 0 or not one.can_extend or one.krylov.undisturbed is not None:
                return
            one.extend(1)

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
