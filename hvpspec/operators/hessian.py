"""The Hessian as a SciPy LinearOperator: NumPy arrays in, NumPy arrays out; torch tensors in, torch tensors out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hvpspec.distributed.group import group_of
from hvpspec.errors import InputError
from hvpspec.memory import check_size
from hvpspec.objective.losses.loss import LossFunction, LossValue
from hvpspec.objective.objective import Objective
from hvpspec.objective.parameters import ParameterSpace
from hvpspec.objective.subsets.shares import share_of
from hvpspec.operators.batches import OverBatches
from hvpspec.operators.fingerprint import fingerprint
from hvpspec.operators.parts.folds import Folds
from hvpspec.operators.parts.ranks import Ranks, Spread
from hvpspec.operators.tensors import torch_dtype
from hvpspec.options import MATRIX_NAMES, Engine, Matrix, Reduction
from hvpspec.oracle import Chooser, autograd
from hvpspec.results.estimate import Recomputed
from hvpspec.system.time_limit import check_time, time_left
from hvpspec.validation import check_flag

_DTYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


class HessianOperator(OverBatches):
    """The Hessian of a training loss, as a symmetric matrix that is never stored.

    The loss is the weighted mean of `loss` over `data`, in eval mode, as a function of the chosen parameters of
    `model`. ``H @ x`` takes arrays and tensors of shape (n,) or (n, b). An array is converted to the operator's dtype;
    a tensor must have that dtype, and its product is on the tensor's device. The model's values are read again for each
    product, and the model is left unchanged.

    Parameters
    ----------
    model : nn.Module
        Of a wrapper (DataParallel, DistributedDataParallel, what `torch.compile` returns), the module inside is used.
    loss : str, nn.Module or callable
        "cross_entropy", "mse", "bce_with_logits", "causal_lm", "model" (the loss that a Hugging Face model returns) or
        "cosine_similarity"; a torch criterion; or a function or module, called as ``loss(model, batch)`` or
        ``loss(outputs, targets)``, that returns the mean loss over the batch, or (mean loss, weight). Without a weight,
        what the mean is taken over (samples, targets that are not ignored, …) is measured by cutting batches in two and
        joining parts of neighbours; a loss that is no such mean is refused.
    data : iterable of batches
        A list, a DataLoader, or anything else that gives the same batches each time it is iterated over.
    parameters : str or sequence of str, optional
        Which parameters to differentiate with respect to: names of parameters, names of modules (for all parameters
        inside), or globs such as "layer*.weight". By default all that require a gradient.
    engine : str, optional
        How a product is computed.

        - "autograd": double backward. From the second product on, the graphs of the batches' gradients are kept as far
          as memory allows, so that only the second backward pass is left.
        - "linearized": records the product of each batch once and saves the activations, which do not depend on the
          vector.
        - "compiled": compiles that recording with Inductor.
        - "cudagraph": replays it as a CUDA graph (CUDA only).
        - "finite-difference": differences of the gradient, for losses that can be differentiated only once. The
          estimated error of the products (`noise`) is part of every error bar.
        - "auto" (the default): starts with "autograd" and changes to a recorded engine where the products still
          expected repay what that costs.

        Every engine except the last-resort finite differences is compared with "autograd" before it is used.
    memory_limit : int or str, optional
        What is saved of the batches between products may take (gradient graphs or activations), in bytes or as "2GiB".
        By default 40 % of the free memory. Of activations, those that are cheap to compute are given up first.
    verify : bool, optional
        Before the first product, evaluate the first batch's loss again and compare one product with differences of its
        gradient: one product and two gradients of that batch (of a large model, of its first 16 samples or more). Also
        measure what a user's loss is a mean over, in three forward passes over the data. With False, a loss that is
        random, that torch differentiates wrongly, or that is a mean over something else than samples, is not noticed.
    dtype : str, torch.dtype or numpy.dtype, optional
        float32 or float64. By default the model's own, and float32 for half precision.
    device : str or torch.device, optional
        Where products are computed. By default the model's own. The model and the data may stay on another device: they
        are copied once, and again where they have changed; between products the model is where it was.
    noise_seed : int, optional
        Fixes the random numbers that the model or the loss draws (of torch, NumPy and Python): the same ones for a
        batch in every product and every engine. By default a random loss is refused.
    reduction : str, optional
        "mean" or "sum", of what the loss is over the data. For "sum", a function returns the sum over the batch, or
        (mean loss, weight). By default "sum" for a torch criterion with ``reduction="sum"``, and else "mean".
    train_mode : bool, optional
        Evaluate the model in training mode, for losses that exist only there: batch normalization uses the statistics
        of each batch, and dropout needs a `noise_seed`.
    group : torch.distributed.ProcessGroup, or False, optional
        The ranks that share the work: by default all of the initialised process group, where there is one; False for
        none. Each rank multiplies with its share of the batches, and what takes vectors is called on all of them.

    Attributes
    ----------
    shape : tuple of int
        (n, n), where n is the number of entries of the chosen parameters.
    dtype : numpy.dtype
        That of products with arrays; `torch_dtype` is the same as a torch.dtype.
    device : torch.device
        Where products are computed.
    hvps : int
        Number of Hessian-vector products so far; b vectors together count as b, and what `verify` does as none.

    Raises
    ------
    InputError
        A ValueError, for input that cannot be used.
    TypeError
        For complex vectors, and for tensors of another dtype than the operator's.

    Notes
    -----
    A product costs 1 HVP per vector: 3 to 4 gradients of the loss with "autograd", 1.5 to 2.7 where graphs are kept, 1
    to 2 with the recorded engines.
    Double backward is that of Pearlmutter, Neural Computation 6 (1994), doi:10.1162/neco.1994.6.1.147.

    The operator is symmetric, so that ``H.T is H``. SciPy's solvers accept it.

    Examples
    --------
    The mean squared error of a linear model has the Hessian 2 XᵀX / N:

    >>> import torch
    >>> from hvpspec import HessianOperator
    >>> X, y = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.zeros(2, 1)
    >>> H = HessianOperator(torch.nn.Linear(2, 1, bias=False), "mse", [(X, y)], dtype="float64")
    >>> H
    <2x2 HessianOperator with dtype=float64>
    >>> H @ torch.eye(2, dtype=torch.float64)
    tensor([[2., 2.],
            [2., 4.]], dtype=torch.float64)
    >>> H.hvps
    2
    """

    matrix: Matrix = "hessian"

    def __init__(
        self,
        model: nn.Module,
        loss: str | LossFunction | nn.Module,
        data: Iterable[Any],
        *,
        parameters: str | Sequence[str] | None = None,
        engine: Engine = "auto",
        memory_limit: int | str | None = None,
        verify: bool = True,
        dtype: str | torch.dtype | np.dtype[Any] | type | None = None,
        device: str | torch.device | None = None,
        noise_seed: int | None = None,
        reduction: Reduction | None = None,
        train_mode: bool = False,
        group: Any = None,
    ) -> None:
        limit = check_size("memory_limit", memory_limit)
        if engine == "finite-difference" and self.matrix != "hessian":
            raise InputError(f'engine="finite-difference" is not for the {MATRIX_NAMES[self.matrix]}; choose another.')
        ranks = group_of(group)
        own = data if ranks is None else share_of(data, ranks.rank, ranks.size)
        self.objective = Objective(
            model, loss, own, parameters=parameters, dtype=torch_dtype(dtype), device=device, noise_seed=noise_seed,
            measure=verify, train_mode=check_flag("train_mode", train_mode), reduction=reduction, matrix=self.matrix,
        )  # fmt: skip
        self._product = Chooser(self.objective, engine, limit, verified=not verify, shared=ranks is not None)
        self.torch_dtype, self.device = self.objective.dtype, self.objective.device
        self.hvps = 0
        self._ranks = None if ranks is None else Ranks(ranks, self.objective, engine)
        self.spread = None if self._ranks is None else Spread(self._ranks, self._product, self)
        n = self.objective.space.n
        super().__init__(dtype=_DTYPES[self.torch_dtype], shape=(n, n))

    @property
    def parameters(self) -> ParameterSpace:
        """Names, shapes and positions of the chosen parameters; `flatten` and `unflatten` convert vectors."""
        return self.objective.space

    @property
    def engine(self) -> str:
        """The engine in use: "autograd", "linearized" (compiled or not; see `plan`) or "finite-difference"."""
        return self._product.engine

    @property
    def noise(self) -> float:
        """Estimated relative error of the products beyond rounding; 0 except for finite differences."""
        return self._product.noise if self._ranks is None else self._ranks.noise

    def recompute(self, columns: Tensor) -> tuple[Tensor, Recomputed] | None:
        """The product with other rounding errors, which shows how accurate float32 is here.

        Parameters
        ----------
        columns : Tensor
            Of shape (n, b), in the operator's dtype and on its device.

        Returns
        -------
        tuple of Tensor and str, or None
            The product, and "float64" or (where that does not fit) "other rounding". None for an operator in float64,
            and for finite differences, whose error is `noise`. Costs b products, which `hvps` does not count.
        """
        return self._product.recomputed(columns)

    def fresh(self, columns: Tensor) -> Tensor:
        """The product as the engine autograd computes it now, in the operator's dtype, whatever engine is in use.

        Parameters
        ----------
        columns : Tensor
            Of shape (n, b), in the operator's dtype and on its device.

        Returns
        -------
        Tensor
            Of shape (n, b). Costs b products, which `hvps` does not count.
        """
        return autograd.hvp(self.objective.with_(), columns)

    @property
    def plan(self) -> str:
        """How products are computed, in one line: the engine, what it has saved, or why another one is not used."""
        return self._product.plan

    def fingerprint(self, loss: LossValue | None = None) -> dict[str, Any]:
        """All that the products depend on, so that a journal can tell whether it is of the same operator.

        Parameters
        ----------
        loss : LossValue, optional
            That of `loss()`, where it is known; by default it is computed.

        Returns
        -------
        dict
            By names that a message can give: digests of the model's values and of the batches, the loss, and options.
            Costs a pass over the data.
        """
        group = None if self._ranks is None else self._ranks.group
        of_loss = fingerprint(self.objective, loss or self.loss(), group)
        return {**of_loss, "matrix": self.matrix, "engine": self._product.name}

    def loss(self) -> LossValue:
        """The loss on the data. Costs one forward pass over the data and no HVP.

        Returns
        -------
        LossValue
            With the fields `value` (the weighted mean or the sum), `weight` (the total weight), `batches` and `size`.
        """
        return self.objective.value() if self._ranks is None else self._ranks.loss()

    # --- products -----------------------------------------------------------------------------------------------

    def _matmat(self, X: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if X.dtype.kind not in "fiub":
            raise TypeError(f"expected a real vector; got dtype {X.dtype}.")
        columns = torch.from_numpy(np.ascontiguousarray(X, dtype=self.dtype)).to(self.device)
        product: np.ndarray[Any, Any] = self._multiply_columns(columns).cpu().numpy()
        return product

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
        product = self._multiply_columns(x.detach().to(self.device).reshape(x.shape[0], -1))
        return product.reshape(x.shape).to(x.device)

    def _multiply_columns(self, columns: Tensor) -> Tensor:
        if columns.shape[1] == 0:
            return columns.clone()
        if self._ranks is not None:
            product = self._ranks.whole(self._product, columns)
            self.agree_on_noise()
        else:
            limited = math.isfinite(time_left())
            product = self._product(columns, (lambda *batch: check_time()) if limited else None)
        self.hvps += columns.shape[1]
        return product

    def local(self, columns: Tensor) -> Tensor:
        """The product where vectors are spread over ranks: to be called on all of them.

        Parameters
        ----------
        columns : Tensor
            Shape (length, b): this rank's rows (``H.spread.shard.rows``); all n where there are no ranks.

        Returns
        -------
        Tensor
            This rank's rows of the product. Costs b HVPs; 2 (p − 1)/p n b numbers are sent, by each of p ranks.
        """
        return self._multiply_columns(columns) if self.spread is None else self.spread.matmat(columns)

    # --- products by parts of the data ---------------------------------------------------------------------------

    def multiply_by_folds(self, columns: Tensor, folds: int, receive: Callable[[int, float, Tensor], None]) -> Tensor:
        """H times several vectors, and the same for each part of the data, at no extra cost.

        Parameters
        ----------
        columns : Tensor
            Of shape (n, b), in the operator's dtype and on its device.
        folds : int
            Number of parts into which the batches are divided, in order.
        receive : callable
            ``receive(fold, weight, product)`` is called once for each fold with its number, its total weight, and the
            product (n, b) of its own Hessian, which is the weighted mean over its batches. The product's memory is
            used again afterwards.

        Returns
        -------
        Tensor
            The product (n, b) on all data. Costs b HVPs.
        """

        def close(fold: int, weight: float, total: Tensor) -> None:
            if weight > 0:
                receive(fold, weight, total / weight)

        def on_batch(*batch: Any) -> None:
            check_time()
            parts.add(*batch)

        parts = Folds(columns, folds, self.objective.batch_count(), close)

        product = self._product(columns, on_batch)
        parts.end()
        self.hvps += columns.shape[1]
        return product

    def _wrong_shape(self, shape: Sequence[int]) -> str:
        n = self.shape[0]
        return f"the {MATRIX_NAMES[self.matrix]} is {n} × {n}: expected shape ({n},) or ({n}, b), got {tuple(shape)}."
