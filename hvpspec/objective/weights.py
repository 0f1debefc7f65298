"""What the mean of a batch's loss was taken over, measured by cutting batches in two and joining neighbours.

A mean with weights w over the parts 1 and 2 of a batch satisfies

    (w1 + w2) L = w1 L1 + w2 L2

with what is counted, such as samples or targets that are not ignored, in the places of w1 and w2. The first in a list
of things to count that satisfies it on all batches is what they are weighed by. A loss that satisfies it with none is
no mean, and the objective would depend on how the data are split into batches.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch

from hvpspec.errors import InputError
from hvpspec.objective.batches import tensors
from hvpspec.objective.cutting import (
    AXES,
    FIRST,
    GIVEN,
    SAMPLES,
    Axis,
    CannotCut,
    Count,
    counts,
    cut,
    joined,
    length,
    said_size,
    same_samples,
)
from hvpspec.objective.noise import is_random

Evaluate = Callable[[int, Any], tuple[float, float | None]]
"""The loss of a batch (NaN where it has none), which errors name by the number given, and the weight returned."""
Place = Callable[[torch.dtype, bool, bool], AbstractContextManager[Evaluate]]
"""Evaluates losses in a dtype, at parameters that are moved or the model's own, and with gradients or without."""

BATCHES = "batches"
_ROUNDING = {torch.float64: 1e-11, torch.float32: 1e-5}  # relative deviations that come from adding in another order
_LARGEST_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4}  # parts of a model may compute in single precision
_BATCHES_FOR_GIVEN = 2  # with which a weight that a loss returns is tried
ADVICE = "let the loss return (mean loss, weight), where the weight is what the mean is taken over"
OWN_ADVICE = (
    'give all the data as one batch, or a function loss(model, batch) in place of the loss "model", and let it return '
    "(mean loss, weight), where the weight is what the mean is taken over"
)


@dataclass(frozen=True)
class Counting:
    """How batches are weighed. `by`: what is counted. `axis`: where samples are. `is_sum`: whether the loss of the only
    batch is a sum over its samples."""

    by: str = GIVEN
    axis: Axis = FIRST
    is_sum: bool = False

    def __call__(self, index: int, batch: Any, given: Count | None) -> Count:
        """The weight of a batch. Raises InputError, naming it, where that cannot be told."""
        if self.by == GIVEN and given is not None:
            return given
        if self.by == BATCHES:
            return 1.0
        if self.by in (GIVEN, SAMPLES):
            return sample_count(index, batch, self.axis)
        return counts(batch, self.axis, given)[self.by]()


def sample_count(index: int, batch: Any, axis: Axis = FIRST) -> float:
    """The number of samples in a batch. Raises InputError, naming the batch, where that is not clear."""
    try:
        return float(length(batch, axis))
    except CannotCut as reason:
        raise InputError(f"batch {index}: the number of samples is not clear ({reason}); {ADVICE}.") from None


def samples_or_nan(batch: Any, axis: Axis = FIRST) -> float:
    """The same; NaN where it is not clear."""
    try:
        return float(length(batch, axis))
    except CannotCut:
        return math.nan


# --- measuring --------------------------------------------------------------------------------------------------------


def measured(
    data: Iterable[Any],
    place: Place,
    dtype: torch.dtype,
    *,
    guessed: bool = False,
    seeded: bool = False,
    trust: bool = False,
) -> Counting:
    """How the batches are to be weighed. Costs three forward passes over the data; over two batches where the loss
    returns its weights.

    dtype: the objective's. guessed: whether a weight that the loss returns is a guess, one among others. seeded:
    whether its noise is fixed by a seed. trust: evaluates the first batch only, and measures nothing. Raises InputError
    for a loss that is no mean where there are several batches, and what the first batch's loss raises.
    """
    for first in data:
        gradients, given = first_evaluation(first, place, dtype)
        if trust:
            return Counting(SAMPLES if given is None else GIVEN)
        with contextlib.ExitStack() as stack:
            dtype, evaluate = best_place(first, place, dtype, gradients, stack)
            return Measurement(evaluate, dtype, given is not None, seeded, guessed=guessed).over(data)
    return Counting()


def first_evaluation(batch: Any, place: Place, dtype: torch.dtype) -> tuple[bool, float | None]:
    """Whether the loss needs gradients, and the weight that it returns.

    At the model's own values, as what a program computes at its first call it may keep.
    """
    try:
        with place(dtype, False, False) as evaluate:
            return False, evaluate(0, batch)[1]
    except InputError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
        with place(dtype, False, True) as evaluate:  # what else is wrong raises again
            return True, evaluate(0, batch)[1]


def best_place(
    batch: Any, place: Place, dtype: torch.dtype, gradients: bool, stack: contextlib.ExitStack
) -> tuple[torch.dtype, Evaluate]:
    """In float64 away from the model's values, where samples differ most; or as close to that as is possible."""
    for precision in dict.fromkeys((torch.float64, dtype)):
        for moved in (True, False):
            with contextlib.ExitStack() as inside:
                try:
                    evaluate = inside.enter_context(place(precision, moved, gradients))
                    finite = math.isfinite(evaluate(0, batch)[0])
                except Exception:  # too little memory for float64 included
                    continue
                if finite:
                    stack.push(inside.pop_all())
                    return precision, evaluate
    return dtype, stack.enter_context(place(dtype, False, gradients))


@dataclass(frozen=True)
class _Part:
    """A batch, its loss, and what can be counted in it."""

    batch: Any
    loss: float
    counts: dict[str, float]


class Measurement:
    """What the batches so far have shown."""

    def __init__(
        self, evaluate: Evaluate, dtype: torch.dtype, given: bool, seeded: bool, *, guessed: bool = False
    ) -> None:
        self.evaluate, self.given, self.seeded = evaluate, given and not guessed, seeded
        self.guessed, self.advice = guessed, OWN_ADVICE if guessed else ADVICE
        self.rounding, self.largest_rounding = _ROUNDING[dtype], _LARGEST_ROUNDING[dtype]
        self.axis: Axis | None = None
        self.worst: dict[str, float] = {}  # the largest relative deviation of each count that was compared
        self.ruled_out: set[str] = set()  # counts that do not add up
        self.compared = False
        self.known: set[str] = set()  # the names of counts in the first batch
        self.given_adds_up = self.given_is_constant = True
        self.refusal: str | None = None  # the sentence in force once there is a second batch
        self.comparisons = 0
        self.sums: list[str] = []  # those in which the losses of parts add up to that of the whole
        self.is_sum = False
        self.alike = True  # whether all batches have tensors of the same shapes
        self.first: Any = None
        self.batch: Any = None  # the present one
        self.last: _Part | None = None

    def over(self, data: Iterable[Any]) -> Counting:
        """Goes through the batches, and says what they are weighed by."""
        count = 0
        for index, batch in enumerate(data):
            if self.given and index >= _BATCHES_FOR_GIVEN:
                break
            self._see(index, batch)
            count += 1
            if count > 1 and self.refusal is not None:
                raise InputError(f"{self.refusal}.")
        axis = self.axis or FIRST
        if count <= 1:  # its weight does not matter
            known = self.given or math.isfinite(samples_or_nan(self.first, axis))
            return Counting(GIVEN if known else BATCHES, axis, self.is_sum)
        possible = self.possible()
        if self.given or not self.compared:
            return Counting(GIVEN, axis)
        return Counting(possible[0] if possible else GIVEN, axis)

    def _see(self, index: int, batch: Any) -> None:
        loss, given = self.evaluate(index, batch)
        if not math.isfinite(loss):  # all of it is left out, say; if not, the pass over the data refuses it
            self.last = None
            return
        parts = self._cut(batch, loss, given)
        if self.last is not None and parts:
            self._join(index, self.last, parts[0])
        self.batch, self.first = batch, batch if self.first is None else self.first
        self.alike = self.alike and _shapes(batch) == _shapes(self.first)
        if self.refusal is None:
            self.refusal = self._no_mean(index, loss, given, parts)
        self.last = parts[-1] if parts else None

    # --- cutting and joining ---

    def _cut(self, batch: Any, loss: float, given: float | None) -> list[_Part]:
        """The halves of a batch. The axis is the first along which some count agrees with the losses."""
        fallback: tuple[Axis, _Part, list[_Part]] | None = None
        single: tuple[Axis, _Part] | None = None  # one sample, along the first axis with that
        for axis in AXES if self.axis is None else (self.axis,):
            try:
                size = length(batch, axis)
                whole = _counted(batch, loss, given, axis)
                ends = ((0, size // 2), (size // 2, size)) if size > 1 else ()
                parts = [self._part(cut(batch, axis, *end), axis) for end in ends]
            except torch.OutOfMemoryError:
                raise
            except Exception:  # what a model cannot do with half a batch
                continue
            if not parts:
                single = single or (axis, whole)
                continue
            if self._agrees(_deviations(whole, parts)):
                fallback = (axis, whole, parts)
                break
            fallback = fallback or (axis, whole, parts)
        if fallback is None or (single is not None and not self._agrees(_deviations(*fallback[1:]))):
            if single is None:
                return []
            self.axis, whole = single
            return [whole]
        self.axis, whole, parts = fallback
        self._note(whole, parts)
        return parts

    def _part(self, batch: Any, axis: Axis) -> _Part:
        return _counted(batch, *self.evaluate(0, batch), axis)

    def _join(self, index: int, first: _Part, second: _Part) -> None:
        """Compares parts of neighbouring batches, joined along either dimension."""
        assert self.axis is not None
        for axis in {self.axis: None, replace(self.axis, dim=1 - self.axis.dim): None}:
            try:
                whole = self._part(joined(first.batch, second.batch, axis), self.axis)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # shapes that do not fit, a model that takes no other batches
                continue
            self._note(whole, [first, second])
            return
        if self.given or GIVEN in self.possible():
            return
        if not (same_samples(first.batch, second.batch) or self._proportional(first, second)):
            self.refusal = (
                f"batch {index}: its samples have other shapes than those of batch {index - 1}, so that it cannot be "
                f"told whether the loss is a mean over samples or over what they consist of; {self.advice}"
            )

    # --- conclusions ---

    def _note(self, whole: _Part, parts: Sequence[_Part]) -> None:
        found, known = _deviations(whole, parts), whole.counts if not self.compared else self.known
        self.comparisons += 1
        losses = [part.loss for part in parts]
        if abs(sum(losses) - whole.loss) <= self.largest_rounding * max(map(abs, losses)):
            self.sums.append(f"{whole.loss:.6g}, its parts {' and '.join(f'{loss:.6g}' for loss in losses)}")
        self.compared, self.known = True, set(known)
        self.ruled_out |= {name for name in known if name not in found and whole.counts.get(name) != 0}
        for name, off in found.items():
            self.worst[name] = max(self.worst.get(name, 0.0), off)
        if self.given:
            weights = [part.counts[GIVEN] for part in (*parts, whole)]
            self.given_is_constant &= len(set(weights)) == 1
            total = math.isclose(sum(weights[:-1]), weights[-1], rel_tol=1e-6)
            self.given_adds_up &= total or all(weight == round(weight) > 0 for weight in weights)

    def _agrees(self, deviations: dict[str, float]) -> bool:
        return bool(deviations) and min(deviations.values()) <= self.largest_rounding

    def possible(self) -> list[str]:
        """Counts that agree with the losses as well as any does."""
        left = {name: off for name, off in self.worst.items() if name in self.known - self.ruled_out}
        if not self._agrees(left):
            return []
        limit = max(self.rounding, 10 * min(left.values()))
        return [name for name, off in left.items() if off <= limit]

    def _proportional(self, first: _Part, second: _Part) -> bool:
        """Whether all counts that are still possible give two batches weights in the same proportion."""
        pairs = [(first.counts.get(name, 0.0), second.counts.get(name, 0.0)) for name in self.possible()]
        ratios = [a / b if b else math.inf for a, b in pairs]
        return len(ratios) > 0 and max(ratios) - min(ratios) <= 1e-12 * max(ratios)

    def _no_mean(self, index: int, loss: float, given: float | None, parts: Sequence[_Part]) -> str | None:
        """Why the loss cannot be weighed; None where it can."""
        possible = self.possible()
        if self.given:
            if GIVEN in possible or self.given_is_constant or (self.given_adds_up and not possible):
                return None  # a constant says that every batch is to count the same
            return (
                f"batch {index}: the second value that the loss returned ({given:g}) is not the weight of the first: "
                "those of a batch and of its parts do not add up; return the mean loss alone, or with its weight"
            )
        if not self.compared:  # nothing could be cut
            entries = self.first if isinstance(self.first, (tuple, list)) else (self.first,)
            said = any(said_size(entry) is not None for entry in entries)
            if said or (self.alike and not math.isnan(samples_or_nan(self.first, self.axis or FIRST))):
                return None
            why = "what its loss is a mean over cannot be measured, as it cannot be cut in two"
            return f"batch {index}: {why}; {self.advice}"
        if possible:
            return None
        again = self.evaluate(index + 1, self.batch)[0]  # another number has another seed
        if abs(again - loss) > self.rounding * max(abs(again), abs(loss)):
            if not self.seeded:
                raise is_random(loss, again)
            if self.alike and not math.isnan(samples_or_nan(self.first, self.axis or FIRST)):
                return None
            return f"batch {index}: what its loss is a mean over cannot be measured under noise of NumPy; {self.advice}"
        if self.sums and len(self.sums) == self.comparisons:
            self.is_sum = True
            otherwise = self.advice if self.guessed else "return the mean, or (mean loss, weight)"
            return (
                f"batch {index}: the loss is a sum over the batch and grows with its size (a batch gives "
                f'{self.sums[-1]}); {otherwise}, or ask for the Hessian of the sum by reduction="sum" (--reduction sum)'
            )
        losses = [part.loss for part in parts]
        shown = f" (a batch gives {loss:.6g}, its two halves {losses[0]:.6g} and {losses[1]:.6g})" if parts[1:] else ""
        return (
            f"batch {index}: the loss is no mean over samples, or over anything else that its batches show{shown}; "
            f"{self.advice}"
        )


def _counted(batch: Any, loss: float, given: float | None, axis: Axis) -> _Part:
    return _Part(batch, loss, {name: float(count()) for name, count in counts(batch, axis, given).items()})


def _deviations(whole: _Part, parts: Sequence[_Part]) -> dict[str, float]:
    """|Σ w L of the parts − w L of the whole| for each count that adds up, relative to w and the largest of the losses.

    A count of 0 in the whole shows nothing, and is left out; a part's loss is not looked at where its count is 0.
    """
    found = {}
    for name, weight in whole.counts.items():
        weights = [part.counts.get(name, math.nan) for part in parts]
        if not (weight > 0 and math.isclose(sum(weights), weight, rel_tol=1e-6)):
            continue
        counted = [(w, part.loss) for w, part in zip(weights, parts, strict=True) if w]
        off = abs(sum(w * loss for w, loss in counted) / weight - whole.loss)
        size = max(abs(whole.loss), *(abs(loss) for _, loss in counted))
        if math.isfinite(off):
            found[name] = off / size if size else 0.0
    return found


def _shapes(batch: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors(batch)]
