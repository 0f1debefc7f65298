"""Changes of engine: new ones are tried, compared with plain double backward and timed; ranks change together."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from dataclasses import asdict, replace
from typing import Literal

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.oracle import autograd
from hvpspec.oracle.autograd import described
from hvpspec.oracle.checks.agreement import disagreement
from hvpspec.oracle.choice.forms import SINGLE, ThroughForms, only
from hvpspec.oracle.choice.prices import Prices, costs_on
from hvpspec.oracle.choice.standings import (
    Outcome,
    Standing,
    Step,
    is_slower,
    next_step,
    slowest_after,
    why_not,
)
from hvpspec.oracle.recorded.linearized import Linearized
from hvpspec.oracle.recorded.recordings import are_known, give_up, record_first, seconds_to_record, within
from hvpspec.oracle.recorded.tracing import NotRecordable
from hvpspec.system.device_clock import time_when_done
from hvpspec.system.out_of_memory import (
    OutOfMemory,
    is_out_of_memory,
    release_memory,
    within_memory,
)

_LOG = logging.getLogger("hvpspec")

_FORMS = {"compile": "compiled", "capture": "CUDA graph"}
_TOO_LITTLE_MEMORY = "too little memory for the linearized engine"
_MAX_COST_RATIO = 1.05  # of a recorded product and the reference's: it is not used above


class Changes(ThroughForms):
    """The part of a `Chooser` that changes the engine before a product."""

    def _prepare(self, columns: int) -> None:
        """Changes to a faster engine where one is asked for, or where that is worthwhile; on all ranks or on none."""
        due = self._choices.due
        if due is not None and self._counts:
            self._take(due)
        if self._tell is None:  # what clocks decide waits for the other ranks
            if due is None and self.name != "auto" and not self._settled:
                with self.agreeing(only):
                    self._record()
        elif not self._closed:
            said = [Standing(**each) for each in self._told(asdict(self._standing(columns)))]
            if due is None or not all(each.follows for each in said):
                self._choices.known = None
                self._change(next_step(self.name, said, costs_on(self.objective.device)))

    def _join(self, columns: int) -> None:
        """Measures how many vectors are best computed together where twice as many come as before; ranks take the least
        of their numbers."""
        known = self.name in SINGLE or self._choices.due is not None
        if self._tell is None or known or columns < 2 * self._most_columns:
            return
        self._most_columns, fast = columns, self._fast
        if fast is not None and self._counts:
            within_memory(lambda: fast.vectorise(columns))
        together = min(self._told(None if fast is None else fast.together), default=1)
        if fast is not None and self._counts and fast.together > 1:
            fast.join(together)
            self._announce()

    def _change(self, step: Step) -> None:
        has_fallen_back = self._fast is None and self._failed == step.reason
        self._settled = step.do in ("fall back", "compile")
        if step.do == "fall back" and not has_fallen_back:
            self._fall_back(step.reason)
        elif step.do == "record":
            self._record(step.seconds)
        elif step.do == "compile":
            self._closed = True  # also where it is interrupted: it is not tried again
            self._try("compile")
        self._closed = self._settled

    def _standing(self, columns: int) -> Standing:
        fast, remaining = self._fast, max(self._expected - self._made, self._made, columns)
        standing = Standing(
            follows=self._choices.due is not None, form=None if fast is None else fast.form, failed=self._failed,
            made=self._made, remaining=remaining,
        )  # fmt: skip
        if not self._made:
            return standing
        prices = self._prices()
        return replace(
            standing, seconds=prices.product, spent=self._spent, graphs=prices.graphs, nodes=prices.nodes,
            recording=prices.recording, operations=0 if fast is None else fast.operations,
        )  # fmt: skip

    def _prices(self) -> Prices:
        plain, known = self._plain, are_known(self.objective)
        nodes = plain.nodes * max(len(plain.shapes), 1)
        return Prices(
            product=self._seconds_of_next(), graphs=plain.graphs, nodes=nodes, costs=costs_on(self.objective.device),
            recording=0.0 if known else seconds_to_record(nodes),
        )  # fmt: skip

    def _seconds_of_next(self) -> float:
        """Seconds of a product with one vector from now on, if the engine stays."""
        return self._seconds if self._fast is not None else min(self._seconds, self._plain.seconds)

    def _record(self, time_to_try: float | None = None) -> None:
        """Changes to the recorded engine. time_to_try: see `Prices.time_to_try`; None for as long as it takes."""
        own, outcomes = self._outcomes(lambda: self._recorded(time_to_try))
        if reason := why_not(outcomes):
            return self._fall_back(reason)
        costs, best = costs_on(self.objective.device), slowest_after(outcomes)
        if self.name == "auto" and costs is not None and costs.captures:
            # First: where launching takes most of the time, the eager form is slow as well.
            best = min(best, self._try("capture"))
        if self.name == "auto" and is_slower(outcomes, best, _MAX_COST_RATIO):
            self._seconds = own.before
            return self._fall_back("the linearized engine is not faster here")
        self._settled, self._most_columns = self.name != "auto", 1
        if self._counts:
            self._announce()
        if self.name in ("compiled", "cudagraph"):
            self._try("compile" if self.name == "compiled" else "capture")
        return None

    def _recorded(self, time_to_try: float | None) -> Outcome:
        """Makes the recorded engine, and compares its product with one by plain double backward."""
        if self._fast is not None:  # by a preflight, say
            return Outcome("", self._seconds, self._seconds)
        fast = Linearized(self.objective, memory_limit=self._memory_limit)
        with within(time_to_try):
            while isinstance(found := within_memory(lambda: self._tried(fast)), OutOfMemory):
                if not fast.relieve():
                    self._plain.stop()
                    return Outcome(_TOO_LITTLE_MEMORY)
        if isinstance(found, str):
            give_up(self.objective, found)
            return Outcome(found)
        outcome = Outcome("", min(self._seconds, self._plain_seconds), found)
        self._seconds = found
        return outcome

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

    def _try(self, change: Literal["compile", "capture"]) -> float:
        """Changes the form; goes back where that fails, disagrees with the reference, or is slower; all ranks do then.

        Returns the seconds of a product on the slowest rank; infinity where it goes back.
        """
        form = "" if self._fast is None else self._fast.form
        own, outcomes = self._outcomes(lambda: self._changed(change))
        reason, best, self._most_columns = why_not(outcomes), slowest_after(outcomes), 1
        goes_back = bool(reason) or (self.name == "auto" and is_slower(outcomes, best))
        if not self._counts:
            return math.inf if goes_back else best
        if goes_back:
            release_memory()
            self._undo(form)
            if not reason:
                return math.inf
            self._untried = f" (not {change}d: {reason})"
        else:
            self._seconds = own.after
        self._announce()
        return math.inf if goes_back else best

    def _changed(self, change: str) -> Outcome:
        fast, before = self._fast, self._seconds
        assert fast is not None
        if fast.form == _FORMS[change]:  # by a preflight, say
            return Outcome("", before, before)
        try:
            getattr(fast, change)()
            difference = disagreement(fast, self.objective)
            if difference is None:
                return Outcome("", before, self._measure())
        except Exception as error:  # no compiler, too little memory, an operation that the compiler does not know …
            return Outcome(autograd.first_line(error))
        self._warn(fast.form, difference)
        return Outcome(f"it disagrees with autograd: {difference}")

    def _undo(self, form: str) -> None:
        """Back to the form before."""
        fast = self._fast
        assert fast is not None
        fast.undo()
        within_memory(lambda: fast(self._vector()))  # saves activations again
        if form == "CUDA graph":
            with contextlib.suppress(Exception):  # it stays eager
                fast.capture()

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
        self._fast, self._settled, self._choices.known, self._failed = None, True, None, reason
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
