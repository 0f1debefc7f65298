"""Which engine computes the products: costs are measured and predicted, and new engines are checked before use."""

from __future__ import annotations

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
from hvpspec.oracle.checks.rounding import recomputed
from hvpspec.oracle.checks.verify import verify, verify_differences
from hvpspec.oracle.choice.changes import Changes
from hvpspec.oracle.choice.forms import SINGLE, Choices, only
from hvpspec.oracle.finite_difference import FiniteDifference
from hvpspec.oracle.recorded.linearized import Linearized
from hvpspec.oracle.recorded.saved_activations import SAVED_SHARE
from hvpspec.oracle.retained import RetainedGraphs
from hvpspec.results.estimate import Recomputed
from hvpspec.system.device_clock import time_when_done
from hvpspec.system.out_of_memory import (
    OutOfMemory,
    giving_up,
    is_out_of_memory,
    lacking_memory,
    may_give_up,
    within_memory,
)
from hvpspec.validation import all_finite

_PLAIN_RETRIES = 1  # with the plain engine, where memory does not suffice
_PEAK_TO_SAVED_RATIO = 3  # bytes that plain double backward holds of a batch, to those saved of it, as measured
_VECTORS_IN_PEAK = 4  # of length n, which plain double backward holds too


class Chooser(Changes):
    """Computes products with the engine of a given name; "auto" changes to a faster engine once that is worthwhile.

    How many products are still to come is what `expect` was told, or else as many as have been made.
    """

    def __init__(
        self, objective: Objective, name: Engine, memory_limit: int | None = None, *, verified: bool = False,
        shared: bool = False,
    ) -> None:  # fmt: skip
        if name not in ENGINES:
            names = ", ".join(f"'{key}'" for key in ENGINES)
            raise InputError(f"no engine is named '{name}'; choose one of {names}.")
        super().__init__()
        self.objective, self.name, self._plan = objective, name, "autograd"
        self._plain, self._memory_limit = RetainedGraphs(objective, memory_limit), memory_limit
        self._fast: Linearized | None = None
        self._differences = FiniteDifference(objective) if name == "finite-difference" else None
        self._settled = name in SINGLE  # no other engine is left to try
        self._closed, self._failed = self._settled, ""  # as all ranks know; why another engine does not work here
        self._tell, self._counts = (None if shared else only), True  # see `agreeing`
        self._most_columns = 1  # for which was last asked how many vectors are best computed together
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
            state |= {"_fast": None, "_settled": False, "_closed": False, "_made": 0, "_most_columns": 1}
            state |= {"_plan": "autograd"}
        return state

    def on(self, objective: Objective) -> Chooser:
        """For one of the batches, by the engine that is in use for all of them: found by a product where none was."""
        if self._resumed is not None:
            self._make(self._resumed)
        elif not self._made:
            self(self._vector())
        other = Chooser(objective, self.name, self._memory_limit, verified=True)
        other._fast = None if self._fast is None else self._fast.on(objective)
        other._settled = other._closed = True
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

    def __call__(self, columns: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        if not self._verified and self._counts:
            (verify if self._differences is None else verify_differences)(self.objective)
            self._verified = True
        if self._resumed is not None:
            self._make(self._resumed)
        self._prepare(columns.shape[1])
        self._join(columns.shape[1])
        if not self._counts:
            self._note(columns.shape[1])
            return self._plain(columns, on_batch)
        may_give_up(self)
        start = time_when_done(columns.device)
        product = within_memory(lambda: self._product(columns, on_batch))
        if isinstance(product, OutOfMemory):
            product = self._with_less(lambda: self._product(columns, on_batch))
        taken = time_when_done(columns.device) - start
        self._note(columns.shape[1])
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

    def attend(self, columns: int) -> None:
        """Takes part in what ranks decide before a product to which this one has nothing to add."""
        self._resumed = None
        self._prepare(columns)
        self._join(columns)
        self._note(columns)

    def _note(self, columns: int) -> None:
        if self.name not in SINGLE:
            self._choices.add(columns, self._form())
        self._made += columns
