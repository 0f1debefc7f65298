"""The ways to multiply by the Gauss-Newton and the empirical Fisher matrix that scripts/bench_oracle.py compares.

As scripts/contestants.py has them for the Hessian: each takes a problem and a device, and returns a function of a
vector of all the parameters' entries.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import models
import torch
from contestants import compiled_over_batches, gradient
from torch import Tensor

import hvpspec
from hvpspec.operators.by_name import OPERATORS
from hvpspec.options import Matrix

Run = Callable[[Tensor], Any]
Make = Callable[[models.Problem, str], Run]


def ours(matrix: Matrix, engine: str) -> Make:
    def make(problem: models.Problem, device: str) -> Run:
        A = OPERATORS[matrix](problem.model, problem.criterion, problem.data, engine=engine, device=device)
        for _ in range(2):  # graphs are kept from the second product on
            A @ torch.ones(A.shape[0], device=device)
        if engine == "compiled" and engine not in A.plan:
            raise RuntimeError(A.plan)
        return lambda v: A @ v

    return make


def curvlinops(kind: str) -> Make:
    def make(problem: models.Problem, device: str) -> Run:
        import curvlinops as package

        data = [(x.to(device), y.to(device)) for x, y in problem.data]
        operator = getattr(package, kind)(
            problem.model.eval(), problem.criterion, list(problem.model.parameters()), data,
            check_deterministic=False, num_data=sum(len(y) for _, y in data), batch_size_fn=len,
        )  # fmt: skip
        return lambda v: operator @ v

    return make


Middle = Callable[[Tensor, Tensor, Tensor], Tensor]
"""M J v, from the outputs, the targets and J v."""


def compiled(middle_of: Callable[[Any], Middle]) -> Make:
    """curvlinops' formula Jᵀ M J v under torch.compile, as a whole. middle_of: makes the middle of a criterion."""

    def make(problem: models.Problem, device: str) -> Run:
        middle = middle_of(problem.criterion)
        named = dict(problem.model.eval().named_parameters())
        values = tuple(p.detach() for p in named.values())

        def product(x: Tensor, y: Tensor, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            def outputs(parameters: tuple[Tensor, ...]) -> Tensor:
                swapped = dict(zip(named, parameters, strict=True))
                return torch.func.functional_call(problem.model, swapped, (x,))

            z, moved = torch.func.jvp(outputs, (values,), (tangents,))
            _, back = torch.func.vjp(outputs, values)
            found: tuple[Tensor, ...] = back(middle(z, y, moved))[0]
            return found

        return compiled_over_batches(product, values, problem, device)

    return make


def curved(criterion: Any) -> Middle:
    """∇²ℓ J v."""
    return lambda z, y, moved: torch.func.jvp(torch.func.grad(lambda outputs: criterion(outputs, y)), (z,), (moved,))[1]


def of_samples(criterion: Any) -> Middle:
    """Sᵀ S J v, where row i of S is the gradient of sample i's loss with respect to the outputs, over √N."""
    summed = copy(criterion)
    summed.reduction = "sum"

    def middle(z: Tensor, y: Tensor, moved: Tensor) -> Tensor:
        slopes = torch.func.grad(lambda outputs: summed(outputs, y))(z)
        flat, along = slopes.reshape(len(z), -1), moved.reshape(len(z), -1)
        return (flat * (flat * along).sum(1, keepdim=True) / len(z)).view_as(z)

    return middle


MATRIX_CONTESTANTS: dict[Matrix, dict[str, Make]] = {
    "ggn": {
        "one gradient": gradient,
        "hvpspec, autograd": ours("ggn", "autograd"),
        "hvpspec, linearized": ours("ggn", "linearized"),
        "hvpspec, compiled": ours("ggn", "compiled"),
        "curvlinops 3.0.1": curvlinops("GGNLinearOperator"),
        "curvlinops' formula, compiled": compiled(curved),
    },
    "empirical-fisher": {
        "one gradient": gradient,
        "hvpspec, autograd": ours("empirical-fisher", "autograd"),
        "hvpspec, linearized": ours("empirical-fisher", "linearized"),
        "hvpspec, compiled": ours("empirical-fisher", "compiled"),
        "curvlinops 3.0.1": curvlinops("EFLinearOperator"),
        "curvlinops' formula, compiled": compiled(of_samples),
    },
}


def exact(matrix: Matrix, problem: models.Problem) -> hvpspec.HessianOperator:
    """What errors are relative to."""
    return OPERATORS[matrix](problem.model, problem.criterion, problem.data, engine="autograd", dtype="float64")
