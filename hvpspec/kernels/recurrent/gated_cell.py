"""The derivative of an LSTM along a vector, and its adjoint.

C, f, e and w are given. h₋ and c₋ are the step before of the same sequence, c₊ and z₊ the step after:

    tangent     z = Z + w h₋      c = G + f c₋ + C_i z_i + C_f z_f + C_g z_g      h = H + C_o z_o + e c
    sweep       h = H + wᵀ z₊     c = G + f₊ c₊ + e h      z = Z + (C_i c, C_f c, C_g c, C_o h)

The sweep goes from the last step to the first, and its letters are other values than the tangent's: those that belong
to them. Each is the other's transpose, and so its derivative, as in `gated`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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

Three = tuple[Tensor, Tensor, Tensor]
Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _tangent_loop(
    C: Tensor, f: Tensor, e: Tensor, w: Tensor, sizes: list[int], Z: Maybe, G: Maybe, H: Maybe, c0: Maybe, h0: Maybe
) -> Three:
    sizes, n, width, wt = every_size(sizes, C), len(C), w.shape[1], w.t()
    vectors = vectors_of(Z, G, H, c0, h0)
    k = math.prod(vectors)
    z, c, h = filled(C, (n, k, 4, width), Z), C.new_empty(n, k, width), C.new_empty(n, k, width)
    c_before = steps_before(sizes, c, filled(C, (sizes[0], k, width), c0))
    h_before = steps_before(sizes, h, filled(C, (sizes[0], k, width), h0))
    Gs, Hs = (
        [None] * len(sizes) if one is None else one.reshape(n, k, width).split_with_sizes(sizes) for one in (G, H)
    )
    steps = each_step(sizes, z, c, h, C.reshape(n, 1, 4, width), f.unsqueeze(1), e.unsqueeze(1))
    products = z.new_empty(sizes[0], k, 4, width)
    of_ifg, of_o = products[:, :, :3], products[:, :, 3]
    for (z_t, c_t, h_t, C_t, f_t, e_t), z_rows, c_last, h_last, G_t, H_t in zip(
        steps, flat_steps(sizes, z), c_before, h_before, Gs, Hs, strict=True
    ):
        if len(z_t) < len(products):
            products = products[: len(z_t)]
            of_ifg, of_o = products[:, :, :3], products[:, :, 3]
        z_rows.addmm_(h_last.view(-1, width), wt)
        torch.mul(z_t, C_t, out=products)
        torch.sum(of_ifg, 2, out=c_t).addcmul_(f_t, c_last)
        if G_t is not None:
            c_t.add_(G_t)
        torch.addcmul(of_o, e_t, c_t, out=h_t)
        if H_t is not None:
            h_t.add_(H_t)
    return z.view(n, *vectors, -1), c.view(n, *vectors, width), h.view(n, *vectors, width)


def _sweep_loop(C: Tensor, f: Tensor, e: Tensor, w: Tensor, sizes: list[int], Z: Maybe, G: Maybe, H: Maybe) -> Five:
    sizes, n, width = every_size(sizes, C), len(C), w.shape[1]
    vectors = vectors_of(Z, G, H)
    k = math.prod(vectors)
    z, c, h = filled(C, (n, k, 4, width), Z), filled(C, (n, k, width), G), filled(C, (n, k, width), H)
    c0, h0 = C.new_zeros(sizes[0], k, width), C.new_zeros(sizes[0], k, width)
    blocks = C.reshape(n, 1, 4, width)
    values = (z[:, :, :3], z[:, :, 3], c, c.unsqueeze(2), h)
    given = (blocks[:, :, :3], blocks[:, :, 3], f.unsqueeze(1), e.unsqueeze(1))
    per_step = zip(
        *(each_step(sizes, *values), each_step(sizes, *given), flat_steps(sizes, z)),
        *(steps_before(sizes, c, c0), steps_before(sizes, h, h0)),
        strict=True,
    )
    for (z_ifg, z_o, c_t, c_wide, h_t), (C_ifg, C_o, f_t, e_t), z_rows, c_last, h_last in reversed(list(per_step)):
        c_t.addcmul_(e_t, h_t)
        z_ifg.addcmul_(C_ifg, c_wide)
        z_o.addcmul_(C_o, h_t)
        h_last.view(-1, width).addmm_(z_rows, w)
        c_last.addcmul_(f_t, c_t)
    first = (c0.view(sizes[0], *vectors, width), h0.view(sizes[0], *vectors, width))
    return z.view(n, *vectors, -1), c.view(n, *vectors, width), h.view(n, *vectors, width), *first


def _tangent_shapes(
    C: Tensor, f: Tensor, e: Tensor, w: Tensor, sizes: list[int], Z: Maybe, G: Maybe, H: Maybe, c0: Maybe, h0: Maybe
) -> Three:
    vectors, (n, width) = vectors_of(Z, G, H, c0, h0), f.shape
    return C.new_empty(n, *vectors, 4 * width), C.new_empty(n, *vectors, width), C.new_empty(n, *vectors, width)


def _sweep_shapes(C: Tensor, f: Tensor, e: Tensor, w: Tensor, sizes: list[int], Z: Maybe, G: Maybe, H: Maybe) -> Five:
    first = (sizes[0], *vectors_of(Z, G, H), f.shape[1])
    return *_tangent_shapes(C, f, e, w, sizes, Z, G, H, None, None), C.new_empty(first), C.new_empty(first)


_COEFFICIENTS = "Tensor C, Tensor f, Tensor e, Tensor w, int[] sizes"
_tangent = operator(
    "lstm_tangent",
    f"({_COEFFICIENTS}, Tensor? Z, Tensor? G, Tensor? H, Tensor? c0, Tensor? h0) -> (Tensor, Tensor, Tensor)",
    *(_tangent_loop, _tangent_shapes),
    linear_from=5,
)
_sweep = operator(
    "lstm_sweep",
    f"({_COEFFICIENTS}, Tensor? Z, Tensor? G, Tensor? H) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    *(_sweep_loop, _sweep_shapes),
    linear_from=5,
)


class _Tangent(Function):
    @staticmethod
    def forward(ctx: Any, C: Tensor, f: Tensor, e: Tensor, w: Tensor, steps: Steps, *given: Maybe) -> Three:
        z, c, h = _tangent(C, f, e, w, steps.sizes, *given)
        ctx.steps = steps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(C, f, e, w, z, c, h, *given[3:])
        return z, c, h

    @staticmethod
    def backward(ctx: Any, *given: Maybe) -> tuple[Maybe, ...]:
        C, f, e, w, z, c, h, c0, h0 = ctx.saved_tensors
        adjoint = sweep(C, f, e, w, ctx.steps, *given)
        return needed(ctx, *_of_coefficients(ctx, (z, c, h), c0, h0, adjoint), None, *adjoint)


class _Sweep(Function):
    @staticmethod
    def forward(ctx: Any, C: Tensor, f: Tensor, e: Tensor, w: Tensor, steps: Steps, *given: Maybe) -> Five:
        adjoint: Five = _sweep(C, f, e, w, steps.sizes, *given)
        ctx.steps = steps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(C, f, e, w, *adjoint)
        return adjoint

    @staticmethod
    def backward(ctx: Any, *given: Maybe) -> tuple[Maybe, ...]:
        C, f, e, w, *adjoint = ctx.saved_tensors
        along = tangent(C, f, e, w, ctx.steps, *given)
        return needed(ctx, *_of_coefficients(ctx, along, given[3], given[4], adjoint), None, *along)


def _of_coefficients(ctx: Any, along: Three, c0: Maybe, h0: Maybe, adjoint: Sequence[Tensor]) -> list[Maybe]:
    """The derivatives with respect to C, f, e and w of the sum of the tangent's values times the sweep's."""
    (z, c, h), (z_adjoint, c_adjoint, h_adjoint, *_), steps = along, adjoint, ctx.steps
    of_C, of_f, of_e, of_w, *_ = ctx.needs_input_grad
    zeros = h.new_zeros(steps.sizes[0], h.shape[1])
    return [
        z * torch.cat([c_adjoint, c_adjoint, c_adjoint, h_adjoint], 1) if of_C else None,
        c_adjoint * steps.before(c, zeros if c0 is None else c0) if of_f else None,
        h_adjoint * c if of_e else None,
        z_adjoint.t() @ steps.before(h, zeros if h0 is None else h0) if of_w else None,
    ]


def tangent(
    C: Tensor, f: Tensor, e: Tensor, w: Tensor, steps: Steps, Z: Maybe, G: Maybe, H: Maybe, c0: Maybe, h0: Maybe
) -> Three:
    """(z, c, h), each a row a step of a sequence. None stands for zeros; c0 and h0: the initial state's."""
    found: Three = _Tangent.apply(C, f, e, w, steps, Z, G, H, c0, h0)  # type: ignore[no-untyped-call]
    return found


def sweep(C: Tensor, f: Tensor, e: Tensor, w: Tensor, steps: Steps, Z: Maybe, G: Maybe, H: Maybe) -> Five:
    """(z, c, h, c₀, h₀), where the last two belong to the initial state."""
    found: Five = _Sweep.apply(C, f, e, w, steps, Z, G, H)  # type: ignore[no-untyped-call]
    return found
