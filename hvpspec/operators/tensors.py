"""SciPy's LinearOperator for torch tensors too: products of tensors are tensors, also of sums, multiples and powers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.wording import dtype_name


class TensorOperator(LinearOperator):  # type: ignore[misc]  # SciPy has no type hints
    """A LinearOperator whose subclasses define `_matmat` for arrays and `_multiply_tensor` for tensors."""

    def _multiply_tensor(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def dot(self, x: Any) -> Any:
        """The product with a vector, several vectors, a number or another operator; the same as ``H * x``.

        Parameters
        ----------
        x : ndarray, Tensor, float or LinearOperator
            Vectors have the shape (n,) or (n, b).

        Returns
        -------
        ndarray, Tensor or LinearOperator
            The product; of a number or an operator, a new operator.
        """
        if _is_number(x):
            return Scaled(self, x)
        if isinstance(x, LinearOperator):
            return Product(self, x)
        return self._multiply_tensor(x) if isinstance(x, Tensor) else super().dot(x)

    def matvec(self, x: Any) -> Any:
        """The product with one vector.

        Parameters
        ----------
        x : ndarray or Tensor
            Of shape (n,) or (n, 1).

        Returns
        -------
        ndarray or Tensor
            Of the same shape. Costs 1 HVP.
        """
        if isinstance(x, Tensor):
            return self._multiply_tensor(x)
        x = np.asanyarray(x)
        if x.shape not in ((self.shape[1],), (self.shape[1], 1)):
            raise InputError(self._wrong_shape(x.shape))
        return super().matvec(x)

    def matmat(self, X: Any) -> Any:
        """The product with several vectors.

        Parameters
        ----------
        X : ndarray or Tensor
            Of shape (n, b), a vector in each column.

        Returns
        -------
        ndarray or Tensor
            Of shape (n, b). Costs b HVPs.
        """
        if isinstance(X, Tensor):
            return self._multiply_tensor(X)
        if getattr(X, "shape", (self.shape[1], 0))[:1] != self.shape[1:] or np.ndim(X) != 2:
            raise InputError(self._wrong_shape(np.shape(X)))
        return super().matmat(X)

    def rmatvec(self, x: Any) -> Any:
        """The product of the transpose with one vector, as `matvec`."""
        return self.H.matvec(x)

    def rmatmat(self, X: Any) -> Any:
        """The product of the transpose with several vectors, as `matmat`."""
        return self.H.matmat(X)

    def __mul__(self, x: Any) -> Any:
        return self.dot(x)

    def __matmul__(self, x: Any) -> Any:
        return self._multiply_tensor(x) if isinstance(x, Tensor) else super().__matmul__(x)

    def __rmul__(self, x: Any) -> Any:
        return Scaled(self, x) if _is_number(x) else self._rdot(x)

    def __rmatmul__(self, x: Any) -> Any:
        return self._rdot(x) if isinstance(x, Tensor) else super().__rmatmul__(x)

    def _rdot(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return _product(self.T, x) if x.ndim == 1 else _product(self.T, x.T).T
        return Product(x, self) if isinstance(x, LinearOperator) else super()._rdot(x)

    def __add__(self, x: Any) -> Any:
        """The sum with another operator or a matrix, so that `H + s * scipy.sparse.eye_array(n)` works too."""
        if _is_number(x):
            return NotImplemented
        if isinstance(x, Tensor):
            x = x.detach().cpu().numpy()
        x = x if isinstance(x, LinearOperator) else aslinearoperator(x)
        if x.shape != self.shape:
            raise ValueError(f"cannot add {self} and {x}: shape mismatch")
        return Sum(self, x)

    def __neg__(self) -> Any:
        return Scaled(self, -1)

    def __sub__(self, x: Any) -> Any:
        return self + (-x)

    def __truediv__(self, x: Any) -> Any:
        return Scaled(self, 1 / x) if _is_number(x) else super().__truediv__(x)

    def __pow__(self, power: Any) -> Any:
        if not isinstance(power, (int, np.integer)) or power < 0:
            raise ValueError(f"a power of an operator must be a whole number ≥ 0; got {power!r}.")
        return Power(self, int(power))

    def _matvec(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        product: np.ndarray[Any, Any] = self._matmat(x.reshape(-1, 1))
        return product.reshape(x.shape)

    def _wrong_shape(self, shape: Sequence[int]) -> str:
        n = self.shape[1]
        return f"the operator is {self.shape[0]} × {n}: expected shape ({n},) or ({n}, b), got {tuple(shape)}."


class Scaled(TensorOperator):
    """c A."""

    def __init__(self, A: LinearOperator, c: Any) -> None:
        self.A, self.c = A, c.item() if isinstance(c, Tensor) else c
        super().__init__(np.result_type(A.dtype, self.c), A.shape)

    def _multiply_tensor(self, x: Tensor) -> Tensor:
        product: Tensor = self.c * _product(self.A, x)
        return product

    def _matmat(self, X: Any) -> Any:
        return self.c * self.A.matmat(X)

    def _transpose(self) -> Any:
        return Scaled(self.A.T, self.c)

    def _adjoint(self) -> Any:
        return Scaled(self.A.H, np.conj(self.c))


class Sum(TensorOperator):
    """A + B."""

    def __init__(self, A: LinearOperator, B: LinearOperator) -> None:
        self.A, self.B = A, B
        super().__init__(np.result_type(A.dtype, B.dtype), A.shape)

    def _multiply_tensor(self, x: Tensor) -> Tensor:
        return _product(self.A, x) + _product(self.B, x)

    def _matmat(self, X: Any) -> Any:
        return self.A.matmat(X) + self.B.matmat(X)

    def _transpose(self) -> Any:
        return Sum(self.A.T, self.B.T)

    def _adjoint(self) -> Any:
        return Sum(self.A.H, self.B.H)


class Product(TensorOperator):
    """A B."""

    def __init__(self, A: LinearOperator, B: LinearOperator) -> None:
        if A.shape[1] != B.shape[0]:
            raise ValueError(f"cannot multiply {A} and {B}: shape mismatch")
        self.A, self.B = A, B
        super().__init__(np.result_type(A.dtype, B.dtype), (A.shape[0], B.shape[1]))

    def _multiply_tensor(self, x: Tensor) -> Tensor:
        return _product(self.A, _product(self.B, x))

    def _matmat(self, X: Any) -> Any:
        return self.A.matmat(self.B.matmat(X))

    def _transpose(self) -> Any:
        return Product(self.B.T, self.A.T)

    def _adjoint(self) -> Any:
        return Product(self.B.H, self.A.H)


class Power(TensorOperator):
    """A A … A."""

    def __init__(self, A: LinearOperator, power: int) -> None:
        self.A, self.power = A, power
        super().__init__(A.dtype, A.shape)

    def _multiply_tensor(self, x: Tensor) -> Tensor:
        for _ in range(self.power):
            x = _product(self.A, x)
        return x

    def _matmat(self, X: Any) -> Any:
        for _ in range(self.power):
            X = self.A.matmat(X)
        return X

    def _transpose(self) -> Any:
        return Power(self.A.T, self.power)

    def _adjoint(self) -> Any:
        return Power(self.A.H, self.power)


def _is_number(x: Any) -> bool:
    return bool(np.isscalar(x)) or (isinstance(x, Tensor) and x.ndim == 0)


def _product(A: LinearOperator, x: Tensor) -> Tensor:
    """A x as a tensor of x's dtype and device, whatever A is."""
    if isinstance(A, TensorOperator):
        return A._multiply_tensor(x)
    array = A.matvec(x.detach().cpu().numpy()) if x.ndim == 1 else A.matmat(x.detach().cpu().numpy())
    return torch.from_numpy(np.asarray(array)).to(x.device, x.dtype)


def torch_dtype(dtype: str | torch.dtype | np.dtype[Any] | type | None) -> torch.dtype | None:
    """float32 or float64 as torch has it, from a name or a dtype; None for None. Raises InputError."""
    if dtype is None:
        return None
    try:
        name = dtype_name(dtype) if isinstance(dtype, torch.dtype) else np.dtype(dtype).name
        return {"float32": torch.float32, "float64": torch.float64}[name]
    except (KeyError, TypeError):
        raise InputError(f"dtype must be float32 or float64; got {dtype}.") from None
