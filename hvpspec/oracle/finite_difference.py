"""The engine for losses with an operation that torch can differentiate only once: central differences of the gradient.

What a product and its error are made of is in `hvpspec.oracle.central_differences`. The step is chosen once, as the one
with the smallest error for a random vector, and stays: what one vector needs does not depend on those before it. Where
the loss has a kink or curves more along one vector than along the random one, that product is made once more with a
smaller step, but never with one so small that the noise that has been measured would be most of its error. Computed in
float64 where the loss allows it, and there without the casts to float32 that a model may contain.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from hvpspec.errors import InputError, ZeroHessianWarning
from hvpspec.kernels.casts import WithoutCasts
from hvpspec.kernels.deferred import Deferred, Doubtful, not_finite
from hvpspec.kernels.random_vectors import directions
from hvpspec.objective.objective import Objective
from hvpspec.oracle import autograd
from hvpspec.oracle.autograd import OnBatch
from hvpspec.oracle.central_differences import (
    Differences,
    Estimate,
    coarsest_unit,
    differences,
    error,
    noise,
    size,
)
from hvpspec.system.device_clock import time_when_done
from hvpspec.system.out_of_memory import forget_frames
from hvpspec.validation import all_finite
from hvpspec.wording import dtype_name

NO_FUNCTION = (
    "no function has this gradient, so that there is no Hessian (a straight-through estimator, detach() of what "
    "depends on the parameters, a backward that is not the derivative of its forward)"
)

_FIRST_STEP = 1 / 3  # the power of the unit roundoff, in units of |p|
_STEP_RATIO = 8.0  # between the steps that are tried
_MOST_STEPS = 6  # tried in either direction
_PATIENCE = 3  # smaller steps that are worse before the search ends: among kinks, the error grows until none is left
_ENOUGH, _ENOUGH_TO_COMPARE = 1e-8, 1e-7  # relative errors with which the search ends
_WORTH_REPEATING = 1e-5  # relative error of a batch's product, and how many times as large as the noise it is:
_TIMES_NOISE = 30.0
_LEAST_REDUCTION = 1e-3  # of the step, where a product is repeated
_SAME_DIGITS = 1e-13  # relative: losses with and without casts that round nothing
_SAME_SAMPLE = 1e-3  # relative: losses of the same random numbers in float32 and float64 differ by less
_AS_GOOD_AS_ZERO = 1e-6  # a product's size relative to the largest, if its error is as large as the product
_SHOWN = ("_step", "_least_step", "_noise", "_rounding", "_largest")  # what products change


@dataclass(frozen=True)
class Validation:
    """How finite differences compare with autograd, on parameters in which the loss can be differentiated twice.

    `names`: these parameters, of `tried` ones. `difference`: of the products with one vector, relative to autograd's.
    `bound`: the estimated error of the differences. Both are NaN where no parameter can be differentiated twice.
    """

    names: tuple[str, ...]
    tried: int
    difference: float
    bound: float


class FiniteDifference:
    """Products by finite differences, at four gradients a vector and one for all of them.

    Where the loss has a kink near p, a batch's product costs four gradients more. `noise` is the relative error.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._working: _Working | None = None
        self._step = self._least_step = 0.0
        self._noise = 0.0
        self._rounding = 0.0  # error × step of a batch's product: as far as it is noise, larger for smaller steps
        self._largest = 0.0  # product with a unit vector
        self._repeats = False  # whether a product has been made once more: then what is wrong is looked at at once

    @property
    def noise(self) -> float:
        """The largest relative error estimated so far; before the first product, that for a random vector.

        A product that is as small as its error is compared with at least 1e-6 of the largest product so far. 1 or more
        says that some product is not known at all.
        """
        self._prepare()
        return self._noise

    def state(self) -> dict[str, float]:
        """What products so far have shown, on which the next ones depend; for `resume` in another process."""
        self._prepare()
        return {name: getattr(self, name) for name in _SHOWN}

    def resume(self, state: dict[str, float]) -> None:
        """Goes on as after the products of another process."""
        self._prepare()
        for name in _SHOWN:
            setattr(self, name, float(state[name]))

    def __call__(self, columns: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        """H @ columns, shape (n, b). Costs 4 b + 1 gradients, and up to 4 b more at kinks. Raises InputError."""
        working = self._prepare()
        deferred = None if self._repeats else Deferred()
        if deferred is not None:
            deferred.forbid(not_finite(columns))
            try:
                return self._product(working, columns, on_batch, deferred)
            except Doubtful:
                pass
        if not all_finite(columns):
            raise InputError("the vector to multiply has NaN or Inf entries.")
        return self._product(working, columns, on_batch, None)

    def _product(
        self, working: _Working, columns: Tensor, on_batch: OnBatch | None, deferred: Deferred | None
    ) -> Tensor:
        """The product. Raises Doubtful where what was deferred is wrong, or a batch's product is to be repeated."""
        rows = columns.T.to(working.objective.dtype)
        lengths = rows.norm(dim=1, keepdim=True)
        units = rows / torch.where(lengths == 0, 1, lengths)

        def receive(index: int, weight: float, product: Tensor | None) -> None:
            assert on_batch is not None
            assert product is not None
            on_batch(index, weight, (product * lengths).T.to(columns.dtype))

        improve = partial(self._improved, deferred=deferred)
        with working.whole():
            made = differences(
                working.objective, units, self._step, receive if on_batch is not None else None, improve, deferred
            )
        self._note(made.products, torch.where(lengths[:, 0] > 0, made.errors, 0))
        product: Tensor = (made.products * lengths).T.to(columns.dtype)
        return product

    def _note(self, products: Tensor, errors: Tensor) -> None:
        sizes, offs = torch.stack([products.norm(dim=1), errors]).tolist()
        self._largest = max(self._largest, *sizes)
        for length, off in zip(sizes, offs, strict=True):
            exact = max(length - off, length / 4)  # the length of the exact product is at least about that
            compared_with = exact if off < length / 2 else max(exact, _AS_GOOD_AS_ZERO * self._largest)
            if compared_with > 0:
                self._noise = max(self._noise, off / compared_with)

    def describe(self) -> str:
        """The plan in one line."""
        dtype = dtype_name(self._prepare().objective.dtype)
        return f"finite differences of the gradient in {dtype}, relative errors of products up to {self._noise:.1g}"

    def validate(self, tries: int = 64) -> Validation:
        """Compares with autograd on those parameters in which the loss can be differentiated twice. At most `tries`
        parameters are tried, spread evenly over the model."""
        objective = self.objective
        tried = objective.space.names[:: -(-len(objective.space.names) // tries)]
        allowed = []
        for name in tried:
            one = objective.with_(parameters=[name])
            try:
                with warnings.catch_warnings(action="ignore", category=ZeroHessianWarning):  # of a single parameter
                    autograd.hvp(one, torch.ones(one.space.n, 1, dtype=one.dtype, device=one.device))
            except InputError:
                continue
            allowed.append(name)
        names = tuple(allowed)
        if not names:
            return Validation((), len(tried), float("nan"), float("nan"))
        working = self._prepare()
        part = working.objective.with_(parameters=list(names))
        v = directions(part.space.n, 1, dtype=part.dtype, device=part.device).T
        with working.whole():
            try:
                exact = autograd.hvp(part, v)
            except InputError:  # possible in each of them, but not in all together
                names, part = names[:1], part.with_(parameters=list(names[:1]))
                v = v[: part.space.n]
                exact = autograd.hvp(part, v)
        engine = FiniteDifference(part)
        size = float(exact.norm())
        off = float((engine(v) - exact).norm()) / size if size else 0.0
        return Validation(names, len(tried), off, engine.noise)

    def _prepare(self) -> _Working:
        """What is differenced; chooses the step at the first call."""
        if self._working is not None:
            return self._working
        working, _, best = _with_best_step(self.objective, _ENOUGH)
        self._least_step = working.least_step
        self._step, self._rounding = best.step, float(best.noise) * best.step
        self._note(best.products, best.errors)
        self._noise = max(self._noise, working.rounded)
        self._working = working
        return working

    def _improved(
        self, estimate: Estimate, found: Tensor, least: Tensor, deferred: Deferred | None
    ) -> tuple[Tensor, Tensor]:
        """Once more with a smaller step where most of the error comes from kinks or curvature; the better of the two.

        If the smaller step is worse, there is more noise than was known, and such steps are not tried again.
        """
        known = self._rounding / self._step
        error_now = error(found) + least
        if deferred is not None:
            deferred.forbid(error_now > (_WORTH_REPEATING * found[0].norm()).clamp(min=_TIMES_NOISE * known))
            return found, least
        off, length = torch.stack([error_now, found[0].norm()]).tolist()
        if off <= max(_WORTH_REPEATING * length, _TIMES_NOISE * known):
            return found, least
        self._repeats = True
        step = max(self._step * max((known / off) ** 0.5, _LEAST_REDUCTION), self._least_step)
        again, other = estimate(step)
        if float(error(again) + other) < off:
            return again, other
        self._rounding = max(self._rounding, float(noise(again, other)) * step)
        return found, least


@dataclass(frozen=True)
class Comparison:
    """Of a product of the Hessian by autograd with differences of the gradient, for a random vector.

    off: by how much they differ. bound: how good the differences are. Both are relative to the longer product.
    seconds_in_float64: of the product by autograd; None where it was computed in another dtype.
    """

    off: float
    bound: float
    seconds_in_float64: float | None


def compared(objective: Objective) -> Comparison:
    """In float64 where that is possible. Costs a product, and 5 gradients where the loss is smooth, up to 60 otherwise.

    The gradients come first, so that the product is not the first thing that is computed in that dtype.
    """
    working, v, best = _with_best_step(objective.with_(matrix="hessian"), _ENOUGH_TO_COMPARE)
    with working.whole():
        start = time_when_done(objective.device)
        exact = autograd.hvp(working.objective, v.T).T
        seconds = time_when_done(objective.device) - start
    longer = max(float(exact.norm()), float(best.products.norm())) or 1.0
    in_float64 = seconds if working.objective.dtype == torch.float64 else None
    return Comparison(float((best.products - exact).norm()) / longer, float(best.errors[0]) / longer, in_float64)


def is_gradient(objective: Objective) -> bool:
    """Whether the loss's gradient is that of some function, as far as the symmetry of its differences shows.

    Costs 14 gradients where the loss is smooth.
    """
    engine = FiniteDifference(objective)
    X = directions(objective.space.n, 2, dtype=torch.float64, device=objective.device).T
    Y = engine(X)
    (x, y), (x_times, y_times) = X.T, Y.T
    explained = engine.noise * float(x.norm() * y_times.norm() + y.norm() * x_times.norm())
    return float((x @ y_times - y @ x_times).abs()) <= explained


@dataclass(frozen=True)
class _Working:
    """The objective whose gradient is differenced, and whether without the casts to fewer digits inside the loss.

    least_step: a smaller one changes less than the last digit of the coarsest numbers that the loss is made of.
    rounded: the unit roundoff of casts that are left out, by which the loss differs from what is differenced.
    """

    objective: Objective
    without_casts: bool
    least_step: float = 0.0
    rounded: float = 0.0

    def whole(self) -> AbstractContextManager[object]:
        """Entered while it is evaluated."""
        return WithoutCasts() if self.without_casts else nullcontext()


def _with_best_step(objective: Objective, enough: float) -> tuple[_Working, Tensor, Differences]:
    """The objective with as many digits as there are, a random unit vector (1, n), and differences by the best step."""
    last: Exception | None = None
    own = _first_loss(objective)
    double = objective.in_float64()
    for working in (_Working(double, True), _Working(double, False), _Working(objective, False)):
        one = working.objective
        v = directions(one.space.n, 1, dtype=one.dtype, device=one.device)
        v /= v.norm()
        try:
            with working.whole(), one.evaluating() as parameters:
                loss, length = next(one.losses())[1], size(parameters)
                unit, value = coarsest_unit(loss), float(loss.detach())
            if one.dtype != objective.dtype and abs(value - own) > _SAME_SAMPLE * abs(own):
                raise InputError("in float64 the model draws other random numbers.")
            with working.whole():
                best = _best(partial(differences, one, v), unit**_FIRST_STEP * length, unit * length, enough)
            with_casts = own if one.dtype == objective.dtype else _first_loss(one)
            exact = not working.without_casts or math.isclose(value, with_casts, rel_tol=_SAME_DIGITS)
            rounded = 0.0 if exact else torch.finfo(torch.float32).eps / 2
            return replace(working, least_step=unit * length, rounded=rounded), v, best
        except (InputError, torch.OutOfMemoryError) as raised:  # an operation or the memory for float64 does not exist
            forget_frames(raised)
            last = raised
    assert last is not None
    raise last


def _first_loss(objective: Objective) -> float:
    """That of the first batch; NaN where it cannot be evaluated."""
    try:
        with objective.evaluating():
            return float(next(objective.losses())[1].detach())
    except InputError:
        return math.nan


def _best(attempt: Callable[[float], Differences], first: float, least: float, enough: float) -> Differences:
    """Those with the smallest error, from the first step to larger and smaller ones while that helps.

    Their error is raised to what the other steps contradict: many small kinks look like a slope to a large step.
    """
    tried = {0: attempt(first)}
    if float(tried[0].errors[0]) <= enough * float(tried[0].products.norm()):
        return tried[0]
    best = 0
    for side, patience in ((1, 1), (-1, _PATIENCE)):
        worse = 0
        for k in range(side, side * (_MOST_STEPS + 1), side):
            step = first * _STEP_RATIO**k
            if worse == patience or step < least:
                break
            tried[k] = attempt(step)
            better = float(tried[k].errors[0]) < float(tried[best].errors[0])
            best, worse = (k, 0) if better else (best, worse + 1)
    chosen = tried[best]
    contradicted = [
        float((chosen.products - other.products).norm()) - float(other.errors[0]) for other in tried.values()
    ]
    return replace(chosen, errors=chosen.errors.clamp(min=max(contradicted)))
