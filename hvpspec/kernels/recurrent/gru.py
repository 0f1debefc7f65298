"""A GRU in one direction.

With m = w h₋ + b, in three blocks as r, u and n are:

    r = σ(a_r + m_r)      u = σ(a_u + m_u)      n = tanh(a_n + r m_n)      h = n + u (h₋ − n)

Its derivative has the form that `gated` describes: with κ = (1 − u) n', C = (κ m_n r', (h₋ − n) u', κ r).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hvpspec.kernels.recurrent.gated import sweep
from hvpspec.kernels.recurrent.operators import Maybe, each_step, every_size, once, operator, steps_before
from hvpspec.kernels.recurrent.steps import Steps


def _forward_loop(a: Tensor, w: Tensor, b: Maybe, initial: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    sizes, rows, width, wt = every_size(sizes, a), len(a), w.shape[1], w.t()
    gates, m_n, h = a.new_empty(rows, 3 * width), a.new_empty(rows, width), a.new_empty(rows, width)
    matrices = (a[:, : 2 * width], a[:, 2 * width :], gates[:, : 2 * width], *gates.chunk(3, 1), m_n, h)
    steps = each_step(sizes, *matrices)
    for (a_ru, a_n, ru, r, u, n, m_t, h_t), h_before in zip(steps, steps_before(sizes, h, initial), strict=True):
        m = h_before @ wt if b is None else torch.addmm(b, h_before, wt)
        torch.add(a_ru, m[:, : 2 * width], out=ru).sigmoid_()
        m_t.copy_(m[:, 2 * width :])
        torch.addcmul(a_n, r, m_t, out=n).tanh_()
        torch.lerp(n, h_before, u, out=h_t)
    return gates, m_n, h


def _forward_shapes(a: Tensor, w: Tensor, b: Maybe, initial: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), a.new_empty(len(a), w.shape[1]), a.new_empty(len(a), w.shape[1])


_forward = operator(
    "gru_forward",
    "(Tensor a, Tensor w, Tensor? b, Tensor initial, int[] sizes) -> (Tensor, Tensor, Tensor)",
    *(_forward_loop, _forward_shapes),
)


class _GRU(Function):
    """Returns the gates and m_n too, as what the derivative is computed from, so that it can be differentiated."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, w: Tensor, b: Maybe, initial: Tensor, steps: Steps
    ) -> tuple[Tensor, Tensor, Tensor]:
        gates, m_n, h = _forward(a, w, b, initial, steps.sizes)
        ctx.steps, ctx.known = steps, None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(w, initial, gates, m_n, h)
        return gates, m_n, h

    @staticmethod
    def backward(ctx: Any, of_gates: Maybe, of_m_n: Maybe, E: Maybe) -> tuple[Maybe, ...]:
        w, initial, gates, m_n, h = ctx.saved_tensors

        def compute() -> tuple[Tensor, ...]:
            before = ctx.steps.before(h, initial)
            return *_Coefficients.apply(gates, m_n, before), before  # type: ignore[no-untyped-call]

        C, kappa, slopes, before = once(ctx, compute)
        r, u, _ = gates.chunk(3, 1)
        S = of_z_n = None
        if of_gates is not None:
            of_r, of_u, of_z_n = (slopes * of_gates).chunk(3, 1)
            of_r = of_r + slopes.chunk(3, 1)[0] * (m_n * of_z_n)
            S = torch.cat([of_r, of_u, r * of_z_n if of_m_n is None else r * of_z_n + of_m_n], 1)
        elif of_m_n is not None:
            S = torch.cat([torch.zeros_like(of_m_n), torch.zeros_like(of_m_n), of_m_n], 1)
        m, adjoint, first = sweep(C, u, w, ctx.steps, S, E)
        z_n = kappa * adjoint if of_z_n is None else torch.addcmul(of_z_n, kappa, adjoint)
        return (
            torch.cat([m[:, : -m_n.shape[1]], z_n], 1),
            m.t() @ before if ctx.needs_input_grad[1] else None,
            m.sum(0) if ctx.needs_input_grad[2] else None,
            first,
            None,
        )


class _Coefficients(Function):
    """C, κ and the slopes. Written out because autograd would take twice as many operations for the derivative."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, m_n: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r, u, n = gates.chunk(3, 1)
        slope_r, slope_u, slope_n = r * (1 - r), u * (1 - u), 1 - n * n
        kappa, slopes = (1 - u) * slope_n, torch.cat([slope_r, slope_u, slope_n], 1)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gates, m_n, before, kappa, slopes)
        return torch.cat([kappa * (m_n * slope_r), (before - n) * slope_u, kappa * r], 1), kappa, slopes

    @staticmethod
    def backward(ctx: Any, of_C: Maybe, of_kappa: Maybe, of_slopes: Maybe) -> tuple[Tensor, Tensor, Tensor]:
        gates, m_n, before, kappa, slopes = ctx.saved_tensors
        of_C = torch.zeros_like(gates) if of_C is None else of_C
        (r, u, n), (slope_r, slope_u, slope_n) = gates.chunk(3, 1), slopes.chunk(3, 1)
        of_r, of_u, of_n = of_C.chunk(3, 1)
        bend_r, bend_u, bend_n = 1 - 2 * r, 1 - 2 * u, -2 * n
        k = of_r * (m_n * slope_r) + of_n * r
        k = k if of_kappa is None else k + of_kappa
        of_gates = torch.cat(
            [
                of_r * (kappa * m_n * bend_r) + of_n * kappa,
                of_u * ((before - n) * bend_u) - k * slope_n,
                k * ((1 - u) * bend_n) - of_u * slope_u,
            ],
            1,
        )
        if of_slopes is not None:
            of_gates = of_gates + of_slopes * torch.cat([bend_r, bend_u, bend_n], 1)
        return of_gates, of_r * (kappa * slope_r), of_u * slope_u


def gru(a: Tensor, w: Tensor, b: Maybe, initial: Tensor, steps: Steps) -> Tensor:
    """h, a row a step of a sequence. a: of the gates what does not depend on h₋, in the same order."""
    found: Tensor = _GRU.apply(a, w, b, initial, steps)[2]  # type: ignore[no-untyped-call]
    return found
