"""Convolutions whose second derivative takes no longer than its arithmetic.

A convolution y = C(x, w) is linear in the images x and in the kernels w. With the two parts of its first derivative,

    X(g, w) = d⟨g, C(x, w)⟩/dx,        W(g, x) = d⟨g, C(x, w)⟩/dw,

the derivative of these along a and b is that of

    ⟨a, X(g, w)⟩ + ⟨b, W(g, x)⟩ = ⟨g, C(a, w) + C(x, b)⟩:    C(a, w) + C(x, b) in g,  X(g, b) in x,  W(g, a) in w

torch computes X(g, b) and W(g, a) as convolutions with samples and channels exchanged, whose kernels are images. In
float64, for which there is no fast convolution on a CPU, these take most of a product; in float32 they do not. X and W
themselves are what torch.ops.aten.convolution_backward computes. What is above consists of the same functions, so that
it can be differentiated as often as one likes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hvpspec.kernels.inner_derivatives import differentiated_by_torch_func

_MAX_KERNEL = 64  # entries of one channel's: with longer ones torch's way is the faster one
_LEAST_WORK = 1 << 16  # multiplications for a sample: with fewer, calling Python takes what is gained
_DTYPES = {"cpu": (torch.float64,)}  # by device, where it was measured to be worthwhile
_Padding = int | Sequence[int] | str


class _Form(NamedTuple):
    """The last arguments of torch.ops.aten.convolution."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int

    def gradients(self, g: Tensor, x: Tensor, w: Tensor, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """X(g, w), W(g, x) and the sum of g for each channel; None for what is not needed."""
        channels = w.shape[1] * self.groups if self.transposed else w.shape[0]
        found = torch.ops.aten.convolution_backward(g, x, w, [channels], *self, list(needed))
        return tuple(part if need else None for part, need in zip(found, needed, strict=True))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, form: _Form) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.form = form
        return torch.convolution(x, w, bias, *form)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        return *_gradients(g, x, w, ctx.form, ctx.needs_input_grad[:3]), None


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, form: _Form, needed: Sequence[bool]) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x, w)
        ctx.form = form
        return form.gradients(g, x, w, needed)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None, of_bias: Tensor | None) -> tuple[Tensor | None, ...]:
        (g, x, w), form = ctx.saved_tensors, ctx.form
        for_g, for_x, for_w = ctx.needs_input_grad[:3]
        along = []
        if for_g and a is not None:
            along.append(_convolved(a, w, None, form))
        if for_g and b is not None:
            along.append(_convolved(x, b, None, form))
        if for_g and of_bias is not None:
            along.append(of_bias.reshape(-1, *[1] * (g.ndim - 2)).expand_as(g))
        in_g = sum(along[1:], along[0]) if along else None
        in_x = _gradients(g, x, b, form, (True, False, False))[0] if for_x and b is not None else None
        in_w = _gradients(g, a, w, form, (False, True, False))[1] if for_w and a is not None else None
        return in_g, in_x, in_w, None, None


def _convolved(x: Tensor, w: Tensor, bias: Tensor | None, form: _Form) -> Tensor:
    return _Convolution.apply(x, w, bias, form)  # type: ignore[no-any-return, no-untyped-call]


def _gradients(g: Tensor, x: Tensor, w: Tensor, form: _Form, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    return _Gradients.apply(g, x, w, form, needed)  # type: ignore[no-any-return, no-untyped-call]


def convolution(function: Callable[..., Tensor], dimensions: int, *, transposed: bool) -> Callable[..., Tensor]:
    """torch.conv1d, conv2d and conv3d, or their transposes; torch's own where that is the faster one, and for images
    that are not a batch."""

    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: _Padding = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        step, apart, further = (_each(size, dimensions) for size in (stride, dilation, 0))
        if not _is_worthwhile(input, weight, dimensions) or (places := _padding(padding, weight, apart)) is None:
            return function(input, weight, bias, stride, padding, dilation, groups)
        return _convolved(input, weight, bias, _Form(step, places, apart, False, further, groups))

    def transpose(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
    ) -> Tensor:
        if not _is_worthwhile(input, weight, dimensions):
            return function(input, weight, bias, stride, padding, output_padding, groups, dilation)
        step, places, apart, further = (_each(size, dimensions) for size in (stride, padding, dilation, output_padding))
        return _convolved(input, weight, bias, _Form(step, places, apart, True, further, groups))

    return transpose if transposed else forward


def _is_worthwhile(x: Tensor, w: Tensor, dimensions: int) -> bool:
    """A derivative in both is what makes torch convolve by images."""
    return (
        torch.is_grad_enabled()
        and x.requires_grad
        and w.requires_grad
        and x.ndim == w.ndim == dimensions + 2
        and x.dtype == w.dtype
        and x.dtype in _DTYPES.get(x.device.type, ())
        and math.prod(w.shape[2:]) <= _MAX_KERNEL
        and math.prod(x.shape[2:]) * w.numel() >= _LEAST_WORK
        and not differentiated_by_torch_func()
    )


def _each(size: int | Sequence[int], dimensions: int) -> list[int]:
    """A size for each dimension: torch takes one for all, alone or in a sequence."""
    sizes = [size] if isinstance(size, int) else list(size)
    return sizes * dimensions if len(sizes) == 1 else sizes


def _padding(padding: _Padding, w: Tensor, dilation: list[int]) -> list[int] | None:
    """On each side; None where the sides differ."""
    if not isinstance(padding, str):
        return _each(padding, w.ndim - 2)
    if padding != "same":
        return [0] * (w.ndim - 2) if padding == "valid" else None
    both = [step * (size - 1) for step, size in zip(dilation, w.shape[2:], strict=True)]
    return None if any(size % 2 for size in both) else [size // 2 for size in both]
