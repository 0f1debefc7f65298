"""Which engine computes the products: costs are measured and predicted, and new engines are checked before use."""

from __future__ import annotations

import logging
import time
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
from hvpspec.oracle.agreement import disagreement
from hvpspec.oracle.autograd import OnBatch, described
from hvpspec.oracle.finite_difference import FiniteDifference
from hvpspec.oracle.recorded.linearized import Linearized
from hvpspec.oracle.recorded.saved_activations import SAVED_SHARE
from hvpspec.oracle.recorded.tracing import NotRecordable
from hvpspec.oracle.rounding import recomputed
from hvpspec.oracle.verify import verify, verify_differences
from hvpspec.results.estimate import Recomputed
from hvpspec.system.out_of_memory import LACKING_MEMORY, OutOfMemory, is_out_of_memory, release_memory, within_memory
from hvpspec.validation import all_finite

_LOG = logging.getLogger("hvpspec")

# What recording and compiling cost, and the share of a product's time that they save, as measured (results/oracle.md).
_SECONDS_TO_RECORD = 2.0
_SHARE_SAVED_BY_RECORDING = 0.4
_SECONDS_TO_COMPILE = 5.0
_SECONDS_TO_COMPILE_AN_OPERATION = 0.03
_SHARE_SAVED_BY_COMPILING = 0.2
_PRODUCTS_TO_CHECK = 3  # made to check a new engine and to measure its cost

_PLAIN_RETRIES = 1  # with the plain engine, where memory does not suffice
_TOO_LITTLE_MEMORY = "too little memory for the linearized engine"
_MAX_COST_RATIO = 1.05  # of a new engine's product and the reference's: it is not used above
_PEAK_TO_SAVED_RATIO = 3  # bytes that plain double backward holds of a batch, to those saved of it, as measured
_VECTORS_IN_PEAK = 4  # of length n, which plain double backward holds too


class Chooser:
    """Computes products with the engine of a given name; "auto" changes to a faster engine once that is worthwhile.

    How many products are still to come is what `expect` was told, or else as many as have been made.
    """

    def __init__(
        self, objective: Objective, name: Engine, memory_limit: int | None = None, *, verified: bool = False
    ) -> None:
        if name not in ENGINES:
            names = ", ".join(f"'{key}'" for key in ENGINES)
            raise InputError(f"no engine is named '{name}'; choose one of {names}.")
        self.objective, self.name = objective, name
        self.plan = "autograd"
        self._memory_limit = memory_limit
        self._fast: Linearized | None = None
        self._differences = FiniteDifference(objective) if name == "finite-difference" else None
        self._settled = name in ("autograd", "finite-difference")  # no other engine is left to try
        self._most_columns = 1  # for which it was measured how many vectors are best computed together
        self._made = 0
        self._verified = verified
        self._expected = 0
        self._seconds = float("inf")  # per vector: the fastest product of the engine in use
        self._resumed: dict[str, Any] | None = None  # the engine of an earlier process, to be made again

    @property
    def engine(self) -> str:
        """The name of the engine in use."""
        if self._differences is not None:
            return "finite-difference"
        plain = self._fast is None if self._resumed is None else self._resumed["form"] is None
        return "autograd" if plain else "linearized"

    @property
    def noise(self) -> float:
        """Relative error of the products beyond rounding: 0 except for finite differences."""
        return self._differences.noise if self._differences is not None else 0.0

    def recomputed(self, columns: Tensor) -> tuple[Tensor, Recomputed] | None:
        """The product with other rounding errors; None in float64, and where the engine's own noise says more."""
        if self._differences is not None or self.objective.dtype == torch.float64:
            return None
        return recomputed(self.objective, columns)

    def __getstate__(self) -> dict[str, Any]:
        """Without what an engine has recorded and compiled, which belongs to this process: the copy begins again."""
        state = self.__dict__.copy()
        if state["_fast"] is not None:
            state |= {"_fast": None, "_settled": False, "_made": 0, "_most_columns": 1, "plan": "autograd"}
        return state

    def state(self) -> dict[str, Any]:
        """What measurements have decided of how products are computed, JSON-ready: `resume` goes on from there."""
        if self._resumed is not None:
            return self._resumed
        fast, differences = self._fast, self._differences
        return {
            "form": None if fast is None else fast.form, "together": 1 if fast is None else fast.together,
            "whole": fast is not None and fast.compiled_whole, "level": None if fast is None else fast.level,
            "plan": self.plan, "settled": self._settled,
            "most_columns": self._most_columns, "made": self._made, "expected": self._expected,
            "seconds": self._seconds, "differences": None if differences is None else differences.state(),
        }  # fmt: skip

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on with the engine of an earlier process; costs are not compared again. It is made when it is needed."""
        self._resumed, self.plan, self._settled = state, state["plan"], state["settled"]
        self._most_columns, self._made, self._expected, self._seconds = (
            state[name] for name in ("most_columns", "made", "expected", "seconds")
        )

    def verified(self) -> None:
        """Says that products have been compared with differences of the gradient by other means."""
        self._verified = True

    def expect(self, products: int) -> None:
        """Says how many products are about to be asked for."""
        self._expected = self._made + products

    def expected_seconds(self, products: int) -> float:
        """Seconds that so many products will take, judging by those already made; NaN where there are none."""
        if self._made == 0:
            return float("nan")
        plain = products * self._seconds
        if self.name != "auto" or self._settled or self._fast is not None:
            return plain
        recorded = plain * (1 - _SHARE_SAVED_BY_RECORDING) + _SECONDS_TO_RECORD
        return min(plain, recorded)

    def expected_saved_bytes(self, products: int, taken: int) -> int:
        """Bytes of activations that will be saved if so many products are made and one takes `taken` bytes now."""
        worthwhile = products * self._seconds * _SHARE_SAVED_BY_RECORDING > self._seconds_to_change()
        if self._settled or self._fast is not None or (self.name == "auto" and not worthwhile):
            return 0  # none, or they are already saved
        vectors = _VECTORS_IN_PEAK * self.objective.space.n * self.objective.dtype.itemsize
        limit = self._memory_limit or int(SAVED_SHARE * free_memory(self.objective.device))
        return min(self.objective.batch_count() * max(taken - vectors, 0) // _PEAK_TO_SAVED_RATIO, limit)

    def __call__(self, columns: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        if not self._verified:
            (verify if self._differences is None else verify_differences)(self.objective)
            self._verified = True
        if self._resumed is not None:
            self._make(self._resumed)
        if not self._settled:
            self._consider(columns.shape[1])
        if (fast := self._fast) is not None and columns.shape[1] >= 2 * self._most_columns:
            self._most_columns = columns.shape[1]
            if within_memory(lambda: fast.vectorise(self._most_columns)) != 1:
                self._announce(fast.describe())
        start = time.perf_counter()
        product = within_memory(lambda: self._product(columns, on_batch))
        if isinstance(product, OutOfMemory):
            product = self._with_less(lambda: self._product(columns, on_batch))
        self._made += columns.shape[1]
        self._seconds = min(self._seconds, (time.perf_counter() - start) / columns.shape[1])
        return product

    def _product(self, columns: Tensor, on_batch: OnBatch | None) -> Tensor:
        if self._differences is not None:
            product = self._differences(columns, on_batch)
            self.plan = self._differences.describe()
            return product
        if self._fast is None:
            return autograd.hvp(self.objective, columns, on_batch)
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
            if self._fast is None:
                retries += 1
            elif not self._fast.relieve():
                self._fall_back(_TOO_LITTLE_MEMORY)
            found = within_memory(product)
            if not isinstance(found, OutOfMemory):
                if self._fast is not None:
                    self._announce(self._fast.describe())
                return found
            reason = found.reason
        error = torch.OutOfMemoryError(reason)
        error.add_note(LACKING_MEMORY)
        raise error

    # --- the plan -----------------------------------------------------------------------------------------------

    def _consider(self, columns: int) -> None:
        """Changes to a faster engine where one is asked for, or where that is worthwhile."""
        remaining = max(self._expected - self._made, self._made, columns)
        if self._fast is None:
            gain = remaining * self._seconds * _SHARE_SAVED_BY_RECORDING if self._made else 0.0
            if self.name != "auto" or gain > self._seconds_to_change():
                self._record()
        elif self.name == "auto":
            if self.objective.device.type == "cuda":
                self._settled = True
                self._try(self._fast.capture)
            elif remaining * self._seconds * _SHARE_SAVED_BY_COMPILING > self._seconds_to_compile():
                self._settled = True
                self._try(self._fast.compile)

    def _make(self, state: dict[str, Any]) -> None:
        """The engine of an earlier process. Raises InputError where it no longer works: its products would be rounded
        otherwise."""
        self._resumed = None
        if self._differences is not None:
            self._differences.resume(state["differences"])
        if state["form"] is None:
            self._fast = None
            return
        fast = Linearized(self.objective, memory_limit=self._memory_limit)
        try:
            fast.resume(state["form"], together=state["together"], whole=state["whole"], level=state["level"])
            difference = disagreement(fast, self.objective)
        except (InputError, KeyboardInterrupt, torch.OutOfMemoryError):
            raise
        except Exception as error:
            difference = described(error)
        if difference is not None:
            raise InputError(
                f'the run was interrupted with the engine "{state["plan"]}", which cannot be used any more '
                f"({difference}); start over (--restart), or choose another engine."
            )
        self._fast = fast

    def _seconds_to_change(self) -> float:
        return _SECONDS_TO_RECORD + _PRODUCTS_TO_CHECK * self._seconds

    def _seconds_to_compile(self) -> float:
        assert self._fast is not None
        return _SECONDS_TO_COMPILE + _SECONDS_TO_COMPILE_AN_OPERATION * self._fast.operations

    def _record(self) -> None:
        fast = Linearized(self.objective, memory_limit=self._memory_limit)
        reference = self._seconds
        while isinstance(found := within_memory(lambda: self._tried(fast)), OutOfMemory):
            if not fast.relieve():
                return self._fall_back(_TOO_LITTLE_MEMORY)
        if isinstance(found, str):
            return self._fall_back(found)
        if self.name == "auto" and found > _MAX_COST_RATIO * reference:
            return self._fall_back("the linearized engine is not faster here")
        self._fast, self._seconds = fast, found
        self._settled = self.name != "auto"
        self._announce(fast.describe())
        if self.name in ("compiled", "cudagraph"):
            self._try(fast.compile if self.name == "compiled" else fast.capture)

    def _tried(self, fast: Linearized) -> float | str:
        """Seconds of a product with a new engine that agrees with the reference; or why it is not used."""
        try:
            difference = disagreement(fast, self.objective)
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

    def _try(self, change: Callable[[], None]) -> None:
        """Compiles or captures; goes back where that fails, disagrees with the reference, or is slower."""
        fast, before = self._fast, self._seconds
        assert fast is not None
        try:
            change()
            difference = disagreement(fast, self.objective)
            if difference is not None:
                self._warn(fast.form, difference)
                return self._undo()
            after = self._measure()
            if self.name == "auto" and after > before:
                return self._undo()
            self._seconds, self._most_columns = after, 1
            return self._announce(fast.describe())
        except Exception as error:  # no compiler, too little memory, an operation that the compiler does not know …
            reason = autograd.first_line(error)
        release_memory()
        self._undo()
        self._announce(f"{fast.describe()} (not {change.__name__}d: {reason})")

    def _undo(self) -> None:
        """Back to the eager form."""
        fast = self._fast
        assert fast is not None
        fast.undo()
        within_memory(lambda: fast(self._vector()))  # saves activations again
        self._most_columns = 1

    def _vector(self) -> Tensor:
        return torch.ones(self.objective.space.n, 1, dtype=self.objective.dtype, device=self.objective.device)

    def _measure(self) -> float:
        """Seconds of a product with one vector: the faster of two, after a first that may still prepare something."""
        fast = self._fast
        assert fast is not None
        v = self._vector()
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            fast(v)
            if v.device.type == "cuda":
                torch.cuda.synchronize(v.device)
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:])

    def _fall_back(self, reason: str) -> None:
        self._fast, self._settled = None, True
        self._announce(f"autograd ({reason})")

    def _warn(self, form: str, difference: str) -> None:
        warnings.warn(
            f"the {form} engine disagrees with autograd on this model ({difference}) and is not used.",
            RuntimeWarning,
            stacklevel=2,
        )

    def _announce(self, plan: str) -> None:
        self.plan = plan
        _LOG.info("engine: %s", plan)
