"""Which functions have another one in their place, which takes the same arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvpspec.kernels.second_derivatives.convolutions import convolution
from hvpspec.kernels.second_derivatives.ctc import ctc_loss
from hvpspec.kernels.second_derivatives.distances import cdist, pdist
from hvpspec.kernels.second_derivatives.embedding_bags import embedding_bag
from hvpspec.kernels.second_derivatives.margin_losses import multi_margin_loss, multilabel_margin_loss
from hvpspec.kernels.second_derivatives.segments import segment_reduce, sparse_mm

_REDUCTIONS = ("none", "mean", "sum")  # by the numbers that stand for them below torch.nn.functional


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    found = F.relu6(input + 3) / 6
    return input.copy_(found) if inplace else found


def _hardsigmoid_(input: Tensor) -> Tensor:
    return _hardsigmoid(input, inplace=True)


def _linear_cross_entropy(*args: Any, **kwargs: Any) -> Tensor:
    """Not in chunks, whose gradients are computed in the forward pass and are constants to a second derivative."""
    return F.linear_cross_entropy(*args, **{**kwargs, "options": None})


def _numbered(function: Callable[..., Tensor], position: int) -> Callable[..., Tensor]:
    """The same where the reduction is a number, at a position among the arguments."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        before, after = args[:position], args[position:]
        reduction = after[0] if after else kwargs.pop("reduction", 1)
        if len(after) > 1:  # of ctc_loss
            kwargs["zero_infinity"] = after[1]
        return function(*before, **kwargs, reduction=_REDUCTIONS[reduction])

    return call


def _aten(name: str) -> list[Any]:
    """An operator of torch.ops.aten, as exported programs call it, and its overloads."""
    packet: Any = getattr(torch.ops.aten, name)
    return [packet, *(getattr(packet, overload) for overload in packet.overloads() if overload != "out")]


_CONVOLUTIONS: dict[str, tuple[Any, Callable[..., Any]]] = {
    name: (getattr(torch, name), convolution(getattr(torch, name), dimensions, transposed=transposed))
    for dimensions in (1, 2, 3)
    for name, transposed in ((f"conv{dimensions}d", False), (f"conv_transpose{dimensions}d", True))
}
_nn: Any = torch._C._nn
_BELOW_FUNCTIONAL: dict[str, tuple[Any, Callable[..., Any]]] = {
    "hardsigmoid": (_nn.hardsigmoid, _hardsigmoid),
    "hardsigmoid_": (_nn.hardsigmoid_, _hardsigmoid_),
    "cdist": (torch.cdist, cdist),
    "pdist": (torch.pdist, pdist),
    "multi_margin_loss": (_nn.multi_margin_loss, _numbered(multi_margin_loss, 5)),
    "multilabel_margin_loss": (_nn.multilabel_margin_loss, _numbered(multilabel_margin_loss, 2)),
    "ctc_loss": (torch.ctc_loss, _numbered(ctc_loss, 5)),
    "segment_reduce": (torch.segment_reduce, segment_reduce),
}

SECOND_DERIVATIVES: dict[Any, Callable[..., Any]] = {
    F.hardsigmoid: _hardsigmoid,
    F.embedding_bag: embedding_bag,
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
    F.ctc_loss: ctc_loss,
    torch.sparse.mm: sparse_mm,
}
"""What to call with the same arguments instead of a function that has no second derivative, a wrong or a slow one."""

for name, (function, instead) in (_BELOW_FUNCTIONAL | _CONVOLUTIONS).items():
    SECOND_DERIVATIVES.update(dict.fromkeys((function, *_aten(name)), instead))
if hasattr(F, "linear_cross_entropy"):
    SECOND_DERIVATIVES[F.linear_cross_entropy] = _linear_cross_entropy
