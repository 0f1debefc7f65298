"""Which engine computes the products: measured, predicted, checked against the reference, and told in one line."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.objective import Objective
from hvpspec.oracle import autograd
from hvpspec.oracle.autograd import OnBatch
from hvpspec.oracle.linearized import Linearized, NotTraceable, agrees

ENGINES = ("auto", "autograd", "linearized", "compiled", "cudagraph")
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
        self._settled = name == "autograd"  # nothing more to try
        self._made = 0
        self._expected = 0
        self._seconds = float("inf")  # a vector, the fastest seen of the engine in use

    @property
    def engine(self) -> str:
        """The name of the engine in use."""
        return "autograd" if self._fast is None else "linearized"

    def expect(self, products: int) -> None:
        """Says how many products are about to be asked for."""
        self._expected = self._made + products

    def __call__(self, block: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        if not self._settled:
            self._consider(block.shape[1])
        start = time.perf_counter()
        product = self._product(block, on_batch)
        self._made += block.shape[1]
        self._seconds = min(self._seconds, (time.perf_counter() - start) / block.shape[1])
        return product

    def _product(self, block: Tensor, on_batch: OnBatch | None) -> Tensor:
        if self._fast is None:
            return autograd.hvp(self.objective, block, on_batch)
        try:
            product = self._fast(block, on_batch)
        except (KeyboardInterrupt, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the reference says what is wrong with the model or the data, or does the work
            self._fall_back(f"{type(error).__name__}: {_first_line(error)}")
            return autograd.hvp(self.objective, block, on_batch)
        if not bool(torch.isfinite(product).all()):
            return autograd.hvp(self.objective, block, on_batch)  # which names the batch
        return product

    # --- the plan -----------------------------------------------------------------------------------------------

    def _consider(self, columns: int) -> None:
        """Changes to a faster engine if that is asked for, or will repay."""
        remaining = max(self._expected - self._made, self._made, columns)
        if self._fast is None:
            gain = remaining * self._seconds * _SAVED_BY_TRACING if self._made else 0.0
            if self.name != "auto" or gain > _TRACING + 3 * self._seconds:
                self._trace(columns)
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

    def _trace(self, columns: int) -> None:
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
        if columns > 1:
            fast.group()
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
                return fast.undo()
            after = self._measure()
            if self.name == "auto" and after > before:
                return fast.undo()
            self._seconds = after
        except KeyboardInterrupt:
            raise
        except Exception as error:  # no compiler, no memory, an operation that the compiler does not know …
            fast.undo()
            self._announce(f"{fast.describe()} (not {change.__name__}d: {_first_line(error)})")
            return
        self._announce(fast.describe())

    def _measure(self) -> float:
        """Seconds of a product with one vector, the fastest of two, after one that may still prepare."""
        assert self._fast is not None
        v = torch.ones(self.objective.space.n, 1, dtype=self.objective.dtype, device=self.objective.device)
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
