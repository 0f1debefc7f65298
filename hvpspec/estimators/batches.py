"""λ_max of the matrix of every mini-batch, by Lanczos on each from a random vector of its own.

Started from eigenvectors of the whole matrix, Lanczos would be no faster: λ_max itself is found a step or two sooner,
but the start is then random only in part, and to show that nothing lies beyond takes as many steps more.

Of ranks, each looks at its own batches, with whole vectors and products that are no business of the others. They do so
in rounds of one batch on each rank, after which all know what each has found: so a budget is divided as in one process,
an error or a signal on one of them ends all within a round, and what is known by then is known to the first.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hvpspec.distributed.shard import sharded
from hvpspec.errors import InputError, ZeroHessianWarning
from hvpspec.estimators.passes.ends import Ends, Side
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.krylov.basis import Storage, check_storage
from hvpspec.krylov.log.journal import Journal
from hvpspec.krylov.log.journaled import Where, keeping
from hvpspec.krylov.operator_view import Symmetric, as_symmetric, within_time
from hvpspec.options import DEFAULT_MAX_BATCHES, BatchOptions, BatchWhich, Place, SpectrumOptions
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.results.parts import ENDS, Batch, Batches
from hvpspec.system.stops import asked
from hvpspec.system.time_limit import OutOfTime, check_time
from hvpspec.system.time_limit import time_limit as allowed_time
from hvpspec.validation import check_duration

_MAX_STEPS = 100  # products for one matrix
_LEAST_HVPS = 3  # for a batch, where the budget has that many left: fewer show next to nothing
_SIDES: dict[BatchWhich, tuple[Side, ...]] = {"LA": (1,), "SA": (-1,), "BE": (1, -1)}


def per_batch(
    A: Any,
    *,
    which: BatchWhich = "LA",
    rtol: float = 0.01,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    time_limit: float | str | None = None,
    max_batches: int = DEFAULT_MAX_BATCHES,
    pairs: Eigenpairs | None = None,
    basis_memory: int | str | None = None,
    basis_on: Place = "device",
    journal: Where | None = None,
    callback: Callable[[Batches], None] | None = None,
) -> Batches:
    """Compute λ_max of the matrix of every mini-batch, and that of the whole matrix, with errors.

    Parameters
    ----------
    A : HessianOperator
        Or GGNOperator, EmpiricalFisherOperator, ResidualOperator, or one of these preconditioned: the mean of the
        matrices of its batches. With ``reduction="sum"`` a batch stands for all of the data: its matrix is that of its
        mean loss, times the total weight.
    which : {"LA", "SA", "BE"}, default "LA"
        The largest eigenvalue of each, the smallest, or both.
    rtol : float, default 0.01
        Stop when the interval of a batch is no wider than `rtol` times the norm of its matrix.
    confidence : float, default 0.95
        The probability that an interval contains the true value, for each batch.
    seed : int, default 0
        Of the random starts.
    max_hvps : int, optional
        Budget of products, each with the matrix of one batch only; by default 20 for each batch. It is divided equally
        among the batches to come. What is not known to the tolerance then has ``converged=False``. Of ranks, those of a
        round divide what is left before it.
    time_limit : float or str, optional
        Budget of time, see `hvpspec.spectrum`.
    max_batches : int, default 1000
        Where there are more batches, so many are drawn at random.
    pairs : Eigenpairs, optional
        Of A, as `hvpspec.spectrum` or `hvpspec.eigsh` has found them: their brackets say what λ_max of the whole matrix
        is. Without them, some products with the whole matrix are made for that.
    basis_memory, basis_on
        See `hvpspec.eigsh`.
    journal : path, optional
        A folder for a journal, see `hvpspec.spectrum`: the same call goes on with the batch that was interrupted.
    callback : callable, optional
        Called with the current `Batches` after each product; of ranks, on each of them after its own products. An
        exception that it raises, or Ctrl-C, ends the run; the last `Batches` has what was known.

    Returns
    -------
    Batches
        ``batches``, a `Batch` each with ``largest`` and ``smallest``, and ``whole``, the same of all data.

    Raises
    ------
    InputError
        For options out of range, and for an operator without batches.

    Notes
    -----
    λ_max of a batch takes about 6 to 10 products, of which each costs a product with that batch alone, and a forward
    pass. One batch is in memory at a time. Batches without weight, such as those of which all targets are ignored, are
    left out. Ranks divide the batches among them; to be called on all of them.

    Examples
    --------
    >>> import hvpspec, torch
    >>> X, y = torch.eye(4), torch.zeros(4, 1)
    >>> data = [(X[:1], y[:1]), (2 * X[1:], y[1:])]
    >>> H = hvpspec.HessianOperator(torch.nn.Linear(4, 1, bias=False), "mse", data, dtype="float64")
    >>> found = hvpspec.per_batch(H)
    >>> [round(batch.largest.value, 6) for batch in found.batches], round(found.whole.largest.value, 6)
    ([2.0, 2.666667], 2.0)
    """
    options = BatchOptions(
        which=which, rtol=rtol, confidence=confidence, seed=seed, max_hvps=max_hvps, max_batches=max_batches
    )
    storage, seconds = check_storage(basis_memory, basis_on), check_duration("time_limit", time_limit)
    operator = as_symmetric(A)
    if operator.batch_operators is None:
        raise InputError("the operator has no batches of data; give a HessianOperator, or one like it.")
    of_run = SpectrumOptions(k=1, which=which, rtol=rtol, confidence=confidence, seed=seed, max_hvps=max_hvps)
    with allowed_time(seconds), sharded(operator.shard):
        timed, _ = within_time(operator)
        with keeping(journal, timed, of_run) as (view, log):
            run = _Run(view, options, storage, log, callback)
            with contextlib.suppress(OutOfTime):
                run.measure(pairs)
            return run.known


@dataclass
class _Run:
    """A run under way. known: what has been found so far."""

    A: Symmetric
    options: BatchOptions
    storage: Storage
    journal: Journal | None
    callback: Callable[[Batches], None] | None

    def __post_init__(self) -> None:
        self.numbers = drawn_batches(self.A.batch_count, self.options)
        self.known = Batches((), None, self.A.batch_count, len(self.numbers), 0, out_of_time=True)
        self.rounding = 0.0  # of products, relative to the norm
        self.group = None if self.A.shard is None else self.A.shard.group
        of_ranks = self.A.batches_of_ranks
        self.homes = [self.numbers] if of_ranks is None else of_ranks()  # of each rank

    def measure(self, pairs: Eigenpairs | None) -> None:
        """The whole matrix first, and then each batch."""
        whole, hvps = self._of_whole(pairs)
        self.known = replace(self.known, whole=whole, whole_hvps=hvps)
        self._report_on_all()
        assert self.A.batch_operators is not None
        self.operators = self.A.batch_operators(frozenset(filter(self._is_here, self.numbers)))
        for allowed in self._rounds():
            self._measure_round(allowed)
        self.known = replace(self.known, out_of_time=False)

    def _is_here(self, number: int) -> bool:
        """Whether this rank has the batch."""
        return number in self.homes[0 if self.group is None else self.group.rank]

    def _rounds(self) -> Iterator[dict[int, int]]:
        """The batches that are looked at side by side, one on each rank, and how many products each may take."""
        budget, done = self.options.budget(len(self.numbers)), 0
        queues = [[number for number in self.numbers if number in home] for home in self.homes]
        for numbers in itertools.zip_longest(*queues):
            left, allowed = budget - self.known.hvps, dict[int, int]()
            for number in numbers:
                if number is not None and left >= 1:
                    allowed[number] = min(max(left // (len(self.numbers) - done), _LEAST_HVPS), left)
                    left, done = left - allowed[number], done + 1
            if not allowed:
                return
            yield allowed

    def _measure_round(self, allowed: dict[int, int]) -> None:
        facts = functools.cache(lambda: self._facts(allowed))
        for number, most in allowed.items():

            def find(number: int = number) -> dict[str, Any]:
                return facts()[number]

            name = f"batch {number}, {most} products, {self.options}"
            fact = find() if self.journal is None else self.journal.fact(name, find)
            found = Batch.from_dict(fact["batch"])
            batches = (*self.known.batches, found) if found.largest or found.smallest else self.known.batches
            batches = tuple(sorted(batches, key=lambda batch: batch.number))
            self.known = replace(self.known, batches=batches, hvps=self.known.hvps + fact["hvps"])
        self._report_on_all()

    def _report(self, under_way: int) -> None:
        """under_way: products with the present batch."""
        if self.callback is not None:
            self.callback(replace(self.known, hvps=self.known.hvps + under_way, out_of_time=False))

    def _report_on_all(self) -> None:
        """What is known to all ranks; an error on one of them is raised on all."""
        self._report(0) if self.group is None else self.group.together(lambda: self._report(0))

    def _facts(self, allowed: dict[int, int]) -> dict[int, dict[str, Any]]:
        """Of each batch of a round, with the products that it took."""
        if self.group is None:
            return self._own_facts(allowed)
        with sharded(None):  # the vectors of a batch's matrix are whole
            own = self.group.together(lambda: self._own_facts(allowed))
        return dict(fact for said in self.group.told(json.dumps([*own.items()])) for fact in json.loads(said))

    def _own_facts(self, allowed: dict[int, int]) -> dict[int, dict[str, Any]]:
        return {number: self._fact(number, most) for number, most in allowed.items() if self._is_here(number)}

    def _fact(self, number: int, allowed: int) -> dict[str, Any]:
        check_time()
        find = next((find for each, find in self.operators if each == number), None)
        if find is None:
            raise InputError(f"the data gave no batch {number} any more; give data that are the same in every pass.")
        weight, operator = find()
        if operator is None:
            return {"batch": Batch(number, 0.0).to_dict(), "hvps": 0}
        found, hvps = self._of_batch(Batch(number, weight), operator, allowed)
        return {"batch": found.to_dict(), "hvps": hvps}

    def _of_batch(self, batch: Batch, operator: Any, allowed: int) -> tuple[Batch, int]:
        view, _ = within_time(as_symmetric(operator))
        view.expect(allowed)
        ends = self._ends(view, drawn=batch.number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZeroHessianWarning)  # of one batch it need not be a mistake
            for _ in self._steps(ends, min(allowed, _MAX_STEPS)):
                self._report(view.hvps)
                if self.group is not None and (stop := asked()) is not None:  # signals are held where ranks work
                    raise stop
        return self._with_ends(batch, ends), view.hvps

    def _of_whole(self, pairs: Eigenpairs | None) -> tuple[Batch, int]:
        """The whole matrix, as eigenpairs tell or by products of its own, and how many these were."""
        whole = Batch(self.A.batch_count, 0.0)
        sides = _SIDES[self.options.which]
        if pairs is not None and all(_known(pairs, side) for side in sides):
            self.rounding = 0.0 if pairs.rounding is None else pairs.rounding.relative
            found = {side: self._from_pairs(pairs, side) for side in sides}
            return replace(whole, largest=found.get(1), smallest=found.get(-1)), 0
        ends = self._ends(self.A)
        for _ in self._steps(ends, _MAX_STEPS):
            pass
        ends.shared.check(ends.shared.checks)
        self.rounding = 0.0 if ends.shared.rounding is None else ends.shared.rounding.relative
        return self._with_ends(whole, ends), ends.shared.hvps

    def _ends(self, A: Symmetric, drawn: int = 0) -> Ends:
        """drawn: how many of the seed's random vectors are skipped, so that each batch has a start of its own."""
        shared = SharedPass(
            A, seed=self.options.seed, storage=self.storage, probes=False, first_draw=drawn, find_zero=True
        )
        return Ends(shared, self.options.confidence)

    def _steps(self, ends: Ends, budget: int) -> Iterator[None]:
        """Products until the ends asked for are known to the tolerance."""
        sides = _SIDES[self.options.which]
        for _ in ends.steps(budget, sides[0]):
            ends.rounding = self.rounding * ends.norm
            yield
            if all(ends.within(side, self.options.rtol * ends.norm) for side in sides):
                return

    def _with_ends(self, batch: Batch, ends: Ends) -> Batch:
        ends.rounding = self.rounding * ends.norm
        found: dict[Side, Estimate] = {}
        for side in _SIDES[self.options.which]:
            bounds = ends.bracket(side)
            fine = ends.within(side, self.options.rtol * ends.norm)
            found[side] = _estimate(ends.value(side), bounds, ends.shared.hvps, fine)
        return replace(batch, largest=found.get(1), smallest=found.get(-1))

    def _from_pairs(self, pairs: Eigenpairs, side: Side) -> Estimate:
        bounds: Bracket = getattr(pairs, _end(side))
        inner = bounds.lower if side > 0 else bounds.upper
        outermost = float(side * (side * pairs.values).max()) if len(pairs.values) else inner
        value = outermost if bounds.lower <= outermost <= bounds.upper else inner
        norm = max(abs(end) for of in (pairs.largest, pairs.smallest) if of is not None for end in (of.lower, of.upper))
        return _estimate(value, bounds, pairs.hvps, bounds.upper - bounds.lower <= self.options.rtol * norm)


def drawn_batches(count: int, options: BatchOptions) -> list[int]:
    """The numbers of the batches whose matrices are looked at: all, or as many as allowed, drawn at random."""
    if count <= options.max_batches:
        return list(range(count))
    return sorted(map(int, np.random.default_rng(options.seed).permutation(count)[: options.max_batches]))


def _estimate(value: float, bounds: Bracket, hvps: int, fine: bool) -> Estimate:
    found = Estimate.between(value, bounds.lower, bounds.upper, bounds.confidence, hvps, "lanczos")
    return replace(found, converged=fine)


def _end(side: Side) -> str:
    return ENDS[0] if side > 0 else ENDS[1]


def _known(pairs: Eigenpairs, side: Side) -> bool:
    bounds: Bracket | None = getattr(pairs, _end(side))
    return bounds is not None and bool(np.isfinite([bounds.lower, bounds.upper]).all())
