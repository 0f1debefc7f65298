"""Which engine computes the products: costs are measured and predicted, and new engines are checked before use."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.memory import free_memory
from hvpspec.objective.objective import Objective
from hvpspec.options import ENGINES, Engine
from hvpspec.oracle import autograd
from hvpspec.oracle.autograd import OnBatch, described
from hvpspec.oracle.checks.agreement import disagreement
from hvpspec.oracle.checks.rounding import recomputed
from hvpspec.oracle.checks.verify import verify, verify_differences
from hvpspec.oracle.choices import SINGLE, Choices, ThroughForms
from hvpspec.oracle.finite_difference import FiniteDifference
from hvpspec.oracle.prices import PRODUCTS_TO_CHECK, Prices, costs_on, is_worth
from hvpspec.oracle.recorded.linearized import Linearized
from hvpspec.oracle.recorded.recordings import are_known, give_up, record_first, seconds_to_record, within
from hvpspec.oracle.recorded.saved_activations import SAVED_SHARE
from hvpspec.oracle.recorded.tracing import NotRecordable
from hvpspec.oracle.retained import RetainedGraphs
from hvpspec.results.estimate import Recomputed
from hvpspec.system.device_clock import time_when_done
from hvpspec.system.out_of_memory import (
    OutOfMemory,
    giving_up,
    is_out_of_memory,
    lacking_memory,
    may_give_up,
    release_memory,
    within_memory,
)
from hvpspec.validation import all_finite

_LOG = logging.getLogger("hvpspec")

_PLAIN_RETRIES = 1  # with the plain engine, where memory does not suffice
_TOO_LITTLE_MEMORY = "too little memory for the linearized engine"
_MAX_COST_RATIO = 1.05  # of a new engine's product and the reference's: it is not used above
_PEAK_TO_SAVED_RATIO = 3  # bytes that plain double backward holds of a batch, to those saved of it, as measured
_VECTORS_IN_PEAK = 4  # of length n, which plain double backward holds too


class Chooser(ThroughForms):
    """Computes products with the engine of a given name; "auto" changes to a faster engine once that is worthwhile.

    How many products are still to come is what `expect` was told, or else as many as have been made.
    """

    def __init__(
        self, objective: Objective, name: Engine, memory_limit: int | None = None, *, verified: bool = False
    ) -> None:
        if name not in ENGINES:
            names = ", ".join(f"'{key}'" for key in ENGINES)
            raise InputError(f"no engine is named '{name}'; choose one of {names}.")
        super().__init__()
        self.objective, self.name, self._plan = objective, name, "autograd"
        self._plain, self._memory_limit = RetainedGraphs(objective, memory_limit), memory_limit
        self._fast: Linearized | None = None
        self._differences = FiniteDifference(objective) if name == "finite-difference" else None
        self._settled = name in SINGLE  # no other engine is left to try
        self._most_columns = 1  # for which it was measured how many vectors are best computed together
        self._made, self._untried = 0, ""  # products; why another form of the recorded engine is not in use
        self._verified, self._expected = verified, 0
        self._seconds = float("inf")  # per vector: the fastest product of the engine in use
        self._plain_seconds = float("inf")  # of one by the plain engine, next to which a new engine is tried
        self._spent = 0.0  # seconds of all products

    @property
    def plan(self) -> str:
        """How products are computed, in one line."""
        if self._resumed is not None:
            return str(self._resumed["shown"])
        return self._plan if self._fast is not None else self._plan + self._plain.describe()

    @property
    def engine(self) -> str:
        """The name of the engine in use."""
        if self._differences is not None:
            return "finite-difference"
        form = self._fast if self._resumed is None else self._resumed["form"]
        return "autograd" if form is None else "linearized"

    @property
    def noise(self) -> float:
        """Relative error of the products beyond rounding: 0 except for finite differences."""
        return self._differences.noise if self._differences is not None else 0.0

    def recomputed(self, columns: Tensor) -> tuple[Tensor, Recomputed] | None:
        """The product with other rounding errors; None in float64, and where the engine's own noise says more."""
        if self._differences is not None or self.objective.dtype == torch.float64:
            return None
        may_give_up(self)
        return giving_up(lambda: recomputed(self.objective, columns))

    def __getstate__(self) -> dict[str, Any]:
        """Without what an engine has recorded and compiled, which belongs to this process: the copy begins again."""
        state = self.__dict__ | {"_choices": Choices()}
        if state["_fast"] is not None:
            state |= {"_fast": None, "_settled": False, "_made": 0, "_most_columns": 1, "_plan": "autograd"}
        return state

    def on(self, objective: Objective) -> Chooser:
        """For one of the batches, by the engine that is in use for all of them: found by a product where none was."""
        if self._resumed is not None:
            self._make(self._resumed)
        elif not self._made:
            self(self._vector())
        other = Chooser(objective, self.name, self._memory_limit, verified=True)
        other._fast, other._settled = None if self._fast is None else self._fast.on(objective), True
        return other

    def verified(self) -> None:
        """Says that products have been compared with differences of the gradient by other means."""
        self._verified = True

    def expect(self, products: int) -> None:
        """Says how many products are about to be asked for."""
        self._expected = self._made + products
        self._plain.begin()

    def expected_seconds(self, products: int) -> float:
        """Seconds that so many products will take, judging by those already made; NaN where there are none."""
        if self._made == 0:
            return float("nan")
        if self.name == "auto" and not self._settled and self._fast is None:
            return self._prices().seconds(products)
        return products * self._seconds_of_next()

    def expected_saved_bytes(self, products: int, taken: int) -> int:
        """Bytes that will be saved beyond those that are, if so many products are made and one takes `taken` now."""
        records = not self._settled and (self.name != "auto" or self._prices().records(products))
        records |= self._choices.will_record
        keeps = self._differences is None and self._plain.can_keep_more and products > 1
        if self._fast is not None or not (records or keeps):
            return 0  # none, or they are already saved
        vectors = _VECTORS_IN_PEAK * self.objective.space.n * self.objective.dtype.itemsize
        limit = self._memory_limit or int(SAVED_SHARE * free_memory(self.objective.device))
        saved = min(self.objective.batch_count() * max(taken - vectors, 0) // _PEAK_TO_SAVED_RATIO, limit)
        return max(saved - self._plain.size, 0)

    def _seconds_of_next(self) -> float:
        """Seconds of a product with one vector from now on, if the engine stays."""
        return self._seconds if self._fast is not None else min(self._seconds, self._plain.seconds)

    def _prices(self) -> Prices:
        plain, known = self._plain, are_known(self.objective)
        nodes = plain.nodes * max(len(plain.shapes), 1)
        return Prices(
            product=self._seconds_of_next(), graphs=plain.graphs, nodes=nodes, costs=costs_on(self.objective.device),
            recording=0.0 if known else seconds_to_record(nodes),
        )  # fmt: skip

    def __call__(self, columns: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        if not self._verified:
            (verify if self._differences is None else verify_differences)(self.objective)
            self._verified = True
        if self._resumed is not None:
            self._make(self._resumed)
        if (due := self._choices.due) is not None:
            self._take(due)
        elif not self._settled:
            self._consider(columns.shape[1])
        fast = self._fast
        if due is None and fast is not None and columns.shape[1] >= 2 * self._most_columns:
            self._most_columns = columns.shape[1]
            if within_memory(lambda: fast.vectorise(self._most_columns)) != 1:
                self._announce()
        may_give_up(self)
        start = time_when_done(columns.device)
        product = within_memory(lambda: self._product(columns, on_batch))
        if isinstance(product, OutOfMemory):
            product = self._with_less(lambda: self._product(columns, on_batch))
        taken = time_when_done(columns.device) - start
        if self.name not in SINGLE:
            self._choices.add(columns.shape[1], self._form())
        self._made += columns.shape[1]
        self._spent += taken
        self._seconds = min(self._seconds, taken / columns.shape[1])
        return product

    def _product(self, columns: Tensor, on_batch: OnBatch | None) -> Tensor:
        if self._differences is not None:
            product = self._differences(columns, on_batch)
            self._plan = self._differences.describe()
            return product
        if self._fast is None:
            self._plain.keep = self._made > 0 or self._expected > columns.shape[1]
            return self._plain(columns, on_batch)
        try:
            product = self._fast(columns, on_batch)
            if all_finite(product):
                return product
        except Exception as error:  # the reference either computes the product or says what is wrong
            if is_out_of_memory(error):
                raise
            self._fall_back(described(error))
        return autograd.hvp(self.objective, columns, on_batch)  # which names the batch

    def _with_less(self, product: Callable[[], Tensor]) -> Tensor:
        """The product with less memory, from now on; with the plain engine twice, as others may have needed some for a
        moment. Raises torch.OutOfMemoryError where that is too little."""
        retries, reason = 0, ""
        while retries < _PLAIN_RETRIES:
            retries += not self.give_up()
            found = within_memory(product)
            if not isinstance(found, OutOfMemory):
                if self._fast is not None:
                    self._announce()
                return found
            reason = found.reason
        raise lacking_memory(reason)

    def give_up(self) -> bool:
        """Takes less memory from now on; False where nothing is held any more."""
        if self._fast is None:
            return self._plain.relieve()
        if not self._fast.relieve():
            self._without_memory()
        return True

    # --- the plan -----------------------------------------------------------------------------------------------

    def _consider(self, columns: int) -> None:
        """Changes to a faster engine where one is asked for, or where that is worthwhile."""
        remaining = max(self._expected - self._made, self._made, columns)
        if self.name != "auto":
            self._record()
        elif self._fast is None:
            if self._made and (prices := self._prices()).records(remaining):
                self._record(prices.time_to_try(remaining, self._spent))
        elif (costs := costs_on(self.objective.device)) is not None:
            saved = remaining * (self._seconds - costs.compiled_product(self._seconds, self._plain.graphs))
            checks = (1 + PRODUCTS_TO_CHECK) * self._seconds
            if is_worth(saved, checks + costs.to_compile(self._fast.operations)):
                self._settled = True
                self._try(self._fast.compile)

    def _record(self, time_to_try: float | None = None) -> None:
        """Changes to the recorded engine. time_to_try: see `Prices.time_to_try`; None for as long as it takes."""
        if time_to_try == 0:
            return None
        fast = Linearized(self.objective, memory_limit=self._memory_limit)
        with within(time_to_try):
            while isinstance(found := within_memory(lambda: self._tried(fast)), OutOfMemory):
                if not fast.relieve():
                    return self._without_memory()
        if isinstance(found, str):
            give_up(self.objective, found)
            return self._fall_back(found)
        plain, self._seconds = min(self._seconds, self._plain_seconds), found
        if self.name == "auto" and (costs := costs_on(self.objective.device)) is not None and costs.captures:
            self._try(fast.capture)  # first: where launching takes most of the time, the eager form is slow as well
        if self.name == "auto" and self._seconds > _MAX_COST_RATIO * plain:
            self._seconds = plain
            return self._fall_back("the linearized engine is not faster here")
        self._fast = fast
        self._settled = self.name != "auto"
        self._announce()
        if self.name in ("compiled", "cudagraph"):
            self._try(fast.compile if self.name == "compiled" else fast.capture)

    def _tried(self, fast: Linearized) -> float | str:
        """Seconds of a product with a new engine that agrees with the reference; or why it is not used."""
        try:
            record_first(self.objective, self._plain.nodes)
            difference = disagreement(fast, self.objective, self._reference)
            if difference is None:
                self._fast = fast
                return self._measure()
        except NotRecordable as error:
            return str(error)
        except Exception as error:
            if isinstance(error, InputError) or is_out_of_memory(error):
                raise
            return described(error)
        self._warn("linearized", difference)
        return f"the linearized engine disagrees: {difference}"

    def _reference(self, columns: Tensor) -> Tensor:
        """The product by plain double backward, whose graphs then make room for what the new engine saves."""
        product = self._plain(columns)
        self._plain_seconds = self._plain.seconds  # not the first product, as those of the new engine will not be
        self._plain.drop()
        return product

    def _try(self, change: Callable[[], None]) -> None:
        """Compiles or captures; goes back where that fails, disagrees with the reference, or is slower."""
        fast, before = self._fast, self._seconds
        assert fast is not None
        form = fast.form
        try:
            change()
            difference = disagreement(fast, self.objective)
            if difference is not None:
                self._warn(fast.form, difference)
                return self._undo(form)
            after = self._measure()
            if self.name == "auto" and after > before:
                return self._undo(form)
            self._seconds, self._most_columns = after, 1
            return self._announce()
        except Exception as error:  # no compiler, too little memory, an operation that the compiler does not know …
            reason = autograd.first_line(error)
        release_memory()
        self._undo(form)
        self._untried = f" (not {change.__name__}d: {reason})"
        self._announce()

    def _undo(self, form: str) -> None:
        """Back to the form before."""
        fast = self._fast
        assert fast is not None
        fast.undo()
        within_memory(lambda: fast(self._vector()))  # saves activations again
        if form == "CUDA graph":
            with contextlib.suppress(Exception):  # it stays eager
                fast.capture()
        self._most_columns = 1

    def _vector(self) -> Tensor:
        return torch.ones(self.objective.space.n, 1, dtype=self.objective.dtype, device=self.objective.device)

    def _measure(self) -> float:
        """Seconds of a product with one vector: the faster of two, after a first that may still prepare something."""
        fast, v = self._fast, self._vector()
        assert fast is not None
        seconds = []
        for _ in range(3):
            start = time_when_done(v.device)
            fast(v)
            seconds.append(time_when_done(v.device) - start)
        return min(seconds[1:])

    def _fall_back(self, reason: str) -> None:
        self._fast, self._settled, self._choices.known = None, True, None
        self._announce(f"autograd ({reason})")

    def _without_memory(self) -> None:
        """Back to plain double backward, which keeps no graphs either."""
        self._plain.stop()
        self._fall_back(_TOO_LITTLE_MEMORY)

    def _warn(self, form: str, difference: str) -> None:
        said = f"the {form} engine disagrees with autograd on this model ({difference}) and is not used."
        warnings.warn(said, RuntimeWarning, stacklevel=2)

    def _announce(self, plan: str | None = None) -> None:
        """plan: by default that of the recorded engine."""
        if plan is None:
            assert self._fast is not None
            plan = self._fast.describe() + self._untried
        self._plan = plan
        _LOG.info("engine: %s", plan)
