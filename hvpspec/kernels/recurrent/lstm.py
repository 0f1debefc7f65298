"""An LSTM in one direction.

With z = a + w h₋ in four blocks, i, f and o the sigmoids of theirs and g the tanh of its own:

    c = f c₋ + i g        h = o τ        τ = tanh c

Its derivative has the form that `gated_cell` describes: with C = (g i', c₋ f', i g', τ o') and e = o τ'.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hvpspec.kernels.recurrent.gated_cell import sweep
from hvpspec.kernels.recurrent.operators import Maybe, each_step, every_size, once, operator, steps_before
from hvpspec.kernels.recurrent.steps import Steps


def _forward_loop(a: Tensor, w: Tensor, c0: Tensor, h0: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    sizes, rows, width, wt = every_size(sizes, a), len(a), w.shape[1], w.t()
    gates, c, h = a.new_empty(a.shape).copy_(a), a.new_empty(rows, width), a.new_empty(rows, width)
    steps = each_step(sizes, gates, gates[:, : 2 * width], *gates.chunk(4, 1), c, h)
    before = zip(steps_before(sizes, c, c0), steps_before(sizes, h, h0), strict=True)
    for (z, i_and_f, i, f, g, o, c_t, h_t), (c_before, h_before) in zip(steps, before, strict=True):
        z.addmm_(h_before, wt)
        i_and_f.sigmoid_()
        g.tanh_()
        o.sigmoid_()
        torch.mul(f, c_before, out=c_t).addcmul_(i, g)
        torch.tanh(c_t, out=h_t).mul_(o)
    return gates, c, h


def _forward_shapes(a: Tensor, w: Tensor, c0: Tensor, h0: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), a.new_empty(len(a), w.shape[1]), a.new_empty(len(a), w.shape[1])


_forward = operator(
    "lstm_forward",
    "(Tensor a, Tensor w, Tensor c0, Tensor h0, int[] sizes) -> (Tensor, Tensor, Tensor)",
    *(_forward_loop, _forward_shapes),
)


class _LSTM(Function):
    """Returns the gates too, as what the derivative is computed from, so that it can be differentiated."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, w: Tensor, c0: Tensor, h0: Tensor, steps: Steps) -> tuple[Tensor, Tensor, Tensor]:
        gates, c, h = _forward(a, w, c0, h0, steps.sizes)
        ctx.steps, ctx.known = steps, None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(w, c0, h0, gates, c, h)
        return gates, c, h

    @staticmethod
    def backward(ctx: Any, of_gates: Maybe, G: Maybe, H: Maybe) -> tuple[Maybe, ...]:
        w, c0, h0, gates, c, h = ctx.saved_tensors
        C, e, slopes, h_before = once(
            ctx,
            lambda: (
                *_Coefficients.apply(gates, c, ctx.steps.before(c, c0)),  # type: ignore[no-untyped-call]
                ctx.steps.before(h, h0),
            ),
        )
        Z = None if of_gates is None else of_gates * slopes
        z, _, _, of_c0, of_h0 = sweep(C, gates.chunk(4, 1)[1], e, w, ctx.steps, Z, G, H)
        return z, z.t() @ h_before if ctx.needs_input_grad[1] else None, of_c0, of_h0, None


class _Coefficients(Function):
    """C, e and the slopes. Written out because autograd would take twice as many operations for the derivative."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, c: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (i, f, g, o), tau = gates.chunk(4, 1), torch.tanh(c)
        slopes = torch.cat([i * (1 - i), f * (1 - f), 1 - g * g, o * (1 - o)], 1)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gates, c, before, slopes)
        return slopes * torch.cat([g, before, i, tau], 1), o * (1 - tau * tau), slopes

    @staticmethod
    def backward(ctx: Any, of_C: Maybe, of_e: Maybe, of_slopes: Maybe) -> tuple[Tensor, Tensor, Tensor]:
        gates, c, before, slopes = ctx.saved_tensors
        (i, f, g, o), tau = gates.chunk(4, 1), torch.tanh(c)
        of_C = torch.zeros_like(gates) if of_C is None else of_C
        of_e = torch.zeros_like(c) if of_e is None else of_e
        (of_i, of_f, of_g, of_o), (slope_i, slope_f, slope_g, slope_o) = of_C.chunk(4, 1), slopes.chunk(4, 1)
        slope_c = 1 - tau * tau
        bends = torch.cat([1 - 2 * i, 1 - 2 * f, -2 * g, 1 - 2 * o], 1)
        crossed = torch.cat([of_g * slope_g, torch.zeros_like(c), of_i * slope_i, of_e * slope_c], 1)
        of_gates = of_C * (bends * torch.cat([g, before, i, tau], 1)) + crossed
        if of_slopes is not None:
            of_gates = of_gates + of_slopes * bends
        of_c = of_o * (slope_o * slope_c) + of_e * (o * slope_c * (-2 * tau))
        return of_gates, of_c, of_f * slope_f


def lstm(a: Tensor, w: Tensor, c0: Tensor, h0: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
    """(h, c), a row a step of a sequence. a: of the gates what does not depend on h₋, in the same order."""
    _, c, h = _LSTM.apply(a, w, c0, h0, steps)  # type: ignore[no-untyped-call]
    return h, c
