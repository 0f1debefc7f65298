"""The Hessian as a SciPy LinearOperator: NumPy arrays in, NumPy arrays out; torch tensors in, torch tensors out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor, nn

from hvpspec.errors import InputError
from hvpspec.memory import check_size
from hvpspec.objective.losses import LossFunction
from hvpspec.objective.objective import LossValue, Objective
from hvpspec.objective.parameters import ParameterSpace
from hvpspec.oracle import Chooser

_DTYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


class HessianOperator(LinearOperator):
    """The Hessian of the weighted mean of `loss` over `data`, in the chosen parameters of `model`. Never stored.

    model, loss, data, parameters: see `hvpspec.objective.objective.Objective`.
    engine: how a product is computed. "autograd" differentiates anew each time. "linearized" traces each batch once and
        keeps what does not depend on the vector; "compiled" has Inductor compile that, "cudagraph" (CUDA only) replays
        it as a CUDA graph. "finite-difference" is the last resort where a loss can be derived only once: differences of
        its gradient, whose error is measured and goes into every error bar. "auto" starts with autograd and changes to
        what is faster once that will repay. Each but that last resort is checked against autograd before use. `H.plan`
        says in one line what was chosen, and why.
    memory_limit: what linearized engines may keep, in bytes or as "2GiB"; by default 40 % of the free memory.
    dtype: "float32", "float64", or the torch or NumPy dtype; None keeps the model's own.
    device: where products are computed; None keeps the model's own.

    `H @ x` takes arrays and tensors of shape (n,) or (n, b); a tensor must have the operator's dtype and comes back on
    its own device, an array is converted. `H.hvps` counts products, a block of b vectors as b.
    The operator is symmetric, so that `H.T` is `H`. The model is read anew at each product, and left untouched.

    Raises InputError (a ValueError) for unusable input, TypeError for complex or mismatched dtypes.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | LossFunction | nn.Module,
        data: Iterable[Any],
        *,
        parameters: str | Sequence[str] | None = None,
        engine: str = "auto",
        memory_limit: int | str | None = None,
        dtype: str | torch.dtype | np.dtype | type | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        limit = check_size("memory_limit", memory_limit)
        self.objective = Objective(model, loss, data, parameters=parameters, dtype=_torch_dtype(dtype), device=device)
        self._product = Chooser(self.objective, engine, limit)
        self.torch_dtype = self.objective.dtype
        self.device = self.objective.device
        self.hvps = 0
        n = self.objective.space.n
        super().__init__(dtype=_DTYPES[self.torch_dtype], shape=(n, n))

    @property
    def parameters(self) -> ParameterSpace:
        """Names, shapes and positions of the parameters; `.flatten` and `.unflatten` convert vectors."""
        return self.objective.space

    @property
    def engine(self) -> str:
        """The name of the engine in use: "autograd", "linearized" or "finite-difference"."""
        return self._product.engine

    @property
    def noise(self) -> float:
        """What products are off by beyond rounding, relative to their length: 0 but for finite differences."""
        return self._product.noise

    @property
    def plan(self) -> str:
        """How products are computed, in one line: the engine, what it keeps, or why it is not another."""
        return self._product.plan

    def expect(self, products: int) -> None:
        """Says how many products are about to be asked for, from which "auto" judges what will repay."""
        self._product.expect(products)

    def foresee(self, products: int) -> float:
        """Seconds that so many products will take, judging by those made so far; NaN where there are none."""
        return self._product.foresee(products)

    def foresee_kept(self, products: int, taken: int) -> int:
        """Bytes that an engine will keep beyond what is held now, as far as is known; taken: by one product now."""
        return self._product.foresee_kept(products, taken)

    def loss(self) -> LossValue:
        """The loss over the data (one forward pass, no HVP)."""
        return self.objective.value()

    # --- products -----------------------------------------------------------------------------------------------

    def dot(self, x: Any) -> Any:
        return self._multiply_tensor(x) if isinstance(x, Tensor) else super().dot(x)

    def __mul__(self, x: Any) -> Any:
        return self._multiply_tensor(x) if isinstance(x, Tensor) and x.ndim else super().__mul__(x)

    def __matmul__(self, x: Any) -> Any:
        return self._multiply_tensor(x) if isinstance(x, Tensor) else super().__matmul__(x)

    def matvec(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self._multiply_tensor(x)
        x = np.asanyarray(x)
        if x.shape not in ((self.shape[1],), (self.shape[1], 1)):
            raise InputError(self._wrong_shape(x.shape))
        return super().matvec(x)

    def matmat(self, X: Any) -> Any:
        if isinstance(X, Tensor):
            return self._multiply_tensor(X)
        if getattr(X, "shape", (self.shape[1], 0))[:1] != self.shape[1:] or np.ndim(X) != 2:
            raise InputError(self._wrong_shape(np.shape(X)))
        return super().matmat(X)

    def __add__(self, x: Any) -> Any:
        """H + another operator, or + a matrix: `H + s * scipy.sparse.eye_array(n)` works as well."""
        return super().__add__(x if isinstance(x, LinearOperator) or np.isscalar(x) else aslinearoperator(x))

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._matmat(x.reshape(-1, 1)).reshape(x.shape)

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        if X.dtype.kind not in "fiub":
            raise TypeError(f"expected a real vector; got dtype {X.dtype}.")
        block = torch.from_numpy(np.ascontiguousarray(X, dtype=self.dtype)).to(self.device)
        return self._multiply_block(block).cpu().numpy()

    def _adjoint(self) -> HessianOperator:
        return self

    def _transpose(self) -> HessianOperator:
        return self

    def _multiply_tensor(self, x: Tensor) -> Tensor:
        if x.ndim not in (1, 2) or x.shape[0] != self.shape[1]:
            raise InputError(self._wrong_shape(x.shape))
        if x.dtype != self.torch_dtype:
            raise TypeError(
                f"the operator computes in {self.torch_dtype} and the tensor is {x.dtype}; "
                f"convert the tensor, or make the operator with dtype={x.dtype}."
            )
        product = self._multiply_block(x.detach().to(self.device).reshape(x.shape[0], -1))
        return product.reshape(x.shape).to(x.device)

    def _multiply_block(self, block: Tensor) -> Tensor:
        if block.shape[1] == 0:
            return block.clone()
        product = self._product(block)
        self.hvps += block.shape[1]
        return product

    def batch_count(self) -> int:
        """How many batches the data have."""
        return self.objective.batch_count()

    def multiply_by_folds(self, block: Tensor, folds: int, receive: Callable[[int, float, Tensor], None]) -> Tensor:
        """H @ block, told apart by batches; no further cost.

        The batches, in order, form that many folds. `receive(fold, weight, product)` is called once for each with
        its total weight and the product of its own Hessian (the weighted mean over its batches) with the block.
        """
        count = self.batch_count()
        fold, weight = 0, 0.0
        total = torch.zeros_like(block)

        def close() -> None:
            nonlocal weight
            if weight > 0:
                receive(fold, weight, total / weight)
            total.zero_()
            weight = 0.0

        def on_batch(index: int, batch_weight: float, product: Tensor | None) -> None:
            nonlocal fold, weight
            if (of := min(index * folds // count, folds - 1)) != fold:
                close()
                fold = of
            weight += batch_weight
            if product is not None:
                total.add_(product, alpha=batch_weight)

        product = self._product(block, on_batch)
        close()
        self.hvps += block.shape[1]
        return product

    def _wrong_shape(self, shape: Sequence[int]) -> str:
        n = self.shape[0]
        return f"the Hessian is {n} × {n}: expected shape ({n},) or ({n}, b), got {tuple(shape)}."


def _torch_dtype(dtype: str | torch.dtype | np.dtype | type | None) -> torch.dtype | None:
    if dtype is None or dtype in _DTYPES:
        return dtype  # type: ignore[return-value]
    names = {"float32": torch.float32, "float64": torch.float64}
    try:
        return names[str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else np.dtype(dtype).name]
    except (KeyError, TypeError):
        raise InputError(f"dtype must be float32 or float64; got {dtype}.") from None
