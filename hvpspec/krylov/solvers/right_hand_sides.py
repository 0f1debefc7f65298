"""Right-hand sides and first guesses as they are given, as columns that solvers work with, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.distributed.shard import largest, part, whole
from hvpspec.errors import InputError
from hvpspec.krylov.operator_view import Symmetric

_LEAST_EXPONENT = -1022  # of a power of 2 that float64 holds with all its digits


@dataclass(frozen=True)
class Columns:
    """Vectors (n, m) in float64 on the operator's device, each in a unit of its own; and the form that they came in.

    units: powers of 2 in which no entry is above 1, so that the squares of vectors are within the range of float32.
    like: a vector of the kind that was given. single: whether it was one vector, not a matrix. space: the parameters,
    where tensors were given by name or in a sequence (`by_name`).
    """

    values: Tensor
    units: tuple[float, ...]
    like: Any
    single: bool
    space: Any = None
    by_name: bool = False

    @property
    def arrays(self) -> bool:
        """Whether the vectors are NumPy arrays."""
        return not isinstance(self.like, Tensor)

    def restored(self, columns: list[Tensor]) -> Any:
        """Vectors (n, 1) in these units, in the form of those given."""
        found = whole(torch.cat([x * unit for x, unit in zip(columns, self.units, strict=True)], 1))
        found = found[:, 0] if self.single else found
        if self.arrays:
            given: Any = found.cpu().numpy()
        else:
            given = found.to(self.like.device, self.like.dtype if self.like.is_floating_point() else torch.float64)
        if self.space is None:
            return given
        return self.space.unflatten(given) if self.by_name else self.space.split(given)


def columns_of(b: Any, A: Any, operator: Symmetric) -> Columns:
    """Of a right-hand side (n,), or several (n, m); or of tensors that are shaped like the parameters of A."""
    vector, space = _flat("b", b, A)
    right = _numbers("b", vector, operator.n)
    single = right.ndim == 1
    right = part((right[:, None] if single else right).to(operator.device, torch.float64))
    sizes = largest(torch.linalg.vector_norm(right, math.inf, dim=0)).tolist()
    if not all(map(math.isfinite, sizes)):
        raise InputError("b has NaN or Inf entries.")
    exponents = [math.frexp(size)[1] for size in sizes]
    units = tuple(2.0 ** min(max(exponent, _LEAST_EXPONENT), -_LEAST_EXPONENT) for exponent in exponents)
    values = torch.cat([right[:, [i]] / unit for i, unit in enumerate(units)], 1)
    return Columns(values, units, vector, single, space, isinstance(b, Mapping))


def start_of(x0: Any, right: Columns, A: Any, operator: Symmetric) -> list[Tensor] | None:
    """A first guess for each column, in its unit: shape (n, 1)."""
    if x0 is None:
        return None
    start = _numbers("x0", _flat("x0", x0, A)[0], operator.n)
    shape = (operator.n,) if right.single else (operator.n, len(right.units))
    if start.shape != shape:
        raise InputError(f"x0 must have the shape of b, {shape}; got {tuple(start.shape)}.")
    start = part(start.reshape(operator.n, -1).to(operator.device, torch.float64))
    columns = [start[:, [i]] / unit for i, unit in enumerate(right.units)]
    sizes = largest(torch.stack([torch.linalg.vector_norm(x.to(operator.dtype), math.inf) for x in columns]))
    if not bool(torch.isfinite(sizes).all()):
        raise InputError("x0 has NaN or Inf entries, or entries too large for its right-hand side; leave it out.")
    return columns


def _flat(name: str, given: Any, A: Any) -> tuple[Any, Any]:
    """Tensors by name, or in a sequence such as torch.autograd.grad returns, as one vector; and their parameters."""
    named = isinstance(given, Mapping)
    in_order = isinstance(given, list | tuple) and all(isinstance(each, Tensor) for each in given)
    if not named and not (in_order and any(each.ndim for each in given)):
        return given, None
    space: Any = getattr(A, "parameters", None)
    if not hasattr(space, "flatten"):
        raise InputError(f"{name} is given as tensors of parameters; A must then be the matrix of a loss.")
    if not all(isinstance(each, Tensor | np.ndarray) for each in (given.values() if named else given)):
        raise InputError(f"{name} must hold tensors that are shaped like the parameters of A.")
    try:
        return space.flatten(given), space
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _numbers(name: str, given: Any, n: int) -> Tensor:
    """Real numbers of shape (n,) or (n, m)."""
    try:
        found = given.detach() if isinstance(given, Tensor) else np.asarray(given)
        if not isinstance(found, Tensor) and found.dtype.kind in "fiub":
            found = torch.from_numpy(found.astype(np.float64))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array or tensor of {n:,} real numbers ({error}).") from error
    fits = found.ndim in (1, 2) and found.shape[0] == n and 0 not in found.shape
    if not isinstance(found, Tensor) or found.is_complex() or not fits or found.layout != torch.strided:
        shape, dtype = tuple(np.shape(found)), str(found.dtype).removeprefix("torch.")
        raise InputError(
            f"{name} must hold {n:,} real numbers, shape ({n},), or several such columns, shape ({n}, m); "
            f"got {dtype} of shape {shape}."
        )
    return found
