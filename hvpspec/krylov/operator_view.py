"""Any symmetric operator behind one interface: columns in, their product out, and the products are counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from hvpspec.distributed.shard import Shard, largest
from hvpspec.errors import InputError
from hvpspec.kernels.full_precision import full_precision
from hvpspec.krylov.by_folds import ASYMMETRY_LIMIT, ByFolds, FoldOf, Reduce, reduced
from hvpspec.krylov.vectors import times
from hvpspec.options import MATRIX_NAMES, Matrix
from hvpspec.results.estimate import Recomputed
from hvpspec.results.spectrum import Preconditioned
from hvpspec.system.time_limit import PRODUCTS_PER_RECOMPUTED, Pace
from hvpspec.wording import dtype_name

ROUNDOFFS_PER_PRODUCT = 50  # the error of a product that its asymmetry need not show, in unit roundoffs of ‖H‖
MAX_FOLDS = 8  # of the batches: enough for a standard error, few enough to cost next to nothing
# ‖A x‖ / ‖x‖, by largest entries, beyond which squares in float32 or eighth powers in float64 may overflow or vanish.
_RANGE = {torch.float32: (2.0**-46, 2.0**46), torch.float64: (2.0**-100, 2.0**100)}


class Multiply(Protocol):
    def __call__(self, X: Tensor, /) -> Tensor: ...


class Recompute(Protocol):
    def __call__(self, X: Tensor, /) -> tuple[Tensor, Recomputed] | None: ...


State = dict[str, Any]
"""How an operator would compute its next product, JSON-ready: see `DataOperator`."""


BatchOperators = Callable[[Collection[int]], Iterator[tuple[int, Callable[[], tuple[float, Any]]]]]
"""For the batches of these numbers: the number, and what gives the batch's weight and operator; None without weight.

Of ranks, each has those of its own batches alone, with whole vectors.
"""


@runtime_checkable
class DataOperator(Protocol):
    """What the estimators need of an operator that is a mean over batches of data, beyond SciPy's interface.

    Such an operator also has `torch_dtype`, `device` and `noise`, the relative error of its products beyond rounding.
    One that can compute a product with other rounding errors has `recompute`, and perhaps `fresh`: see `Symmetric`.
    For a journal it may have `fingerprint()`, all that its products depend on, by names that a message can give;
    `state()`, how it would compute the next product, where that was decided by measurements; and `resume(state)`, which
    goes on from there. It may have `expected_seconds(products)`, how long so many will take, and `batch_operators`.
    Where vectors are spread over ranks, `spread` has `shard`, and in place of its own methods those that take a rank's
    rows.
    Any operator may have `semidefinite`, True where it is known beforehand to have no negative eigenvalue.
    """

    def matmat(self, X: Any) -> Any:
        """The product with a tensor of shape (n, b)."""

    def batch_count(self) -> int:
        """How many batches the mean is over."""

    def multiply_by_folds(self, block: Tensor, folds: int, receive: Callable[[int, float, Tensor], None]) -> Tensor:
        """The product; `receive` is called with the number, the weight and the product of each fold of the batches."""

    def expect(self, products: int) -> None:
        """Called with the number of products that are about to be asked for."""


def matrix_of(A: Any) -> Matrix | None:
    """Which matrix of a training loss an operator is; None for the Hessian, and for operators that do not say."""
    named = getattr(A, "matrix", "hessian")
    return named if named in MATRIX_NAMES and named != "hessian" else None


def preconditioned_by(A: Any) -> Preconditioned | None:
    """What is known of the preconditioner of an operator that has one."""
    found = getattr(A, "preconditioned", None)
    return found if isinstance(found, Preconditioned) else None


@dataclass
class Symmetric:
    """A symmetric operator as the estimators see it: `multiply` takes and returns tensors of shape (n, b).

    folds: of the batches, for a DataOperator; 0 where the product cannot be split. noise: the relative error that
    products have shown so far, beyond rounding. expect: see DataOperator. limit: how many products may be made; what
    would be beyond is refused here, where products are counted, whoever asks for it. recompute: a product in float64,
    or with other rounding errors, and which of the two; None where rounding cannot be measured. fresh: a product in the
    dtype from an engine that made none of the others, where there is one. explicit: a matrix held
    here, whose products cannot go wrong one by one. shown: the relative error that comparisons of products have shown,
    see `hvpspec.bounds.rounding`. fingerprint, state, resume: see DataOperator; None where the operator has no
    fingerprint. expected_seconds: see DataOperator; NaN where that is not known. decide: what free memory decides is
    asked through it, `decide(name, find)`, and is found again in a run that is resumed. shard: which positions of the
    vectors this process has, where they are spread over several; n is the length of the whole ones. batch_count,
    batch_operators: see DataOperator; 0 and None for other operators. batches_of_ranks: the numbers of each rank's
    batches, to be called on all ranks; None without ranks. semidefinite: whether no eigenvalue is negative, as is known
    beforehand.
    """

    n: int
    dtype: torch.dtype
    device: torch.device
    multiply: Multiply
    hvps: int = field(default=0)
    folds: int = 0
    multiply_by_folds: ByFolds | None = None
    noise: Callable[[], float] = lambda: 0.0
    expect: Callable[[int], None] = lambda products: None
    limit: float = math.inf
    recompute: Recompute | None = None
    fresh: Multiply | None = None
    explicit: bool = False
    shown: float = 0.0
    fingerprint: Callable[[], dict[str, Any]] | None = None
    state: Callable[[], State] = dict
    resume: Callable[[State], None] = lambda state: None
    expected_seconds: Callable[[int], float] = lambda products: math.nan
    decide: Callable[[str, Callable[[], int]], int] = lambda name, find: find()
    shard: Shard | None = None
    batch_count: int = 0
    batch_operators: BatchOperators | None = None
    batches_of_ranks: Callable[[], list[list[int]]] | None = None
    semidefinite: bool = False
    reached: float = 0.0  # the largest ‖A x‖ / ‖x‖ so far, by largest entries

    @property
    def left(self) -> float:
        """How many more products may be made."""
        return self.limit - self.hvps

    @property
    def unit_roundoff(self) -> float:
        """Of the dtype."""
        return float(torch.finfo(self.dtype).eps) / 2

    @property
    def eps(self) -> float:
        """The unit roundoff of the dtype, or a larger number that stands for it where products are less accurate.

        The noise bounds the whole error of a product, for which estimators allow ROUNDOFFS_PER_PRODUCT roundoffs.
        """
        return max(self.unit_roundoff, max(self.noise(), self.shown) / ROUNDOFFS_PER_PRODUCT)

    def __matmul__(self, X: Tensor) -> Tensor:
        self._allow(X)
        with full_precision(X.device):
            product = self.multiply(X)
            return self._counted(X, product)

    def by_folds(self, X: Tensor, reduce: Reduce) -> tuple[Tensor, list[FoldOf]]:
        """The product, and what `reduce` makes of the product of each fold of the batches."""
        assert self.multiply_by_folds is not None
        self._allow(X)
        with full_precision(X.device):
            product, found = self.multiply_by_folds(X, self.folds, reduce)
            return self._counted(X, product), found

    def _allow(self, X: Tensor) -> None:
        if X.shape[1] > self.left:
            raise RuntimeError(f"{X.shape[1]} products asked for, where the promised ceiling leaves {self.left:g}.")

    def _counted(self, X: Tensor, product: Tensor) -> Tensor:
        """The product, counted now that it is made, and checked."""
        self.hvps += X.shape[1]
        if product.shape != X.shape:
            raise InputError(
                f"the operator returned shape {tuple(product.shape)} for {tuple(X.shape)}; the two must be equal."
            )
        if not product.numel():
            return product
        # Both are read at once; the first is NaN or Inf where an entry is.
        sizes = largest(torch.stack([torch.linalg.vector_norm(vectors, math.inf) for vectors in (product, X)])).tolist()
        if not math.isfinite(sizes[0]):
            raise InputError("the operator returned a product with NaN or Inf entries; fix the operator first.")
        self._check_range(*sizes)
        return product

    def _check_range(self, largest: float, given: float) -> None:
        """Raises InputError where squares of entries would overflow or vanish: no error bar would hold there.

        largest, given: the largest entries of a product and of the vectors, without their signs.
        """
        low, high = _RANGE[self.dtype]
        if largest == 0 or given == 0:
            return
        self.reached = max(self.reached, largest / given)
        if low <= self.reached <= high:
            return
        exponent = math.floor(math.log2(self.reached))
        how = "dtype=float64 (--dtype float64), or " if self.dtype == torch.float32 else ""
        raise InputError(
            f"the operator's values are about {2.0**exponent:.0e}, and their squares leave the range of "
            f"{dtype_name(self.dtype)}; use {how}the operator (the loss) times 2**{-exponent}, and undo that in the "
            "results."
        )


def as_symmetric(A: Any) -> Symmetric:
    """A HessianOperator, SciPy LinearOperator, sparse or dense array, or torch tensor, as a Symmetric.

    Raises InputError if it is not square, real or (as far as that can be seen without products) symmetric.
    """
    if isinstance(A, Symmetric):
        return A
    if isinstance(A, DataOperator):
        return _from_data_operator(A)
    if isinstance(A, Tensor):
        return _from_tensor(A)
    if isinstance(A, LinearOperator):
        _check_kind(A.shape, A.dtype)
        return replace(_from_matmat(A.shape[0], A.dtype, A.matmat), semidefinite=_semidefinite(A))
    if sp.issparse(A):
        _check_kind(A.shape, A.dtype)
        matrix = A.tocsr()
        difference = matrix - matrix.T
        _check_symmetric(abs(difference).max() if difference.nnz else 0.0, abs(matrix).max(), matrix.dtype)
        return _from_matmat(A.shape[0], A.dtype, lambda X: matrix @ X, explicit=True)
    try:
        array = np.asarray(A)
    except Exception:
        array = np.asarray(None)
    if array.dtype.kind not in "fiubc":
        raise InputError(
            "expected a HessianOperator, SciPy LinearOperator, sparse or dense array or torch tensor; "
            f"got {type(A).__name__}."
        )
    _check_kind(array.shape, array.dtype)
    return _from_tensor(torch.from_numpy(np.array(array, dtype=_float_dtype(array.dtype))))


def within_time(A: Symmetric) -> tuple[Symmetric, Pace]:
    """The operator with products that raise OutOfTime where there is no time for them, and their pace."""
    agreed = A.shard.group.agreed if A.shard else None
    pace = Pace(A.expected_seconds, recomputes=A.recompute is not None, agreed=agreed)
    multiply, by_folds, again = A.multiply, A.multiply_by_folds, A.recompute

    def timed(X: Tensor, /) -> Tensor:
        return pace.time(X.shape[1], lambda: multiply(X))

    def timed_by_folds(X: Tensor, folds: int, reduce: Reduce, /) -> tuple[Tensor, list[FoldOf]]:
        assert by_folds is not None
        return pace.time(X.shape[1], lambda: by_folds(X, folds, reduce))

    def timed_again(X: Tensor, /) -> tuple[Tensor, Recomputed] | None:
        assert again is not None
        return pace.time(PRODUCTS_PER_RECOMPUTED * X.shape[1], lambda: again(X))

    timed_operator = replace(
        A,
        multiply=timed,
        multiply_by_folds=None if by_folds is None else timed_by_folds,
        recompute=None if again is None else timed_again,
    )
    return timed_operator, pace


class AsymmetricProducts(InputError):
    """Products contradict symmetry."""


def refuse_asymmetric(defect: float, scale: float, limit: float = ASYMMETRY_LIMIT) -> None:
    """Raises AsymmetricProducts if products contradict symmetry by more than rounding can explain."""
    if defect > limit * scale:
        raise AsymmetricProducts(
            f"the operator is not symmetric, or gives different products for the same vector: off by "
            f"{defect / scale:.1%} of its norm. Is there randomness in the model, the loss or the data, an operation "
            "whose second derivative torch gets wrong, or one whose gradient is that of no function (detach(), "
            "straight-through estimators)?"
        )


def _from_data_operator(A: Any) -> Symmetric:
    of = getattr(A, "spread", None) or A  # what takes vectors
    count = A.batch_count()
    folds = min(count, MAX_FOLDS)
    by_folds = reduced(of.multiply_by_folds) if folds > 1 else None
    engine_state = getattr(A, "state", dict)
    recompute = getattr(of, "recompute", None) if A.torch_dtype != torch.float64 else None
    shard: Shard | None = getattr(of, "shard", None)
    if shard is not None:
        A.agree_on_noise()
    return Symmetric(
        A.shape[0],
        A.torch_dtype,
        A.device,
        of.matmat,
        0,
        folds,
        by_folds,
        lambda: A.noise,
        A.expect,
        recompute=recompute,
        fresh=getattr(of, "fresh", None),
        fingerprint=getattr(A, "fingerprint", None),
        state=lambda: {"noise": A.noise, **engine_state()},
        resume=getattr(A, "resume", lambda state: None),
        expected_seconds=getattr(A, "expected_seconds", lambda products: math.nan),
        decide=Symmetric.decide if shard is None else lambda name, find: shard.group.least(find()),
        shard=shard,
        batch_count=count,
        batch_operators=getattr(A, "batch_operators", None),
        batches_of_ranks=None if shard is None else A.ranks.batches_of_ranks,
        semidefinite=_semidefinite(A),
    )


def _semidefinite(A: Any) -> bool:
    return getattr(A, "semidefinite", False) is True


def _from_tensor(matrix: Tensor) -> Symmetric:
    if matrix.is_complex():
        raise InputError("the matrix is complex; it must be real and symmetric.")
    _check_kind(matrix.shape, np.dtype(float))
    matrix = matrix.detach()
    if matrix.layout != torch.strided:
        matrix = matrix.to_dense()
    if matrix.dtype not in (torch.float32, torch.float64):
        matrix = matrix.to(torch.float32 if matrix.is_floating_point() else torch.float64)
    _check_symmetric(float((matrix - matrix.T).abs().max()), float(matrix.abs().max()), matrix.dtype)
    return Symmetric(matrix.shape[0], matrix.dtype, matrix.device, lambda X: times(matrix, X), explicit=True)


def _from_matmat(n: int, dtype: Any, matmat: Any, *, explicit: bool = False) -> Symmetric:
    numpy_dtype = _float_dtype(dtype)

    def multiply(X: Tensor, /) -> Tensor:
        given = X.numpy()
        product = np.asarray(matmat(given))
        if product.dtype.kind == "c":
            raise InputError("the operator returned a complex product; it must be real and symmetric.")
        product = np.ascontiguousarray(product, dtype=numpy_dtype)
        # Products are written to. That of the identity may be the vectors themselves, or memory that is read-only.
        own = not np.may_share_memory(product, given) and product.flags.writeable
        return torch.from_numpy(product if own else product.copy())

    torch_dtype = torch.float32 if numpy_dtype == np.float32 else torch.float64
    return Symmetric(n, torch_dtype, torch.device("cpu"), multiply, explicit=explicit)


def _float_dtype(dtype: Any) -> np.dtype:
    """float32 for single precision and below; float64 for everything else, an unknown dtype included."""
    single = dtype is not None and np.dtype(dtype).kind == "f" and np.dtype(dtype).itemsize <= 4
    return np.dtype(np.float32 if single else np.float64)


def _check_kind(shape: Any, dtype: Any) -> None:
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise InputError(f"expected a square matrix or operator; got shape {tuple(shape)}.")
    if dtype is not None and np.dtype(dtype).kind == "c":
        raise InputError("the operator is complex; it must be real and symmetric.")


def _check_symmetric(difference: float, scale: float, dtype: Any) -> None:
    if not np.isfinite(scale):
        raise InputError("the matrix has NaN or Inf entries.")
    eps = torch.finfo(dtype).eps if isinstance(dtype, torch.dtype) else np.finfo(_float_dtype(dtype)).eps
    if difference > 1e3 * eps * scale:
        raise InputError(
            f"the matrix is not symmetric: entries differ from those of the transpose by up to {difference:.3g}."
        )
