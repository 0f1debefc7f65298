"""Products of A − σI, up to a budget, that are compared with each other: what the solvers multiply by."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hvpspec.krylov.by_folds import ASYMMETRY_LIMIT
from hvpspec.krylov.operator_view import Symmetric, refuse_asymmetric
from hvpspec.krylov.vectors import column_inner, inner

_ROUNDOFFS_OF_ASYMMETRY = 1e4  # of ‖A‖: a smaller asymmetry may be rounding


class BudgetSpent(Exception):
    """The budget of products is used up."""


class ShiftedProducts:
    """Products of A − σI in the dtype of the vectors, up to a budget; beyond it, BudgetSpent is raised.

    A multiplies in its own.

    made: products so far. norm: the largest ‖(A − σI) x‖ / ‖x‖ so far. Each product is compared with the first one:
    AsymmetricProducts is raised where uᵀAv and vᵀAu differ by more than rounding, as the solvers rely on symmetry.
    affordable: how many more products there is time for.
    """

    def __init__(
        self, A: Symmetric, shift: float, budget: float, affordable: Callable[[], float] = lambda: math.inf
    ) -> None:
        self.A, self.shift, self.budget, self.made = A, shift, budget, 0
        self._affordable = affordable
        self.norm = 0.0
        self._first: tuple[Tensor, Tensor] | None = None  # a unit vector (n, 1) and its product

    def __call__(self, X: Tensor) -> Tensor:
        """(A − σI) X for X (n, b), in memory of its own."""
        if self.made + X.shape[1] > self.budget:
            raise BudgetSpent
        self.made += X.shape[1]
        product = torch.sub((self.A @ X.to(self.A.dtype)).to(X.dtype), X, alpha=self.shift)
        lengths = column_inner(X, X).sqrt()
        if bool(lengths.all()):
            self.norm = max(self.norm, float((column_inner(product, product).sqrt() / lengths).max()))
            self._compare(X, product, lengths)
        return product

    def left(self) -> float:
        """How many more products may be made."""
        return min(self.budget - self.made, self._affordable())

    def end(self) -> None:
        """No more products may be made."""
        self.budget = self.made

    @contextlib.contextmanager
    def keeping(self, reserve: int) -> Iterator[None]:
        """Leaves so many products of the budget for what comes after."""
        self.budget -= reserve
        try:
            yield
        finally:
            self.budget += reserve

    def _compare(self, X: Tensor, products: Tensor, lengths: Tensor) -> None:
        if self._first is None:
            scale = lengths[:1].to(X.dtype)
            self._first = X[:, :1] / scale, products[:, :1] / scale
        first, product = self._first
        # Two vectors that know nothing of each other show about 1/√n of an asymmetry.
        limit = max(ASYMMETRY_LIMIT / self.A.n**0.25, _ROUNDOFFS_OF_ASYMMETRY * self.A.eps)
        defects = (inner(first, products) - inner(product, X)) / lengths
        refuse_asymmetric(float(defects.abs().max()), self.norm, limit)
