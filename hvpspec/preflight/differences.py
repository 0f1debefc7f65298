"""Finite differences of the gradient: a check of exact products, and an alternative where there are none."""

from __future__ import annotations

from dataclasses import replace

import torch

from hvpspec.errors import InputError, NotTwiceDifferentiable
from hvpspec.operators.hessian import HessianOperator
from hvpspec.oracle.finite_difference import NO_FUNCTION, FiniteDifference, Validation, compared, is_gradient
from hvpspec.preflight.locate import once_differentiable
from hvpspec.results.preflight import Finding, Preflight, agree
from hvpspec.wording import two_digits_percent

_NOT_COMPARED = Finding(
    "not_compared",
    "there is too little memory to compare a product on the first batch with finite differences of the gradient",
    "products are used without that check; smaller batches or a smaller --memory-limit leave room for it",
    "note",
)
_TOO_ROUGH = 0.01  # relative difference that is worth a note although the error of the differences explains it
_MAX_VALIDATED_PARAMETERS = 16  # that finite differences are compared with autograd on, before they are suggested


def compare_with_differences(H: HessianOperator, known: Preflight) -> tuple[Preflight, float | None]:
    """Compares one product on the first batch, in float64 where possible, with finite differences of the gradient.

    Also returns the seconds of that product; None where it was not made in float64.
    """
    if H.engine == "finite-difference":
        return _describe_engine(H, known), None
    try:
        found = compared(H.objective.on_first_batch())
    except InputError:  # the first batch has weight 0, say: nothing to compare
        return known, None
    except torch.OutOfMemoryError:
        return replace(known, findings=(*known.findings, _NOT_COMPARED)), None
    return _with_comparison(H, known, found.off, found.bound), found.seconds_in_float64


def _with_comparison(H: HessianOperator, known: Preflight, off: float, bound: float) -> Preflight:
    known = replace(known, difference=off, difference_bound=bound)
    if agree(off, bound) and off <= _TOO_ROUGH:
        return known
    what = f"a product on the first batch and finite differences of the gradient differ by {two_digits_percent(off)}"
    if not agree(off, bound):
        done = (
            "the second derivative of some operation is wrong: look for a custom backward; --engine finite-difference "
            "needs first derivatives only"
            if _may_be_gradient(H)
            else NO_FUNCTION
        )
        finding = Finding(
            "differences",
            f"{what}, and the finite differences are accurate to {bound:.1g}",
            f"{done}; --no-preflight skips this check",
            "refused",
        )
    else:
        finding = Finding(
            "differences",
            f"{what}, and the finite differences are only accurate to {bound:.1g}, which says nothing of the product",
            "expected where the loss has kinks at the checkpoint (ReLU, max, clipping), which the Hessian leaves out, "
            "or is computed with few digits",
            "note",
        )
    return replace(known, findings=(*known.findings, finding))


def _describe_engine(H: HessianOperator, known: Preflight) -> Preflight:
    """With a finding on the engine finite-difference: how its products compare with autograd's where both exist."""
    checked = FiniteDifference(H.objective).validate()
    found = f"products are computed by finite differences; {_validated(checked)}"
    done = f"relative errors of the products reach {H.noise:.1g}, which every error bar includes"
    finding = Finding("finite_differences", found, done, "note")
    difference, bound = (checked.difference, checked.bound) if checked.names else (None, H.noise)
    return replace(known, findings=(*known.findings, finding), difference=difference, difference_bound=bound)


def _validated(checked: Validation) -> str:
    on = f"{len(checked.names)} of {checked.tried} parameters can be differentiated twice"
    if not checked.names:
        return f"{on}, so that finite differences cannot be compared with autograd"
    if not agree(checked.difference, checked.bound):
        return (
            f"{on}, and there autograd and finite differences differ by {two_digits_percent(checked.difference)}, "
            f"more than the {checked.bound:.1g} expected: a backward function is wrong"
        )
    return (
        f"{on}, and there autograd and finite differences agree to {checked.difference:.1g} "
        f"(expected: {checked.bound:.1g})"
    )


# --- as an alternative ----------------------------------------------------------------------------------------------


def refuse_once_differentiable(H: HessianOperator, known: Preflight, error: NotTwiceDifferentiable) -> Preflight:
    """With what cannot be differentiated twice, where it is, and how accurate finite differences would be."""
    place = once_differentiable(H.objective, error)
    where = "; ".join(filter(None, (f"in '{place}'" if place else "", error.line)))
    found = f"the loss cannot be differentiated twice: {error.reason}" + (f" ({where})" if where else "")
    noise, checked = _tried(H, validate=True)
    done = f"use operations that can be differentiated twice, or {_alternative(noise, checked)}"
    finding = Finding("once_differentiable", found, done, "refused")
    difference = checked.difference if checked is not None and checked.names else None
    bound = noise if difference is None or checked is None else checked.bound
    return replace(known, findings=(*known.findings, finding), difference=difference, difference_bound=bound)


def refuse_asymmetric(H: HessianOperator, known: Preflight, off: float) -> Preflight:
    """With how accurate finite differences would be. They are not compared with autograd, which is wrong here.

    Finite differences themselves are not symmetric where the gradient is that of no function.
    """
    found = f"the Hessian is not symmetric (off by {two_digits_percent(off)})"
    if H.engine == "finite-difference":
        found = f"finite differences of the gradient are not symmetric (off by {two_digits_percent(off)})"
    if H.engine == "finite-difference" or not _may_be_gradient(H):
        done = f"{NO_FUNCTION}; replace that operation, or leave its parameters out"
        return replace(known, findings=(*known.findings, Finding("asymmetric", found, done, "refused")))
    noise, _ = _tried(H, validate=False)
    done = (
        "the second derivative of some operation is wrong: rewrite that operation, leave its parameters out, or "
        f"{_alternative(noise, None)}"
    )
    return replace(
        known, findings=(*known.findings, Finding("asymmetric", found, done, "refused")), difference_bound=noise
    )


def _may_be_gradient(H: HessianOperator) -> bool:
    try:
        return is_gradient(H.objective.on_first_batch())
    except (InputError, torch.OutOfMemoryError):  # not known
        return True


def _tried(H: HessianOperator, *, validate: bool) -> tuple[float | None, Validation | None]:
    """The relative error of products by differences on the first batch, and how they compare with autograd."""
    try:
        engine = FiniteDifference(H.objective.on_first_batch())
        return engine.noise, engine.validate(_MAX_VALIDATED_PARAMETERS) if validate else None
    except (InputError, torch.OutOfMemoryError):  # the first batch has weight 0, say, or no derivative at all
        return None, None


def _alternative(noise: float | None, checked: Validation | None) -> str:
    if noise is None:
        return "--engine finite-difference, whose error is measured"
    text = f"--engine finite-difference, whose products have relative errors of up to {noise:.1g} on the first batch"
    return text if checked is None else f"{text}; {_validated(checked)}"
