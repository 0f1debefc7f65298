"""Checks an engine against the reference, before any of its products is used."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor

from hvpspec.kernels.random_vectors import directions
from hvpspec.objective.objective import Objective
from hvpspec.oracle import autograd
from hvpspec.oracle.central_differences import coarsest_unit
from hvpspec.oracle.checks.rounding import rounded_otherwise
from hvpspec.validation import relative_difference

# Relative difference of two engines' products that rounding explains, where nothing in the model amplifies it.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
_MAX_TIMES_REFERENCE = 3.0  # the error of an engine may be so many times that of the reference


Product = Callable[[Tensor], Tensor]


def disagreement(engine: Product, objective: Objective, reference_engine: Product | None = None) -> str | None:
    """By how much an engine's product with a random vector differs from the reference; None where rounding explains it.

    reference_engine: gives the product of `autograd.hvp`; by default that.

    Where the two differ by more than the usual rounding, the rounding error of the reference itself is measured: with
    float64 as the truth, or, in float64 and where the model computes parts with fewer digits than the run, by a product
    that is rounded otherwise. (Kinks such as ReLU's amplify rounding in the forward pass. An engine computes the
    derivative of a part in another order, so that the digits of that part are what the two have in common.)
    """
    n, dtype, device = objective.space.n, objective.dtype, objective.device
    v = directions(n, 1, dtype=dtype, device=device).T
    reference = autograd.hvp(objective, v) if reference_engine is None else reference_engine(v)
    found = engine(v)
    off = relative_difference(found, reference)
    if off <= ROUNDING[dtype]:
        return None
    autograd.hvp(objective, v)  # raises where another pass over the data gives other losses
    own, unit = torch.finfo(dtype).eps, _coarsest_unit(objective)
    rounding = 0.0
    if dtype == torch.float32:
        exact = autograd.hvp(objective.in_float64(), v.double())
        rounding = relative_difference(reference.double(), exact)
        off = relative_difference(found.double(), exact)
    if dtype == torch.float64 or unit > own:
        otherwise = rounded_otherwise(objective, v, max(unit, own))
        rounding = max(rounding, relative_difference(otherwise, reference), unit)
    if off <= _MAX_TIMES_REFERENCE * rounding + ROUNDING[dtype]:
        return None
    return f"its products are off by {off:.1e}, and rounding explains {rounding:.1e}"


def _coarsest_unit(objective: Objective) -> float:
    with objective.evaluating():
        return max((coarsest_unit(loss) for _, loss, _ in islice(objective.losses(), 1)), default=0.0)
