"""The operators by the names of their matrices, as the command line and files give them."""

from __future__ import annotations

from typing import Any

from hvpspec.errors import InputError
from hvpspec.objective.losses.named import is_likelihood
from hvpspec.operators.fisher import EmpiricalFisherOperator
from hvpspec.operators.gauss_newton import GGNOperator, ResidualOperator
from hvpspec.operators.hessian import HessianOperator
from hvpspec.options import Matrix, MatrixChoice

OPERATORS: dict[Matrix, type[HessianOperator]] = {
    operator.matrix: operator for operator in (HessianOperator, GGNOperator, EmpiricalFisherOperator, ResidualOperator)
}


def operator_named(matrix: MatrixChoice, loss: Any) -> type[HessianOperator]:
    """The class. "fisher" is the Gauss-Newton matrix where the loss is a likelihood's; InputError for other losses."""
    if matrix != "fisher":
        return OPERATORS[matrix]
    if not is_likelihood(loss):
        raise InputError(
            "the Fisher matrix is known for cross_entropy, bce_with_logits, causal_lm and mse only, for which it is "
            "the Gauss-Newton matrix; choose ggn or empirical-fisher for other losses."
        )
    return GGNOperator
