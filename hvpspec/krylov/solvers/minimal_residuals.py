"""MINRES for symmetric systems, indefinite and singular ones too (Paige and Saunders 1975, doi:10.1137/0712047).

Lanczos vectors v of M½ A M½ make T tridiagonal; T = Q R by reflections, one a step, and x is updated along the columns
of V R⁻¹. Names are those of the paper, and of SciPy's minres.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hvpspec.krylov.solvers.iterate import Iterate, Multiply, Solver, dot, length

_ROUNDOFFS_OF_ZERO = 100  # of ‖T‖: a smaller entry of T or R is rounding


def minres(b: Tensor, M: Multiply | None = None) -> Solver:
    """The iterates for A x = b (n, 1) from x = 0 on, at a product each; M: a positive definite preconditioner.

    Vectors are of b's dtype, which should be float64: rounding in W = V R⁻¹ is magnified by the condition number, so
    that float32 leaves a residual of 1e-2 where products in float32 alone leave 1e-4 (condition number 1e4, as
    measured), and in the Lanczos vectors it costs a tenth more iterations.

    They end where the Krylov space is invariant. If A is singular there and b not in its range, the last x solves the
    system in the sense of least squares.
    """
    zero = _ROUNDOFFS_OF_ZERO * torch.finfo(b.dtype).eps
    x, w_before, w = torch.zeros_like(b), torch.zeros_like(b), torch.zeros_like(b)
    u_before, u = b, b  # Lanczos vectors times M⁻¹ and their lengths
    z = u if M is None else M(u)
    r = None if M is None else b.clone()
    beta = phi_bar = math.sqrt(max(dot(u, z), 0.0))
    before = epsilon = delta_bar = squares = s = 0.0
    c = -1.0
    now = Iterate(x, None, beta if r is None else length(r))
    while beta > 0:
        v = z / beta
        image = yield now._replace(direction=v)
        if before:
            image.sub_(u_before, alpha=beta / before)
            squares += beta**2
        alpha = dot(v, image)
        u_before, u = u, image.sub_(u, alpha=alpha / beta)
        z = u if M is None else M(u)
        before, beta = beta, math.sqrt(max(dot(u, z), 0.0))  # below 0 by rounding alone
        squares += alpha**2 + beta**2
        norm = math.sqrt(squares)
        # The last reflection, applied to the new column of T, and the next one.
        epsilon_before, epsilon = epsilon, s * beta
        delta, gamma_bar = c * delta_bar + s * alpha, s * delta_bar - c * alpha
        delta_bar = -c * beta
        at_end = beta <= zero * norm
        gamma = math.hypot(gamma_bar, beta)
        if not gamma > zero * norm:
            return  # T is singular: no further x has a smaller residual
        c, s = gamma_bar / gamma, beta / gamma
        step, phi_bar = c * phi_bar, s * phi_bar
        w_before, w = w, w_before.mul_(-epsilon_before).sub_(w, alpha=delta).add_(v).div_(gamma)
        x.add_(w, alpha=step)
        if r is not None and beta > 0:
            r.mul_(s**2).sub_(u, alpha=phi_bar * c / beta)
        left = abs(phi_bar) if r is None else length(r)
        now = Iterate(x, None, left, math.hypot(gamma_bar, delta_bar), norm)
        if at_end:
            break
    yield now
