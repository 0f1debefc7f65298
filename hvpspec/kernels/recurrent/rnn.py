"""A plain recurrent layer in one direction: h = φ(a + w h₋), where φ is tanh or the positive part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hvpspec.kernels.recurrent.gated import sweep
from hvpspec.kernels.recurrent.operators import Maybe, every_size, operator, steps_before
from hvpspec.kernels.recurrent.steps import Steps


def _forward_loop(a: Tensor, w: Tensor, initial: Tensor, relu: bool, sizes: list[int]) -> Tensor:
    h, wt = torch.empty_like(a, memory_format=torch.contiguous_format).copy_(a), w.t()
    sizes = every_size(sizes, a)
    steps = h.split_with_sizes(sizes)
    for h_t, h_before in zip(steps, steps_before(sizes, h, initial), strict=True):
        h_t.addmm_(h_before, wt)
        h_t.relu_() if relu else h_t.tanh_()
    return h


def _forward_shapes(a: Tensor, w: Tensor, initial: Tensor, relu: bool, sizes: list[int]) -> Tensor:
    return a.new_empty(a.shape)


_forward = operator(
    "rnn_forward",
    "(Tensor a, Tensor w, Tensor initial, bool relu, int[] sizes) -> Tensor",
    *(_forward_loop, _forward_shapes),
)


class _RNN(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, w: Tensor, initial: Tensor, relu: bool, steps: Steps) -> Tensor:
        h: Tensor = _forward(a, w, initial, relu, steps.sizes)
        ctx.relu, ctx.steps = relu, steps
        ctx.save_for_backward(w, initial, h)
        return h

    @staticmethod
    def backward(ctx: Any, E: Tensor) -> tuple[Maybe, ...]:
        w, initial, h = ctx.saved_tensors
        slope = (h > 0).to(h.dtype) if ctx.relu else 1 - h * h
        m, _, first = sweep(slope, None, w, ctx.steps, None, E)
        of_w = m.t() @ ctx.steps.before(h, initial) if ctx.needs_input_grad[1] else None
        return m, of_w, first, None, None


def rnn(a: Tensor, w: Tensor, initial: Tensor, relu: bool, steps: Steps) -> Tensor:
    """h, a row a step of a sequence. a: what does not depend on h₋, in the same order; initial: h₋ of each sequence."""
    found: Tensor = _RNN.apply(a, w, initial, relu, steps)  # type: ignore[no-untyped-call]
    return found
