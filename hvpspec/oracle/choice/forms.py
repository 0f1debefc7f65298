"""What was chosen by measured times, so that another run of the same command can choose the same.

Forms of an engine round differently. Which one is faster may depend on what else the machine does, and then two runs
would differ in their last digits.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from hvpspec.errors import InputError
from hvpspec.objective.objective import Objective
from hvpspec.options import Engine
from hvpspec.oracle.autograd import described
from hvpspec.oracle.checks.agreement import disagreement
from hvpspec.oracle.choice.standings import Outcome
from hvpspec.oracle.finite_difference import FiniteDifference
from hvpspec.oracle.recorded.linearized import Linearized
from hvpspec.oracle.retained import RetainedGraphs
from hvpspec.system.out_of_memory import OutOfMemory, within_memory

SINGLE = ("autograd", "finite-difference")  # engines that leave nothing to choose

Tell = Callable[[Any], list[Any]]

Form = dict[str, Any]
"""JSON-ready: `form`, `together`, `whole` and `level` of the recorded engine, and `plan`, the line that says so."""


@dataclass
class Choices:
    """Which form products were computed in, and from which product of a run on.

    made: products of the run. forms: its own, each with `from`, the number of the first product. known: those of an
    earlier run, which are taken in their place; None where the choice is free.
    """

    made: int = 0
    forms: list[Form] = field(default_factory=list)
    known: list[Form] | None = None

    @property
    def due(self) -> Form | None:
        """The form that the next product had in the earlier run."""
        started = [form for form in self.known or () if form["from"] <= self.made]
        return started[-1] if started else None

    @property
    def will_record(self) -> bool:
        """Whether the earlier run computed later products with a recorded engine."""
        return any(form["form"] is not None for form in self.known or ())

    def add(self, products: int, form: Form) -> None:
        """Notes products that were made in a form."""
        if not self.forms or {**self.forms[-1], **form} != self.forms[-1]:
            self.forms.append({"from": self.made, **form})
        self.made += products


def are_forms(value: Any) -> bool:
    """Whether a value that was read from a file is a list of forms."""
    kinds: dict[str, tuple[type, ...]] = {
        "from": (int,), "form": (str, type(None)), "together": (int,), "whole": (bool,), "level": (int, type(None)),
        "plan": (str,),
    }  # fmt: skip
    return isinstance(value, list) and all(
        isinstance(form, dict)
        and form.keys() == kinds.keys()
        and all(isinstance(form[name], kind) for name, kind in kinds.items())
        and form["together"] >= 1
        for form in value
    )


def engine_in(form: Form, objective: Objective, memory_limit: int | None) -> Linearized | str:
    """The recorded engine in a form that was chosen before; or why it does not work any more."""
    fast = Linearized(objective, memory_limit=memory_limit)
    try:
        fast.resume(form["form"], together=form["together"], whole=form["whole"], level=form["level"])
        difference = disagreement(fast, objective)
    except (InputError, KeyboardInterrupt, torch.OutOfMemoryError):
        raise
    except Exception as error:
        difference = described(error)
    return fast if difference is None else difference


def only(own: Any) -> list[Any]:
    """What is said where there are no other ranks."""
    return [own]


class ThroughForms:
    """The part of a `Chooser` that goes on as other ranks do, as another process has begun, and as an earlier run of
    the command went."""

    objective: Objective
    name: Engine
    _plan: str
    _plain: RetainedGraphs
    _memory_limit: int | None
    _fast: Linearized | None
    _differences: FiniteDifference | None
    _settled: bool
    _closed: bool
    _failed: str
    _most_columns: int
    _made: int
    _expected: int
    _seconds: float
    _spent: float

    _tell: Tell | None
    _counts: bool

    def __init__(self) -> None:
        self._resumed: dict[str, Any] | None = None  # the engine of an earlier process, to be made again
        self._choices = Choices()

    @property
    def plan(self) -> str:
        """How products are computed, in one line."""
        raise NotImplementedError

    @contextlib.contextmanager
    def agreeing(self, tell: Tell, *, counts: bool = True) -> Iterator[None]:
        """Around a product that all ranks make, or attend.

        tell: what each rank says, in their order (JSON-ready). counts: whether this rank has a part in the product.
        """
        before = self._tell, self._counts
        self._tell, self._counts = tell, counts
        try:
            yield
        finally:
            self._tell, self._counts = before

    def reopen(self) -> None:
        """An error has ended a product of all ranks, in different places: what gates an exchange is the same again."""
        self._closed, self._most_columns = self.name in SINGLE, 1

    def _told(self, own: Any) -> list[Any]:
        """What the ranks say that have a part in the product; each must ask as often as the others."""
        assert self._tell is not None
        return [each for each in self._tell(own if self._counts else None) if each is not None]

    def _outcomes(self, change: Callable[[], Outcome]) -> tuple[Outcome, list[Outcome]]:
        """Of a change on this rank, and on all that have a part in the product."""
        own = change() if self._counts else Outcome()
        return own, [Outcome(**each) for each in self._told(dataclasses.asdict(own))]

    def state(self) -> dict[str, Any]:
        """What measurements have decided of how products are computed, JSON-ready: `resume` goes on from there."""
        if self._resumed is not None:
            return self._resumed
        differences = self._differences
        return {
            **self._form(), "shown": self.plan,
            "settled": self._settled, "closed": self._closed, "failed": self._failed,
            "most_columns": self._most_columns, "made": self._made, "expected": self._expected,
            "seconds": self._seconds, "spent": self._spent, "choices": dataclasses.asdict(self._choices),
            "differences": None if differences is None else differences.state(),
        }  # fmt: skip

    def _form(self) -> Form:
        fast = self._fast
        return {
            "form": None if fast is None else fast.form, "together": 1 if fast is None else fast.together,
            "whole": fast is not None and fast.compiled_whole, "level": None if fast is None else fast.level,
            "plan": self._plan,
        }  # fmt: skip

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on with the engine of an earlier process; costs are not compared again. It is made when it is needed."""
        self._resumed, self._plan, self._settled = state, state["plan"], state["settled"]
        # Logs of older versions do not have these.
        self._closed, self._failed = state.get("closed", self._settled), state.get("failed", "")
        for name in ("most_columns", "made", "expected", "seconds", "spent"):
            setattr(self, f"_{name}", state[name])
        self._choices = Choices(**state["choices"])

    def follow(self, known: list[Form] | None) -> None:
        """A run begins; known: the forms of an earlier one with the same inputs, which its products get as well.

        Of ranks, all of them have some, or none.
        """
        self._choices = Choices(known=known or None)
        if self._choices.known:
            self._closed = self.name in SINGLE

    @property
    def chosen(self) -> list[Form]:
        """The forms of the run so far."""
        return self._choices.forms

    def _make(self, state: dict[str, Any]) -> None:
        """The engine of an earlier process. Raises InputError where it no longer works: its products would be rounded
        otherwise."""
        self._resumed = None
        if self._differences is not None:
            self._differences.resume(state["differences"])
        if state["form"] is None:
            self._fast = None
            return
        fast = engine_in(state, self.objective, self._memory_limit)
        if isinstance(fast, str):
            raise InputError(
                f'the run was interrupted with the engine "{state["plan"]}", which cannot be used any more ({fast}); '
                "start over (--restart), or choose another engine."
            )
        self._fast = fast

    def _take(self, due: Form) -> None:
        """The form that an earlier run had here; where it no longer works, the choice is free again."""
        now, self._settled = self._form(), True
        if any(due[name] != now[name] for name in ("form", "whole", "level")):
            self._plain.drop()
            made = None if due["form"] is None else within_memory(lambda: self._again(due))
            if isinstance(made, str | OutOfMemory):
                self._choices.known, self._settled = None, self.name in SINGLE
                return
            self._fast = made
        elif self._fast is not None:
            self._fast.together = due["together"]
        self._plan = due["plan"]

    def _again(self, due: Form) -> Linearized | str:
        try:
            return engine_in(due, self.objective, self._memory_limit)
        except InputError as error:
            return described(error)
