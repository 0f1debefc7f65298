"""A matrix as an optimizer sees it: with every parameter measured in the optimizer's own scale."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.objective.losses.loss import LossValue
from hvpspec.objective.objective import Objective
from hvpspec.objective.parameters import ParameterSpace
from hvpspec.operators.fingerprint import content
from hvpspec.operators.first_order import NextUpdate, of_optimizer
from hvpspec.operators.hessian import HessianOperator
from hvpspec.operators.parts.ranks import Ranks, Spread
from hvpspec.operators.preconditioner import Preconditioner
from hvpspec.operators.tensors import TensorOperator, _product
from hvpspec.options import Matrix
from hvpspec.oracle.loss_gradient import LossGradient, Receive
from hvpspec.results.estimate import Recomputed
from hvpspec.results.spectrum import Preconditioned
from hvpspec.wording import listed

_MAX_LISTED_NAMES = 8  # in a message
_DIGEST_BYTES = 16

ByName = Mapping[str, Any]
Diagonal = ByName | Tensor | np.ndarray | float


class PreconditionedOperator(TensorOperator):
    """D^(-1/2) (A + shift I) D^(-1/2), which has the eigenvalues of D⁻¹ (A + shift I) and is symmetric.

    With the D of an optimizer that divides its updates by it, these are the curvatures that its steps meet: of Adam,
    AdamW, RMSprop and Adagrad, `adam_preconditioner` finds it. Of a HessianOperator (GGNOperator, …) the result has all
    that estimators use of one: engines, folds of the data, the noise of the products, parameters by name.

    Parameters
    ----------
    A : HessianOperator, LinearOperator, ndarray or Tensor
        A symmetric matrix.
    scale : Preconditioner, mapping of str to Tensor, Tensor or ndarray
        D^(-1/2), positive: a vector of length n; or a tensor for each parameter of A, by name; or what
        `adam_preconditioner` returns, which also gives the shift.
    shift : float, vector or mapping of str to float, optional
        What is added to the diagonal of A, such as a weight decay that is part of the gradient.

    Attributes
    ----------
    A : LinearOperator
        The matrix inside.
    preconditioned : Preconditioned
        What is known of the preconditioner, for results.

    Raises
    ------
    InputError
        For names that A does not have or that are missing, for other shapes, and for values that are not finite or, in
        `scale`, not positive.

    Notes
    -----
    A product costs one of A. Cohen et al., Adaptive Gradient Methods at the Edge of Stability, arXiv:2207.14484.

    Examples
    --------
    >>> import numpy as np
    >>> from hvpspec import PreconditionedOperator
    >>> P = PreconditionedOperator(np.array([[4.0, 2.0], [2.0, 9.0]]), np.array([0.5, 1.0]))
    >>> P @ np.eye(2)
    array([[1., 1.],
           [1., 9.]])
    """

    def __new__(cls, A: Any = None, *args: Any, **kwargs: Any) -> PreconditionedOperator:
        made = PreconditionedOverData if isinstance(A, (HessianOperator, PreconditionedOverData)) else cls
        operator: PreconditionedOperator = LinearOperator.__new__(made)
        return operator

    def __init__(self, A: Any, scale: Preconditioner | Diagonal, shift: Diagonal = 0.0) -> None:
        self.A = A if isinstance(A, LinearOperator) else aslinearoperator(_array(A))
        self.preconditioned = Preconditioned()
        self.by: Preconditioner | None = None  # the optimizer, with the names of this operator alone
        if isinstance(scale, Preconditioner):
            if not (isinstance(shift, (int, float)) and shift == 0):
                raise InputError("the preconditioner of an optimizer has a shift of its own; leave shift out.")
            names = getattr(A, "parameters", None)
            of = scale if names is None else scale.of(names.names)
            self.preconditioned, self.by = of.described(), of
            scale, shift = of.scale, of.shift
        if self.A.ndim != 2 or self.A.shape[0] != self.A.shape[1]:
            raise InputError(f"the matrix must be square; got shape {tuple(self.A.shape)}.")
        single = np.dtype(self.A.dtype) == np.float32
        self.torch_dtype = torch.float32 if single else torch.float64
        self.device = getattr(A, "device", torch.device("cpu"))
        self.scale = self._diagonal("scale", scale)
        self.shift = self._diagonal("shift", shift)
        if not bool((self.scale > 0).all()):
            raise InputError("scale must be positive: D^(-1/2) of a preconditioner D.")
        super().__init__(np.dtype(np.float32 if single else np.float64), self.A.shape)

    @property
    def semidefinite(self) -> bool:
        """Whether it is known that no eigenvalue is negative, as where that is known of the matrix inside."""
        return getattr(self.A, "semidefinite", False) is True and bool((self.shift >= 0).all())

    def _diagonal(self, what: str, given: Any) -> Tensor:
        """A vector of length n, or one number for all."""
        n, space = self.A.shape[0], getattr(self.A, "parameters", None)
        if isinstance(given, Mapping):
            if not isinstance(space, ParameterSpace):
                raise InputError(f"{what} has names, and the operator has no parameters by name; give a vector.")
            given = _flat(what, given, space)
        vector = _tensor(given).to(self.device, self.torch_dtype)
        if vector.shape not in ((n,), () if what == "shift" else (n,)):
            raise InputError(f"{what} must be a vector of length {n}; got shape {tuple(vector.shape)}.")
        if not bool(torch.isfinite(vector).all()):
            raise InputError(f"{what} has NaN or Inf entries.")
        return vector

    def _multiply_tensor(self, x: Tensor) -> Tensor:
        if x.ndim not in (1, 2) or x.shape[0] != self.shape[1]:
            raise InputError(self._wrong_shape(x.shape))
        scaled = self._times_scale(x)
        return self._finished(_product(self.A, scaled), scaled)

    def _matmat(self, X: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        columns = torch.from_numpy(np.ascontiguousarray(X, dtype=self.dtype)).to(self.device)
        product: np.ndarray[Any, Any] = self._multiply_tensor(columns).cpu().numpy()
        return product

    def _adjoint(self) -> PreconditionedOperator:
        return self

    def _transpose(self) -> PreconditionedOperator:
        return self

    def _times_scale(self, x: Tensor) -> Tensor:
        scale = self.scale.to(x.device, x.dtype)
        return scale * x if x.ndim == 1 else scale[:, None] * x

    def _finished(self, product: Tensor, scaled: Tensor) -> Tensor:
        """From A D^(-1/2) x and D^(-1/2) x to the whole product."""
        shift = self.shift.to(product.device, product.dtype)
        shift = shift[:, None] if shift.ndim == 1 and product.ndim == 2 else shift
        return self._times_scale(product + shift * scaled.to(product.dtype))


class PreconditionedOverData(PreconditionedOperator):
    """Of a HessianOperator: with all that hvpspec/krylov/operator_view.py asks of an operator over batches of data."""

    A: HessianOperator

    @property
    def matrix(self) -> Matrix:
        """Which matrix is preconditioned."""
        return self.A.matrix

    @property
    def parameters(self) -> ParameterSpace:
        """See `HessianOperator`."""
        return self.A.parameters

    @property
    def objective(self) -> Objective:
        """See `HessianOperator`."""
        return self.A.objective

    @property
    def spread(self) -> _Spread | None:
        """With a rank's rows of the vectors, where they are spread over ranks."""
        return None if self.A.spread is None else _Spread(self, self.A.spread)

    def alone(self) -> PreconditionedOverData:
        """See `HessianOperator`."""
        other = copy.copy(self)
        other.A = self.A.alone()
        return other

    @property
    def hvps(self) -> int:
        """Number of products so far, those of A."""
        return self.A.hvps

    @property
    def engine(self) -> str:
        """See `HessianOperator`."""
        return self.A.engine

    @property
    def plan(self) -> str:
        """See `HessianOperator`."""
        return self.A.plan

    @property
    def noise(self) -> float:
        """That of A relative to the norm of this operator, which a scale of large and small entries magnifies."""
        ratio = float(self.scale.max() / self.scale.min())
        return self.A.noise * ratio**2 if self.A.noise else 0.0

    def recompute(self, columns: Tensor) -> tuple[Tensor, Recomputed] | None:
        """See `HessianOperator`."""
        scaled = self._times_scale(columns)
        found = self.A.recompute(scaled)
        return None if found is None else (self._finished(found[0], scaled), found[1])

    def fresh(self, columns: Tensor) -> Tensor:
        """See `HessianOperator`."""
        scaled = self._times_scale(columns)
        return self._finished(self.A.fresh(scaled), scaled)

    def fingerprint(self, loss: LossValue | None = None) -> dict[str, Any]:
        """See `HessianOperator`; with a digest of the preconditioner."""
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for vector in (self.scale, self.shift):
            digest.update(content(vector))
        return {**self.A.fingerprint(loss), "preconditioner": digest.hexdigest()}

    def state(self) -> dict[str, Any]:
        """See `HessianOperator`."""
        return self.A.state()

    def resume(self, state: dict[str, Any]) -> None:
        """See `HessianOperator`."""
        self.A.resume(state)

    def follow(self, known: list[dict[str, Any]] | None) -> None:
        """See `HessianOperator`."""
        self.A.follow(known)

    @property
    def chosen(self) -> list[dict[str, Any]]:
        """See `HessianOperator`."""
        return self.A.chosen

    def verified(self) -> None:
        """See `HessianOperator`."""
        self.A.verified()

    def expect(self, products: int) -> None:
        """See `HessianOperator`."""
        self.A.expect(products)

    def expected_seconds(self, products: int) -> float:
        """See `HessianOperator`."""
        return self.A.expected_seconds(products)

    def expected_saved_bytes(self, products: int, taken: int) -> int:
        """See `HessianOperator`."""
        return self.A.expected_saved_bytes(products, taken)

    def loss(self) -> LossValue:
        """See `HessianOperator`."""
        return self.A.loss()

    def batch_count(self) -> int:
        """See `HessianOperator`."""
        return self.A.batch_count()

    def agree_on_noise(self) -> None:
        """See `HessianOperator`."""
        self.A.agree_on_noise()

    @property
    def ranks(self) -> Ranks | None:
        """See `HessianOperator`."""
        return self.A.ranks

    def values(self) -> Tensor:
        """The parameters in the operator's own coordinates: D^(1/2) p."""
        return self.A.values() / self.scale

    def loss_gradient(self, receive: Receive) -> LossGradient:
        """In the operator's own coordinates D^(1/2) p, with the gradient of the decay that the shift stands for.

        Of ranks, this one's rows, as `HessianOperator` has it.
        """
        decay = (self.shift * self.A.values())[:, None]

        def scaled(number: int, weight: float, gradient: Tensor) -> None:
            receive(number, weight, self._times_scale(gradient + decay))

        found, spread = self.A.loss_gradient(scaled), self.spread
        if spread is None:
            return found._replace(columns=self._times_scale(found.columns + decay))
        return found._replace(columns=spread.times_scale(found.columns + spread.shard.part(decay)))

    def next_update(self, gradient: Tensor, preconditioner: Preconditioner | None = None) -> NextUpdate | None:
        """That of the optimizer whose preconditioner it is, where it is one's; `gradient` is as `loss_gradient` has it.

        The update is D^(1/2) u in the operator's own coordinates.
        """
        by = preconditioner or self.by
        if by is None or not isinstance(self.A, HessianOperator):
            return None
        values = self.A.values()
        found = of_optimizer(self.A, gradient / self.scale - self.shift * values, by)
        decayed = self.shift.double() * found.vector
        return found._replace(
            vector=found.vector / self.scale,
            decay_slope=float((values.double() * decayed).sum()),
            decay_curvature=float((found.vector * decayed).sum()),
        )

    def batch_operators(
        self, numbers: Collection[int]
    ) -> Iterator[tuple[int, Callable[[], tuple[float, PreconditionedOverData | None]]]]:
        """See `HessianOperator`; with the same preconditioner for each batch."""
        inside = self.A.batch_operators(numbers)  # begun here, as it is on other ranks
        return ((number, partial(self._around, operator)) for number, operator in inside)

    def _around(
        self, inside: Callable[[], tuple[float, HessianOperator | None]]
    ) -> tuple[float, PreconditionedOverData | None]:
        weight, A = inside()
        if A is None:
            return weight, None
        one = copy.copy(self)
        one.A = A
        return weight, one

    def multiply_by_folds(self, columns: Tensor, folds: int, receive: Callable[[int, float, Tensor], None]) -> Tensor:
        """See `HessianOperator`."""
        scaled = self._times_scale(columns)

        def finish(number: int, weight: float, product: Tensor) -> None:
            receive(number, weight, self._finished(product, scaled))

        return self._finished(self.A.multiply_by_folds(scaled, folds, finish), scaled)


class _Spread:
    """On a rank, with its rows of the vectors: see `hvpspec.operators.parts.ranks.Spread`."""

    def __init__(self, operator: PreconditionedOverData, inner: Spread) -> None:
        self.shard, own = inner.shard, copy.copy(operator)
        own.scale = self.shard.part(operator.scale)
        own.shift = self.shard.part(operator.shift) if operator.shift.ndim else operator.shift
        own.A = inner  # type: ignore[assignment]
        self.multiply_by_folds, self.recompute, self.fresh = own.multiply_by_folds, own.recompute, own.fresh
        self.times_scale, self._own = own._times_scale, own

    def matmat(self, columns: Tensor) -> Tensor:
        scaled = self._own._times_scale(columns)
        return self._own._finished(self._own.A.matmat(scaled), scaled)


Measured = HessianOperator | PreconditionedOverData
"""What a run is of."""


PreconditionedOverData.__name__ = PreconditionedOperator.__name__  # in repr: how it is made is nobody's business


def _array(A: Any) -> Any:
    return A.detach().cpu().numpy() if isinstance(A, Tensor) else A


def _tensor(value: Any) -> Tensor:
    """A number without rounding it to float32, as torch would."""
    return (
        torch.tensor(value, dtype=torch.float64) if isinstance(value, (int, float)) else torch.as_tensor(value).detach()
    )


def _flat(what: str, given: ByName, space: ParameterSpace) -> Tensor:
    """A vector from values by name, each of which may be one number for all entries of `shift`."""
    missing = [name for name in space.names if name not in given]
    unknown = [str(name) for name in given if name not in space.names]
    complaints = {"missing": missing, "not among the operator's parameters": unknown}
    if missing or unknown:
        said = "; ".join(f"{about}: {listed(names, _MAX_LISTED_NAMES)}" for about, names in complaints.items() if names)
        raise InputError(f"{what} does not have the names of the operator's parameters: {said}.")
    pieces = []
    for name, shape in zip(space.names, space.shapes, strict=True):
        value = _tensor(given[name])
        if value.ndim == 0 and what == "shift":
            value = value.expand(shape)
        if value.shape != shape:
            raise InputError(f"{what}: '{name}' has shape {tuple(shape)}; got {tuple(value.shape)}.")
        pieces.append(value.reshape(-1).double())
    return torch.cat(pieces)
