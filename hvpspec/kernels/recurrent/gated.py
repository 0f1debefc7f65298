"""The derivative of a GRU or a plain recurrent layer along a vector, and its adjoint.

C, u and w are given. h₋ is the step before of the same sequence, λ₊ the step after, and k a gate:

    tangent     q_k = Q_k + w_k h₋               h   = G + u h₋ + Σ_k C_k q_k       from the first step to the last
    sweep       λ   = E + u₊ λ₊ + Σ_k w_kᵀ m₊_k  m_k = S_k + C_k λ                  from the last step to the first

Each is the other's transpose: ⟨q, S⟩ + ⟨h, E⟩ = ⟨m, Q⟩ + ⟨λ, G⟩ + ⟨h₀, λ₀⟩. So is each the other's derivative, and
they can be differentiated to any order.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hvpspec.kernels.recurrent.operators import (
    Maybe,
    each_step,
    every_size,
    filled,
    flat_steps,
    needed,
    operator,
    steps_before,
    vectors_of,
)
from hvpspec.kernels.recurrent.steps import Steps


def _tangent_loop(
    C: Tensor, u: Maybe, w: Tensor, sizes: list[int], Q: Maybe, G: Maybe, initial: Maybe
) -> tuple[Tensor, Tensor]:
    sizes, n, width, wt = every_size(sizes, C), len(C), w.shape[1], w.t()
    vectors = vectors_of(Q, G, initial)
    k, gates = math.prod(vectors), C.shape[1] // width
    q, h = filled(C, (n, k, gates, width), Q), C.new_empty(n, k, width)
    before = steps_before(sizes, h, filled(C, (sizes[0], k, width), initial))
    us = [None] * len(sizes) if u is None else u.unsqueeze(1).split_with_sizes(sizes)
    Gs = [None] * len(sizes) if G is None else G.reshape(n, k, width).split_with_sizes(sizes)
    steps = each_step(sizes, q, h, h.unsqueeze(2), C.reshape(n, 1, gates, width))
    for (q_t, h_t, h_wide, C_t), q_rows, h_before, u_t, G_t in zip(
        steps, flat_steps(sizes, q), before, us, Gs, strict=True
    ):
        q_rows.addmm_(h_before.view(-1, width), wt)
        if gates == 1:
            torch.mul(q_t, C_t, out=h_wide)
        else:
            torch.sum(q_t * C_t, 2, out=h_t)
        if u_t is not None:
            h_t.addcmul_(u_t, h_before)
        if G_t is not None:
            h_t.add_(G_t)
    return q.view(n, *vectors, -1), h.view(n, *vectors, width)


def _sweep_loop(C: Tensor, u: Maybe, w: Tensor, sizes: list[int], S: Maybe, E: Maybe) -> tuple[Tensor, Tensor, Tensor]:
    sizes, n, width = every_size(sizes, C), len(C), w.shape[1]
    vectors = vectors_of(S, E)
    k, gates = math.prod(vectors), C.shape[1] // width
    m, h, initial = filled(C, (n, k, gates, width), S), filled(C, (n, k, width), E), C.new_zeros(sizes[0], k, width)
    us = [None] * len(sizes) if u is None else u.unsqueeze(1).split_with_sizes(sizes)
    steps = each_step(sizes, m, h, h.unsqueeze(2), C.reshape(n, 1, gates, width))
    per_step = zip(steps, flat_steps(sizes, m), steps_before(sizes, h, initial), us, strict=True)
    for (m_t, h_t, h_wide, C_t), m_rows, h_before, u_t in reversed(list(per_step)):
        m_t.addcmul_(C_t, h_wide)
        h_before.view(-1, width).addmm_(m_rows, w)
        if u_t is not None:
            h_before.addcmul_(u_t, h_t)
    return m.view(n, *vectors, -1), h.view(n, *vectors, width), initial.view(sizes[0], *vectors, width)


def _tangent_shapes(
    C: Tensor, u: Maybe, w: Tensor, sizes: list[int], Q: Maybe, G: Maybe, initial: Maybe
) -> tuple[Tensor, Tensor]:
    vectors = vectors_of(Q, G, initial)
    return C.new_empty(len(C), *vectors, C.shape[1]), C.new_empty(len(C), *vectors, w.shape[1])


def _sweep_shapes(
    C: Tensor, u: Maybe, w: Tensor, sizes: list[int], S: Maybe, E: Maybe
) -> tuple[Tensor, Tensor, Tensor]:
    return *_tangent_shapes(C, u, w, sizes, S, E, None), C.new_empty(sizes[0], *vectors_of(S, E), w.shape[1])


_tangent = operator(
    "gated_tangent",
    "(Tensor C, Tensor? u, Tensor w, int[] sizes, Tensor? Q, Tensor? G, Tensor? initial) -> (Tensor, Tensor)",
    *(_tangent_loop, _tangent_shapes),
    linear_from=4,
)
_sweep = operator(
    "gated_sweep",
    "(Tensor C, Tensor? u, Tensor w, int[] sizes, Tensor? S, Tensor? E) -> (Tensor, Tensor, Tensor)",
    *(_sweep_loop, _sweep_shapes),
    linear_from=4,
)


class _Tangent(Function):
    @staticmethod
    def forward(
        ctx: Any, C: Tensor, u: Maybe, w: Tensor, steps: Steps, Q: Maybe, G: Maybe, initial: Maybe
    ) -> tuple[Tensor, Tensor]:
        q, h = _tangent(C, u, w, steps.sizes, Q, G, initial)
        ctx.steps = steps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(C, u, w, q, h, initial)
        return q, h

    @staticmethod
    def backward(ctx: Any, S: Maybe, E: Maybe) -> tuple[Maybe, ...]:
        C, u, w, q, h, initial = ctx.saved_tensors
        m, adjoint, first = sweep(C, u, w, ctx.steps, S, E)
        return needed(ctx, *_of_coefficients(ctx, q, h, initial, m, adjoint), None, m, adjoint, first)


class _Sweep(Function):
    @staticmethod
    def forward(
        ctx: Any, C: Tensor, u: Maybe, w: Tensor, steps: Steps, S: Maybe, E: Maybe
    ) -> tuple[Tensor, Tensor, Tensor]:
        m, h, first = _sweep(C, u, w, steps.sizes, S, E)
        ctx.steps = steps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(C, u, w, m, h)
        return m, h, first

    @staticmethod
    def backward(ctx: Any, Q: Maybe, G: Maybe, initial: Maybe) -> tuple[Maybe, ...]:
        C, u, w, m, adjoint = ctx.saved_tensors
        q, h = tangent(C, u, w, ctx.steps, Q, G, initial)
        return needed(ctx, *_of_coefficients(ctx, q, h, initial, m, adjoint), None, q, h)


def _of_coefficients(ctx: Any, q: Tensor, h: Tensor, initial: Maybe, m: Tensor, adjoint: Tensor) -> list[Maybe]:
    """The derivatives with respect to C, u and w of ⟨q, S⟩ + ⟨h, E⟩."""
    of_C, of_u, of_w, *_ = ctx.needs_input_grad
    before = ctx.steps.before(h, h.new_zeros(ctx.steps.sizes[0], h.shape[1]) if initial is None else initial)
    blocks = q.view(len(q), -1, h.shape[1])
    return [
        (blocks * adjoint.unsqueeze(1)).flatten(1) if of_C else None,
        adjoint * before if of_u else None,
        m.t() @ before if of_w else None,
    ]


def tangent(C: Tensor, u: Maybe, w: Tensor, steps: Steps, Q: Maybe, G: Maybe, initial: Maybe) -> tuple[Tensor, Tensor]:
    """(q, h), each a row a step of a sequence. None stands for zeros. C: shape (n, gates · width)."""
    found: tuple[Tensor, Tensor] = _Tangent.apply(C, u, w, steps, Q, G, initial)  # type: ignore[no-untyped-call]
    return found


def sweep(C: Tensor, u: Maybe, w: Tensor, steps: Steps, S: Maybe, E: Maybe) -> tuple[Tensor, Tensor, Tensor]:
    """(m, λ, λ₀), where λ₀ belongs to the initial state."""
    found: tuple[Tensor, Tensor, Tensor] = _Sweep.apply(C, u, w, steps, S, E)  # type: ignore[no-untyped-call]
    return found
