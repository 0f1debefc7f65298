"""Which engine computes the products: measured, predicted, checked against the reference, and told in one line."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.memory import free_memory
from hvpspec.objective.objective import Objective
from hvpspec.options import ENGINES
from hvpspec.oracle import autograd
from hvpspec.oracle.autograd import OnBatch
from hvpspec.oracle.finite_difference import FiniteDifference
from hvpspec.oracle.linearized import SHARE, Linearized, agrees
from hvpspec.oracle.tracing import NotTraceable
from hvpspec.validation import all_finite

_LOG = logging.getLogger("hvpspec")

# Seconds that tracing and compiling take, as measured (results/oracle.md), and the share of a product that they save.
_TRACING, _SAVED_BY_TRACING = 2.0, 0.4
_COMPILING, _COMPILING_AN_OPERATION, _SAVED_BY_COMPILING = 5.0, 0.03, 0.2
_SLOWER = 1.05  # than the one in use: not worth having


class Chooser:
    """Computes products with the engine of that name; with "auto", changes to a faster one once that will repay.

    How many products are still to come is what `expect` was told, or else as many as have been made.
    """

    def __init__(self, objective: Objective, name: str, memory_limit: int | None = None) -> None:
        if name not in ENGINES:
            names = ", ".join(f"'{key}'" for key in ENGINES)
            raise InputError(f"no engine is named '{name}'; choose one of {names}.")
        self.objective, self.name = objective, name
        self.plan = "autograd"
        self._memory_limit = memory_limit
        self._fast: Linearized | None = None
        self._differences = FiniteDifference(objective) if name == "finite-difference" else None
        self._settled = name in ("autograd", "finite-difference")  # nothing more to try
        self._grouped = 1  # columns of the widest block that the best number of vectors together was found for
        self._made = 0
        self._expected = 0
        self._seconds = float("inf")  # a vector, the fastest seen of the engine in use

    @property
    def engine(self) -> str:
        """The name of the engine in use."""
        if self._differences is not None:
            return "finite-difference"
        return "autograd" if self._fast is None else "linearized"

    @property
    def noise(self) -> float:
        """What products are off by beyond rounding, relative to their length: 0 but for finite differences."""
        return self._differences.noise if self._differences is not None else 0.0

    def expect(self, products: int) -> None:
        """Says how many products are about to be asked for."""
        self._expected = self._made + products

    def foresee(self, products: int) -> float:
        """Seconds that so many products will take, as far as can be told from those made; NaN where there are none."""
        if self._made == 0:
            return float("nan")
        plain = products * self._seconds
        if self.name != "auto" or self._settled or self._fast is not None:
            return plain
        traced = plain * (1 - _SAVED_BY_TRACING) + _TRACING
        return min(plain, traced)

    def foresee_kept(self, products: int, taken: int) -> int:
        """Bytes that a linearized engine will keep, if so many products are to come and one takes so much now.

        A third of what plain double backward holds of a batch, beside a few vectors, is what measured models keep.
        """
        worth = products * self._seconds * _SAVED_BY_TRACING > _TRACING + 3 * self._seconds
        if self._settled or self._fast is not None or (self.name == "auto" and not worth):
            return 0  # nothing, or it is held already
        vectors = 4 * self.objective.space.n * (8 if self.objective.dtype == torch.float64 else 4)
        limit = self._memory_limit or int(SHARE * free_memory(self.objective.device))
        return min(self.objective.batch_count() * max(taken - vectors, 0) // 3, limit)

    def __call__(self, block: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        if not self._settled:
            self._consider(block.shape[1])
        if self._fast is not None and block.shape[1] >= 2 * self._grouped:
            self._grouped = block.shape[1]
            if self._fast.group(self._grouped) > 1:
                self._announce(self._fast.describe())
        start = time.perf_counter()
        product = self._product(block, on_batch)
        self._made += block.shape[1]
        self._seconds = min(self._seconds, (time.perf_counter() - start) / block.shape[1])
        return product

    def _product(self, block: Tensor, on_batch: OnBatch | None) -> Tensor:
        if self._differences is not None:
            product = self._differences(block, on_batch)
            self.plan = self._differences.describe()
            return product
        if self._fast is None:
            return autograd.hvp(self.objective, block, on_batch)
        try:
            product = self._fast(block, on_batch)
        except (KeyboardInterrupt, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the reference says what is wrong with the model or the data, or does the work
            self._fall_back(f"{type(error).__name__}: {_first_line(error)}")
            return autograd.hvp(self.objective, block, on_batch)
        if not all_finite(product):
            return autograd.hvp(self.objective, block, on_batch)  # which names the batch
        return product

    # --- the plan -----------------------------------------------------------------------------------------------

    def _consider(self, columns: int) -> None:
        """Changes to a faster engine if that is asked for, or will repay."""
        remaining = max(self._expected - self._made, self._made, columns)
        if self._fast is None:
            gain = remaining * self._seconds * _SAVED_BY_TRACING if self._made else 0.0
            if self.name != "auto" or gain > _TRACING + 3 * self._seconds:
                self._trace()
        elif self.name == "auto":
            if self.objective.device.type == "cuda":
                self._settled = True
                self._try(self._fast.capture)
            elif remaining * self._seconds * _SAVED_BY_COMPILING > self._compile_seconds():
                self._settled = True
                self._try(self._fast.compile)

    def _compile_seconds(self) -> float:
        assert self._fast is not None
        return _COMPILING + _COMPILING_AN_OPERATION * self._fast.operations

    def _trace(self) -> None:
        fast = Linearized(self.objective, memory_limit=self._memory_limit)
        reference = self._seconds
        try:
            difference = agrees(fast, self.objective)
        except NotTraceable as error:
            return self._fall_back(str(error))
        except (InputError, KeyboardInterrupt):
            raise
        except Exception as error:
            return self._fall_back(f"{type(error).__name__}: {_first_line(error)}")
        if difference is not None:
            return self._disagrees("linearized", difference)
        self._fast = fast
        self._seconds = self._measure()
        if self.name == "auto" and self._seconds > _SLOWER * reference:
            self._seconds = reference
            return self._fall_back("the linearized engine is not faster here")
        self._settled = self.name != "auto"
        self._announce(fast.describe())
        if self.name in ("compiled", "cudagraph"):
            self._try(fast.compile if self.name == "compiled" else fast.capture)

    def _try(self, change: Callable[[], None]) -> None:
        """Compiles or captures; goes back when that fails, disagrees or is slower."""
        fast, before = self._fast, self._seconds
        assert fast is not None
        try:
            change()
            difference = agrees(fast, self.objective)
            if difference is not None:
                self._disagrees(fast.form, difference, keep=True)
                return self._return()
            after = self._measure()
            if self.name == "auto" and after > before:
                return self._return()
            self._seconds, self._grouped = after, 1
        except KeyboardInterrupt:
            raise
        except Exception as error:  # no compiler, no memory, an operation that the compiler does not know …
            self._return()
            self._announce(f"{fast.describe()} (not {change.__name__}d: {_first_line(error)})")
            return
        self._announce(fast.describe())

    def _return(self) -> None:
        """Back to the eager form."""
        assert self._fast is not None
        self._fast.undo()
        self._fast(self._vector())
        self._grouped = 1

    def _vector(self) -> Tensor:
        return torch.ones(self.objective.space.n, 1, dtype=self.objective.dtype, device=self.objective.device)

    def _measure(self) -> float:
        """Seconds of a product with one vector, the fastest of two, after one that may still prepare."""
        assert self._fast is not None
        v = self._vector()
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            self._fast(v)
            if v.device.type == "cuda":
                torch.cuda.synchronize(v.device)
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:])

    def _fall_back(self, reason: str) -> None:
        self._fast, self._settled = None, True
        self._announce(f"autograd ({reason})")

    def _disagrees(self, form: str, difference: str, keep: bool = False) -> None:
        warnings.warn(
            f"the {form} engine disagrees with autograd on this model ({difference}) and is not used.",
            RuntimeWarning,
            stacklevel=2,
        )
        if not keep:
            self._fall_back(f"the {form} engine disagrees: {difference}")

    def _announce(self, plan: str) -> None:
        self.plan = plan
        _LOG.info("engine: %s", plan)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else "no message"
