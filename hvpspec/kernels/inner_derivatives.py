"""Losses that differentiate inside: their Hessians need third derivatives, which some of torch's functions have wrong.

A gradient penalty, a force, or the residual of a differential equation is a derivative already. The second derivative
of torch's layer norm, and of batch and instance norm with a batch's own statistics, takes mean and deviation for
constants, so that the third is wrong (by up to 100 %; torch 2.13). In forward mode (torch.func.jvp, jacfwd, hessian)
so is the second, and that of determinants and solutions of linear equations. There they are computed from elementary
operations, which are right at every order. All other losses keep the fast kernels, which are right at second order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

Result = TypeVar("Result")


class InnerDerivatives:
    """What is known of a loss: whether it differentiates inside, so that normalisations have to be written out.

    That shows when the loss is evaluated: autograd runs, with create_graph. As normalisations have been computed by
    then, the loss is evaluated once more; later evaluations need one only.
    """

    def __init__(self) -> None:
        self._written_out = False
        self._evaluating = self._differentiated = self._normalised = False

    def evaluate(self, loss: Callable[[], Result]) -> Result:
        """What the loss returns, right at every order. Use where `instead` is asked about each function it calls."""
        self._evaluating, self._differentiated, self._normalised = True, False, False
        try:
            result = loss()
            if self._differentiated and self._normalised:
                self._written_out = True
                del result  # its graph need not be held with the other
                result = loss()
        finally:
            self._evaluating = False
        return result

    def differentiates(self, create_graph: bool) -> None:
        """Is told of each run of autograd."""
        self._differentiated |= self._evaluating and create_graph

    def instead(self, function: Any) -> Callable[..., Any]:
        """What to call with the same arguments instead of a function that the loss or its model calls; mostly itself.

        Backward functions are asked about too: a checkpoint recomputes in them, with the functions of its forward.
        """
        if function in _NORMALISATIONS:
            if self._written_out or differentiated_by_torch_func():
                return _NORMALISATIONS[function]
            self._normalised = True
        elif function in _LINEAR_ALGEBRA and _in_forward_mode():
            return _LINEAR_ALGEBRA[function]
        return function  # type: ignore[no-any-return]


def differentiated_by_torch_func() -> bool:
    """Whether a transform of torch.func is active, or forward mode: what reverse mode alone knows cannot be used."""
    return torch._C._are_functorch_transforms_active() or _in_forward_mode()


def _in_forward_mode() -> bool:
    return forward_ad._current_level >= 0


# --- normalisations -------------------------------------------------------------------------------------------------


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    found = _standardised(input, tuple(range(-len(normalized_shape), 0)), eps)
    return _affine(found, weight, bias).to(input.dtype)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    statistics = (running_mean, running_var)
    if not training:
        return F.batch_norm(input, *statistics, weight, bias, training, momentum, eps)
    F.batch_norm(input.detach(), *statistics, None, None, training, momentum, eps)  # checks, and moves the statistics
    found = _standardised(input, (0, *range(2, input.ndim)), eps)
    return _affine(found, *_by_channel(input, weight, bias)).to(input.dtype)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    statistics = (running_mean, running_var)
    if not use_input_stats:
        return F.instance_norm(input, *statistics, weight, bias, use_input_stats, momentum, eps)
    F.instance_norm(input.detach(), *statistics, None, None, use_input_stats, momentum, eps)
    found = _standardised(input, tuple(range(2, input.ndim)), eps)
    return _affine(found, *_by_channel(input, weight, bias)).to(input.dtype)


def _standardised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """(x − mean) / √(variance + eps) over some dimensions; of half precision in float32, as the kernels do."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _by_channel(input: Tensor, *vectors: Tensor | None) -> list[Tensor | None]:
    """Vectors with an entry for each channel, shaped to be broadcast over the input."""
    shape = (-1, *[1] * (input.ndim - 2))
    return [None if vector is None else vector.reshape(shape) for vector in vectors]


def _torch_order(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same for the arguments of torch.batch_norm and torch.instance_norm, which come in another order."""

    def call(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        *others: Any,
        **named: Any,
    ) -> Tensor:
        named.pop("cudnn_enabled", None)
        # Four arguments that may follow by position: training or use_input_stats, momentum, eps, cudnn_enabled.
        return function(input, running_mean, running_var, weight, bias, *others[:3], **named)

    return call


_NORMALISATIONS: dict[Any, Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _torch_order(_batch_norm),
    F.instance_norm: _instance_norm,
    torch.instance_norm: _torch_order(_instance_norm),
}

# --- linear algebra, from the factors of A = P L U ------------------------------------------------------------------


def _pivots(A: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal of U, and det P, which is 1 or −1."""
    factors, pivots = torch.linalg.lu_factor(A)
    swaps = (pivots != torch.arange(1, A.shape[-1] + 1, device=A.device)).sum(-1)
    return factors.diagonal(dim1=-2, dim2=-1), 1 - 2 * (swaps % 2)


def _slogdet(A: Tensor) -> Any:
    diagonal, sign = _pivots(A)
    sign = diagonal.detach().sign().prod(-1) * sign
    return torch.return_types.linalg_slogdet((sign, diagonal.abs().log().sum(-1)))  # type: ignore[attr-defined]


def _det(A: Tensor) -> Tensor:
    diagonal, sign = _pivots(A)
    return diagonal.prod(-1) * sign


def _logdet(A: Tensor) -> Tensor:
    sign, size = _slogdet(A)
    found: Tensor = torch.where(sign < 0, torch.nan, size)
    return found


def _solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    is_vector = B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1])
    found: Tensor = torch.linalg.lu_solve(*torch.linalg.lu_factor(A), B[..., None] if is_vector else B, left=left)
    return found[..., 0] if is_vector else found


_LINEAR_ALGEBRA: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.det, torch.linalg.det, Tensor.det), _det),
    **dict.fromkeys((torch.logdet, Tensor.logdet), _logdet),
    **dict.fromkeys((torch.slogdet, torch.linalg.slogdet, Tensor.slogdet), _slogdet),
    torch.linalg.solve: _solve,
}

WRONG_AT_HIGHER_ORDERS = frozenset({*_NORMALISATIONS, *_LINEAR_ALGEBRA})
"""The functions for which `InnerDerivatives.instead` may give another one."""
