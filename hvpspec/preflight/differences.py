"""Finite differences of the gradient: as a check of exact products, and offered where there are none."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from hvpspec.errors import InputError
from hvpspec.objective.objective import Objective
from hvpspec.operators.hessian import HessianOperator
from hvpspec.oracle import autograd
from hvpspec.oracle.finite_difference import FiniteDifference, Validation
from hvpspec.preflight.locate import once_differentiable
from hvpspec.results.preflight import Finding, Preflight, agree

_WRONG = 0.05  # further off than this from differences ten times as good: no kink explains it
_TRIES = 16  # parameters that an offer is validated on, at most


def compared(H: HessianOperator, known: Preflight) -> Preflight:
    """One product on the first batch, in float64 where that can be, beside finite differences."""
    if H.engine == "finite-difference":
        return _in_use(H, known)
    try:
        v, differences, bound, working = FiniteDifference(first_batch(H.objective)).trial()
        exact = autograd.hvp(working, v)
    except (InputError, torch.OutOfMemoryError):  # a batch without weight, say: nothing to compare
        return known
    size = float(exact.norm())
    off = float((differences - exact).norm()) / size if size else float((differences - exact).norm())
    known = replace(known, difference=off, difference_bound=bound)
    if agree(off, bound):
        return known
    what = f"a product on the first batch and finite differences of the gradient differ by {off:.1%}"
    if off > _WRONG and bound <= _WRONG / 10:
        finding = Finding(
            "differences",
            f"{what}, and the latter are good to {bound:.1g}",
            "an operation derives wrongly the second time: look for a custom backward, or detach(); --engine "
            "finite-difference needs first derivatives only (--no-preflight lets it pass)",
            "refused",
        )
    else:
        finding = Finding(
            "differences",
            what,
            "expected of kinks (ReLU, max, clipping): the Hessian is that beside the kinks; else an operation derives "
            "wrongly",
            "note",
        )
    return replace(known, findings=(*known.findings, finding))


def _in_use(H: HessianOperator, known: Preflight) -> Preflight:
    """Differences that are the engine, beside autograd where that can."""
    checked = FiniteDifference(H.objective).validate()
    found = f"products by finite differences; {_validated(checked)}"
    done = f"products are off by up to {H.noise:.1g} of their length, which every error bar holds"
    finding = Finding("finite_differences", found, done, "note")
    difference, bound = (checked.difference, checked.bound) if checked.names else (None, H.noise)
    return replace(known, findings=(*known.findings, finding), difference=difference, difference_bound=bound)


def _validated(checked: Validation) -> str:
    on = f"{len(checked.names)} of {checked.tried} parameters can be derived twice"
    if not checked.names:
        return f"{on}: nothing to validate them on"
    if not agree(checked.difference, checked.bound):
        return (
            f"{on}, and wrongly: autograd differs from them by {checked.difference:.1%} there (bound "
            f"{checked.bound:.1g}), by kinks in the loss or a backward that cannot be derived"
        )
    return f"{on}; there they differ from autograd by {checked.difference:.1g} (bound {checked.bound:.1g})"


# --- offered --------------------------------------------------------------------------------------------------------


def refused_once(H: HessianOperator, known: Preflight, error: str) -> Preflight:
    """With what cannot be derived twice, where it is, and what finite differences would do instead."""
    found = re.sub(r"^batch \d+: ", "", error.split(" (with the engine")[0])
    place = once_differentiable(H.objective, error)
    where = f" (in '{place}')" if place else ""
    noise, checked = _tried(H, validate=True)
    done = f"use operations that can be derived twice, or {_offer(noise, checked)}"
    finding = Finding("once_differentiable", f"{found}{where}", done, "refused")
    difference = checked.difference if checked is not None and checked.names else None
    bound = noise if difference is None or checked is None else checked.bound
    return replace(known, findings=(*known.findings, finding), difference=difference, difference_bound=bound)


def refused_asymmetric(H: HessianOperator, known: Preflight, off: float) -> Preflight:
    """With what finite differences would do instead. Autograd, being wrong, has nothing to validate them on."""
    noise, _ = _tried(H, validate=False)
    done = f"some operation derives wrongly; write it out, leave its parameters out, or {_offer(noise, None)}"
    finding = Finding("asymmetric", f"the Hessian is not symmetric, by {off:.1%}", done, "refused")
    return replace(known, findings=(*known.findings, finding), difference_bound=noise)


def _tried(H: HessianOperator, *, validate: bool) -> tuple[float | None, Validation | None]:
    """What products by differences are off by on the first batch, relative to their length, and beside autograd."""
    try:
        engine = FiniteDifference(first_batch(H.objective))
        return engine.noise, engine.validate(_TRIES) if validate else None
    except (InputError, torch.OutOfMemoryError):  # a batch without weight, say, or no derivative at all
        return None, None


def _offer(noise: float | None, checked: Validation | None) -> str:
    if noise is None:
        return "--engine finite-difference, whose error is measured"
    off = f"--engine finite-difference: on the first batch its products are off by up to {noise:.1g} of their length"
    return off if checked is None else f"{off}, and {_validated(checked)}"


def first_batch(objective: Objective) -> Objective:
    """The same on the first batch alone."""
    return objective.with_(data=[next(iter(objective.data))])
