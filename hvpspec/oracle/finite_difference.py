"""Last resort, for losses with an operation that torch can derive only once: central differences of the gradient.

    D(h) = (g(p + h v) − g(p − h v)) / 2h,        H v ≈ (4 D(h/2) − D(h)) / 3,        |v| = 1

The extrapolated value (Richardson 1911, doi:10.1098/rsta.1911.0009) errs by O(h⁴) and by rounding of O(u |g| / h). How
far D(h/2) and D(h) are apart tells how large both are; the step is the one of several where that is least. Computed in
float64 where the loss can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.objective.objective import Objective, Snapshot
from hvpspec.objective.torch_kernels import noting_replacements
from hvpspec.oracle import autograd
from hvpspec.oracle.autograd import OnBatch
from hvpspec.validation import all_finite
from hvpspec.wording import dtype_name

_STEPS = (10.0, 1.0, 0.1)  # in units of u^(1/5) |p|
_SMALL_STEPS = (5e-3, 0.2, 2e-4)  # fewer kinks lie within them; rounding leaves enough digits for a comparison
_ENOUGH = 1e-4  # relative error that a comparison is content with
_SAFETY = 2.0
_BENT = 30.0  # truncation is so much more than rounding: a smaller step is better


@dataclass(frozen=True)
class Validation:
    """Finite differences beside autograd where both can: on `names`, of `tried` of `total` parameters.

    `difference`: of the products with one vector there, relative to autograd's. `bound`: what it is thought to be
    below. Both NaN where no parameter can be derived twice.
    """

    names: tuple[str, ...]
    tried: int
    total: int
    difference: float
    bound: float


class FiniteDifference:
    """Products by differences: four gradients a vector. `noise` bounds their relative error, as far as is known."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._working: Objective | None = None
        self._step = 0.0
        self._noise = 0.0
        self._movable: Tensor | None = None

    @property
    def noise(self) -> float:
        """The largest relative error that the differences have shown; at first on a vector of its own."""
        self._prepare()
        return self._noise

    def __call__(self, block: Tensor, on_batch: OnBatch | None = None) -> Tensor:
        """H @ block, shape (n, b); `on_batch` as for autograd. Costs 4 b gradients. Raises InputError."""
        if not all_finite(block):
            raise InputError("the vector to multiply has NaN or Inf entries.")
        working = self._prepare()
        rows = block.T.to(working.dtype)
        lengths = rows.norm(dim=1, keepdim=True)
        units = rows / torch.where(lengths == 0, 1, lengths)

        def receive(index: int, weight: float, product: Tensor | None) -> None:
            assert on_batch is not None
            assert product is not None
            on_batch(index, weight, (product * lengths).T.to(block.dtype))

        found, errors, gradients = self._differences(
            working, units, self._step, receive if on_batch is not None else None
        )
        sizes = found.norm(dim=1)
        known = (sizes > 0) & (lengths[:, 0] > 0)
        if bool(known.any()):
            self._noise = max(self._noise, _SAFETY * float((errors / sizes)[known].max()))
            self._adapt(errors[known], _rounding(gradients[known], self._step))
        return (found * lengths).T.to(block.dtype)

    def _adapt(self, errors: Tensor, rounding: Tensor) -> None:
        """A smaller step for the products to come, where the function bends more along them than along the random
        direction that the step was found with: steep directions do."""
        ratio = float((errors / rounding).max()) - 1
        if ratio > _BENT:
            self._step *= max(ratio ** (-1 / 3), 1 / 8)  # truncation goes as h², rounding as 1/h

    def describe(self) -> str:
        """One line for the plan."""
        dtype = dtype_name(self._prepare().dtype)
        return f"finite differences of the gradient in {dtype}, products off by up to {self._noise:.1g} of their length"

    def trial(self) -> tuple[Tensor, Tensor, float, Objective]:
        """A random vector (n, 1), its product, the relative error of that as far as is known, and the objective, in
        float64 where it can be, that both belong to. For comparisons: with smaller steps than the engine's, which
        cross fewer kinks. Costs 4 gradients where the first step serves, up to 12 otherwise."""
        working, v, (error, _, found) = self._tried(_SMALL_STEPS, _ENOUGH)
        size = float(found.norm())
        return v.T, found.T, _SAFETY * error / size if size > 0 else 0.0, working

    def validate(self, tries: int = 64) -> Validation:
        """Compares with autograd on those parameters whose own blocks can be derived twice; so many are tried at most,
        spread evenly over the model."""
        objective = self.objective
        total = len(objective.space.names)
        tried = objective.space.names[:: -(-total // tries)]
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
            return Validation((), len(tried), total, float("nan"), float("nan"))
        part = self._prepare().with_(parameters=list(names))
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(part.space.n, 1, generator=generator, dtype=torch.float64).to(part.device, part.dtype)
        try:
            exact = autograd.hvp(part, v)
        except InputError:  # each alone can be, all together cannot
            names, part = names[:1], part.with_(parameters=list(names[:1]))
            v = v[: part.space.n]
            exact = autograd.hvp(part, v)
        engine = FiniteDifference(part)
        size = float(exact.norm())
        off = float((engine(v) - exact).norm()) / size if size else 0.0
        return Validation(names, len(tried), total, off, engine.noise)

    def _prepare(self) -> Objective:
        """The objective that differences are taken of, and the step for it."""
        if self._working is not None:
            return self._working
        working, _, (error, self._step, found) = self._tried(_STEPS, 0.0)
        size = float(found.norm())
        self._noise = _SAFETY * error / size if size > 0 else 0.0
        self._working = working
        return working

    def _tried(self, factors: Sequence[float], enough: float) -> tuple[Objective, Tensor, tuple[float, float, Tensor]]:
        """The objective, a random unit vector (1, n), and the best of the steps with it: (error, step, product).

        A step with a relative error of `enough` ends the search.
        """
        last: InputError | None = None
        for objective in (self.objective.in_float64(), self.objective):
            v = torch.randn(1, objective.space.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            v = (v / v.norm()).to(objective.device, objective.dtype)
            unit = torch.finfo(objective.dtype).eps ** 0.2 * _size(objective)
            tried: list[tuple[float, float, Tensor]] = []
            self._movable = None
            try:
                for factor in factors:
                    found, errors, _ = self._differences(objective, v, factor * unit)
                    tried.append((float(errors[0]), factor * unit, found))
                    if tried[-1][0] <= enough * float(found.norm()):
                        break
            except InputError as raised:  # an operation that has no float64
                last = raised
                continue
            return objective, v, min(tried, key=lambda entry: entry[0])
        assert last is not None
        raise last

    def _differences(
        self, objective: Objective, units: Tensor, step: float, on_batch: OnBatch | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Extrapolated products (b, n) of unit vectors (b, n), their errors (b,), and the gradients' mean length (b,).

        The gradients of a batch at the points are made one after the other: one graph at a time is held.
        """
        plan = [
            (row, part, sign / (2 * size), sign * size)
            for row in range(len(units))
            for part, size in enumerate((step, step / 2))
            for sign in (1, -1)
        ]
        with objective.evaluating():
            centre = objective.snapshot()
            if self._movable is None:
                self._movable = _movable(objective, centre)
            units = units * self._movable
            total = torch.zeros(2, *units.shape, dtype=objective.dtype, device=objective.device)
            lengths, weights = torch.zeros_like(total[0, :, 0]), 0.0
            for index, evaluate in objective.batch_losses():
                shares = torch.zeros_like(total) if on_batch is not None else total
                for row, part, factor, move in plan:
                    point = _shifted(objective, centre, units[row], move)
                    loss, weight = evaluate(point)
                    if weight == 0:
                        break
                    gradient = _gradient(objective, loss, point)
                    del loss, point  # room for the next
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


def _extrapolated(coarse: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
    """From D(h) and D(h/2), each (b, n): (4 D(h/2) − D(h)) / 3, and |D(h/2) − D(h)|, shape (b,)."""
    return (4 * fine - coarse) / 3, (fine - coarse).norm(dim=1)


def _rounding(gradients: Tensor, step: float) -> Tensor:
    """What rounding in gradients of these lengths leaves in a product."""
    return 4 * torch.finfo(gradients.dtype).eps * gradients / step


def _gradient(objective: Objective, loss: Tensor, point: Snapshot) -> Tensor:
    if not loss.requires_grad:
        return torch.zeros(objective.space.n, dtype=objective.dtype, device=objective.device)
    try:
        pieces = torch.autograd.grad(loss, point.parameters, allow_unused=True, materialize_grads=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise InputError(f"the loss cannot be differentiated: {error}") from error
    return torch.cat([piece.reshape(-1) for piece in pieces])


def _shifted(objective: Objective, centre: Snapshot, unit: Tensor, step: float) -> Snapshot:
    pieces = objective.space.split(unit)
    moved = [(p.detach() + step * piece).requires_grad_() for p, piece in zip(centre.parameters, pieces, strict=True)]
    return Snapshot(tuple(moved), centre.constants)


def _movable(objective: Objective, centre: Snapshot) -> Tensor:
    """1 for entries that the loss takes for variables, 0 for constants (padding rows of embeddings): shape (n,)."""
    with noting_replacements() as replaced, torch.no_grad():
        for _ in objective.losses(centre):
            pass
    masks = [torch.ones_like(p, requires_grad=False) for p in centre.parameters]
    for tensor, row in replaced.constant_rows:
        for mask, parameter in zip(masks, centre.parameters, strict=True):
            if tensor is parameter:
                mask[row] = 0
    return torch.cat([mask.reshape(-1) for mask in masks])


def _size(objective: Objective) -> float:
    """|p|, or 1 where that is 0."""
    squares = sum(float(p.detach().double().square().sum()) for p in objective.snapshot().parameters)
    return squares**0.5 or 1.0
