"""The engine for losses with an operation that torch can differentiate only once: central differences of the gradient.

    D(h) = (g(p + h v) − g(p − h v)) / 2h,        H v ≈ (4 D(h/2) − D(h)) / 3,        |v| = 1

The extrapolated value (Richardson 1911, doi:10.1098/rsta.1911.0009) has a truncation error of O(h⁴) and a rounding
error of O(u |g| / h), where u is the unit roundoff. Both are estimated from the difference between D(h/2) and D(h); of
several steps, the one with the smallest estimate is used. Computed in float64 where the loss allows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.objective.objective import Objective
from hvpspec.objective.torch_kernels import holding_padding_rows
from hvpspec.oracle import autograd
from hvpspec.oracle.autograd import OnBatch
from hvpspec.oracle.verify import moved
from hvpspec.validation import all_finite
from hvpspec.wording import dtype_name

_STEPS = (10.0, 1.0, 0.1)  # in units of u^(1/5) |p|
_STEPS_TO_COMPARE = (5e-3, 0.2, 2e-4)  # smaller ones cross fewer kinks, and leave enough digits for a comparison
_ENOUGH_TO_COMPARE = 1e-4  # relative error
_SAFETY_FACTOR = 2.0  # on the estimated error
_MAX_TRUNCATION_RATIO = 30.0  # of truncation and rounding error: a smaller step is better above


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
    """Products by finite differences, at four gradients a vector. `noise` is their estimated relative error."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._working: Objective | None = None
        self._step = 0.0
        self._noise = 0.0
        self._padding: list[tuple[Tensor, int]] | None = None

    @property
    def noise(self) -> float:
        """The largest relative error estimated so far; before the first product, that for a random vector."""
        self._prepare()
        return self._noise

    def __call__(self, columns: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        """H @ columns, shape (n, b). Costs 4 b gradients. Raises InputError."""
        if not all_finite(columns):
            raise InputError("the vector to multiply has NaN or Inf entries.")
        working = self._prepare()
        rows = columns.T.to(working.dtype)
        lengths = rows.norm(dim=1, keepdim=True)
        units = rows / torch.where(lengths == 0, 1, lengths)

        def receive(index: int, weight: float, product: Tensor | None) -> None:
            assert on_batch is not None
            assert product is not None
            on_batch(index, weight, (product * lengths).T.to(columns.dtype))

        found, errors, gradients = self._differences(
            working, units, self._step, receive if on_batch is not None else None
        )
        sizes = found.norm(dim=1)
        known = (sizes > 0) & (lengths[:, 0] > 0)
        if bool(known.any()):
            self._noise = max(self._noise, _SAFETY_FACTOR * float((errors / sizes)[known].max()))
            self._adapt(errors[known], _rounding(gradients[known], self._step))
        product: Tensor = (found * lengths).T.to(columns.dtype)
        return product

    def _adapt(self, errors: Tensor, rounding: Tensor) -> None:
        """Reduces the step for later products, where the function curves more along these vectors than along the random
        one that the step was chosen for."""
        ratio = float((errors / rounding).max()) - 1
        if ratio > _MAX_TRUNCATION_RATIO:
            self._step *= max(ratio ** (-1 / 3), 1 / 8)  # truncation goes as h², rounding as 1/h

    def describe(self) -> str:
        """The plan in one line."""
        dtype = dtype_name(self._prepare().dtype)
        return f"finite differences of the gradient in {dtype}, relative errors of products up to {self._noise:.1g}"

    def trial(self) -> tuple[Tensor, Tensor, float, Objective]:
        """For a comparison: a random vector (n, 1), its product, the estimated relative error of that, and the
        objective that both belong to, in float64 where that is possible. The steps are smaller than the engine's, so
        that they cross fewer kinks. Costs 4 gradients where the first step is accurate enough, up to 12 otherwise."""
        working, v, (error, _, found) = self._tried(_STEPS_TO_COMPARE, _ENOUGH_TO_COMPARE)
        size = float(found.norm())
        return v.T, found.T, _SAFETY_FACTOR * error / size if size > 0 else 0.0, working

    def validate(self, tries: int = 64) -> Validation:
        """Compares with autograd on those parameters in which the loss can be differentiated twice. At most `tries`
        parameters are tried, spread evenly over the model."""
        objective = self.objective
        tried = objective.space.names[:: -(-len(objective.space.names) // tries)]
        allowed = []
        for name in tried:
            one = objective.with_(parameters=[name])
            try:
                autograd.hvp(one, torch.ones(one.space.n, 1, dtype=one.dtype, device=one.device))
            except InputError:
                continue
            allowed.append(name)
        names = tuple(allowed)
        if not names:
            return Validation((), len(tried), float("nan"), float("nan"))
        part = self._prepare().with_(parameters=list(names))
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(part.space.n, 1, generator=generator, dtype=torch.float64).to(part.device, part.dtype)
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

    def _prepare(self) -> Objective:
        """The objective whose gradient is differenced; chooses the step at the first call."""
        if self._working is not None:
            return self._working
        working, _, (error, self._step, found) = self._tried(_STEPS, 0.0)
        size = float(found.norm())
        self._noise = _SAFETY_FACTOR * error / size if size > 0 else 0.0
        self._working = working
        return working

    def _tried(self, factors: Sequence[float], enough: float) -> tuple[Objective, Tensor, tuple[float, float, Tensor]]:
        """The objective, a random unit vector (1, n), and the best step for it, as (error, step, product).

        The search ends early at a step with a relative error of at most `enough`.
        """
        last: InputError | None = None
        for objective in (self.objective.in_float64(), self.objective):
            v = torch.randn(1, objective.space.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            v = (v / v.norm()).to(objective.device, objective.dtype)
            unit = torch.finfo(objective.dtype).eps ** 0.2 * _size(objective)
            tried: list[tuple[float, float, Tensor]] = []
            try:
                for factor in factors:
                    found, errors, _ = self._differences(objective, v, factor * unit)
                    tried.append((float(errors[0]), factor * unit, found))
                    if tried[-1][0] <= enough * float(found.norm()):
                        break
            except InputError as raised:  # an operation does not exist in float64
                last = raised
                continue
            return objective, v, min(tried, key=lambda entry: entry[0])
        assert last is not None
        raise last

    def _differences(
        self, objective: Objective, units: Tensor, step: float, on_batch: OnBatch | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Extrapolated products (b, n) of unit vectors (b, n), their errors (b,), and the gradients' mean length (b,).

        The gradients of a batch are computed one after the other, so that only one graph is held at a time.
        """
        plan = [
            (row, part, sign / (2 * size), sign * size)
            for row in range(len(units))
            for part, size in enumerate((step, step / 2))
            for sign in (1, -1)
        ]
        with objective.evaluating() as parameters, holding_padding_rows(self._padding_rows(objective)):
            total = torch.zeros(2, *units.shape, dtype=objective.dtype, device=objective.device)
            lengths, weights = torch.zeros_like(total[0, :, 0]), 0.0
            for index, evaluate in objective.batch_losses():
                shares = torch.zeros_like(total) if on_batch is not None else total
                for row, part, factor, move in plan:
                    with moved(objective, parameters, units[row], move):
                        loss, weight = evaluate()
                        if weight == 0:
                            break
                        gradient = _gradient(objective, loss, parameters)
                        del loss  # frees memory for the next
                    shares[part, row].add_(gradient, alpha=weight * factor)
                    lengths[row] += weight * gradient.norm() / 4
                weights += weight
                if on_batch is not None and weight > 0:
                    total += shares
                    on_batch(index, weight, _extrapolated(*shares)[0] / weight)
        total /= weights
        found, apart = _extrapolated(*total)
        lengths /= weights
        return found, apart / 3 + _rounding(lengths, step), lengths

    def _padding_rows(self, objective: Objective) -> Sequence[tuple[Tensor, int]]:
        """Padding rows of the model's embeddings, found by one pass over the data; use within `evaluating()`."""
        if self._padding is None:
            with holding_padding_rows() as rows:
                for _ in objective.losses():
                    pass
            self._padding = [(weight, row) for weight, row, _ in rows.values()]
        return self._padding


def _extrapolated(coarse: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
    """From D(h) and D(h/2), each (b, n): (4 D(h/2) − D(h)) / 3, and |D(h/2) − D(h)|, shape (b,)."""
    return (4 * fine - coarse) / 3, (fine - coarse).norm(dim=1)


def _rounding(gradients: Tensor, step: float) -> Tensor:
    """The error of a product from rounding in gradients of these lengths."""
    return 4 * torch.finfo(gradients.dtype).eps * gradients / step


def _gradient(objective: Objective, loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    if not loss.requires_grad:
        return torch.zeros(objective.space.n, dtype=objective.dtype, device=objective.device)
    try:
        pieces = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise InputError(f"the loss cannot be differentiated: {error}") from error
    return torch.cat([piece.reshape(-1) for piece in pieces])


def _size(objective: Objective) -> float:
    """|p|, or 1 where that is 0."""
    squares = sum(float(p.detach().double().square().sum()) for p in objective.snapshot().parameters)
    return squares**0.5 or 1.0
