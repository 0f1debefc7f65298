"""One pass over shared products: a Krylov basis and probes on its complement, from which every figure is read.

With B = (I − P) H (I − P), P projecting on the basis Q, H Q = Q T + F Cᵀ gives

    tr H = tr T + tr B,    ‖H‖_F² = ‖T‖_F² + 2 ‖C‖_F² + ‖B‖_F²

where the first parts are known and the probes estimate what is left. (Krylov-aware trace: arXiv:2205.01736; deflated
Hutchinson: arXiv:2010.09649.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
from torch import Tensor

from hvpspec.bounds.copies import Sums
from hvpspec.bounds.data_error import BatchSpread
from hvpspec.bounds.probe_intervals import Remainder
from hvpspec.errors import InputError
from hvpspec.krylov.basis import Storage
from hvpspec.krylov.lanczos import add_random, extend, restart, start
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.krylov.probes import Pool
from hvpspec.krylov.vectors import lean
from hvpspec.options import PILOT_PROBES
from hvpspec.results.estimate import Estimate
from hvpspec.validation import Tolerance

Figure = Literal["trace", "frobenius_norm"]

_LIVE_PROBES = 64
_TOGETHER = 8  # basis vectors whose deflation of the probes waits, where they are few beside the room there is


def share_room(room: int, n: int, itemsize: int, least: int, *, probes: bool) -> tuple[int, int]:
    """How many of `room` vectors go to the basis, and how many live probes there may be (with an image each).

    Raises InputError where the basis would have fewer than `least`.
    """
    live = max(PILOT_PROBES, min(_LIVE_PROBES, room // 8)) if probes else 0
    capacity, least = min(room - 2 * live, n), min(least, n)
    if capacity < least:
        needed = least + 2 * live
        raise InputError(
            f"there is room for {room} vectors of {n:,} numbers and at least {needed} "
            f"({needed * n * itemsize / 2**20:,.0f} MiB) are needed; raise basis_memory, or keep the basis on the CPU "
            "or on disk (basis_on)."
        )
    return capacity, live


class OnePass:
    """The state of a pass, and what can be done next: `extend` the basis, or `probe` its complement.

    `capacity`: basis vectors that fit in memory. `history`: (m, tr T, ‖T‖_F² + 2 ‖C‖_F²) after each step.
    """

    def __init__(
        self,
        A: Symmetric,
        *,
        seed: int,
        block: int = 1,
        storage: Storage,
        k: int = 1,
        basis: bool = True,
        probes: bool = True,
        first_draw: int = 0,
        towards: Any = None,
    ) -> None:
        self.A = A
        self._grows = basis
        self._already = A.hvps
        room = storage.vectors(A.n, A.dtype, A.device)
        self.capacity, live = share_room(room, A.n, A.dtype.itemsize, k + block + 2, probes=probes)
        self._anew = partial(start, A, seed=seed, block=min(block, A.n), place=storage.place, drawn=first_draw)
        self._live, self._together = live, min(_TOGETHER, 1 + room // 64)
        self._begin(lean(towards, A.n, A.dtype, A.device))

    def _begin(self, towards: Tensor | None) -> None:
        self.krylov = self._anew(towards=towards)
        self.pool = Pool(self.krylov, self._live, self._together)
        self.spread = BatchSpread(self.A, self.krylov, self.pool)
        self.history: list[tuple[int, float, float]] = [(0, 0.0, 0.0)]
        self._width: int | None = None

    @property
    def hvps(self) -> int:
        """Products made in this pass."""
        return self.A.hvps - self._already

    @property
    def dimension(self) -> int:
        """Of the complement."""
        return self.A.n - self.krylov.m

    @property
    def can_extend(self) -> bool:
        """Whether the basis can grow without a restart."""
        return self._grows and not self.pool.frozen and self.krylov.m < self.capacity

    # --- actions ------------------------------------------------------------------------------------------------

    def extend(self, limit: int, best: Callable[[np.ndarray, int], np.ndarray] | None = None) -> None:
        """One Krylov step of at most `limit` products.

        When memory is full the basis is first shrunk to the Ritz vectors that `best(values, count)` names (a thick
        restart); probes that were made are given up then. Where that would happen to a space that leans towards given
        vectors, it starts anew without them: such a space must be undisturbed to show that it has missed nothing.
        """
        krylov = self.krylov
        if krylov.leans and krylov.m + 1 > self.capacity < self.A.n:
            self._begin(None)
            krylov = self.krylov
        width = min(krylov.frontier.shape[1], limit, self._width or limit)
        if krylov.m + width > self.capacity < self.A.n:
            assert best is not None
            self._restart(best, width)
        elif self.pool.frozen:
            self.pool.clear()
        step = extend(krylov, self.spread.multiply, width)
        krylov.eps = self.A.eps  # which differences of gradients may have found to be more
        self.spread.extended(step)
        self.pool.follow(step)
        known = krylov.projection
        squares = float((known.T**2).sum() + 2 * (known.coupling**2).sum())
        self.history.append((krylov.m, float(np.trace(known.T)), squares))

    def probe(self, count: int) -> None:
        """`count` more probes, one product each."""
        probes = self.pool.draw(count)
        products = self.spread.multiply(probes)
        self.spread.probed(count)
        self.pool.add(probes, products)

    def add_random(self) -> None:
        """Starts another Krylov sequence beside the first, from a fresh random vector.

        Steps go on with that, one vector at a time; `favour` returns to the others.
        """
        if self.krylov.m + self.krylov.frontier.shape[1] < self.A.n:
            add_random(self.krylov)
            self._width = 1

    def _restart(self, best: Callable[[np.ndarray, int], np.ndarray], width: int) -> None:
        self.pool.clear()
        coefficients = restart(
            self.krylov, lambda values: best(values, max(self.capacity // 2, 1))[: self.capacity - width]
        )
        self.spread.restarted(coefficients)
        self.history = []

    # --- figures ------------------------------------------------------------------------------------------------

    def remainder(self) -> Remainder:
        return Remainder(tuple(self.pool.grams()), self.dimension)

    def sums(self, confidence: float) -> Sums | None:
        """tr H and tr H² as the basis and the probes have them, with their intervals; None where they do not."""
        tolerance = Tolerance(1.0, 0.0, confidence)
        trace, norm = self.estimate("trace", tolerance), self.estimate("frobenius_norm", tolerance)
        if not math.isfinite(trace.error) or not math.isfinite(norm.error):
            return None
        grams = max(self.pool.grams(), key=lambda block: block.count, default=None)
        squares_error = norm.error * (2 * norm.value + norm.error)
        return Sums(trace.value, trace.error, norm.value**2, squares_error, self.pool.count, grams)

    def estimate(self, figure: Figure, tolerance: Tolerance) -> Estimate:
        """The figure as it is known now."""
        remainder = self.remainder()
        norm, norm_error = self._norm(remainder, tolerance.confidence)
        relative_to = "value"
        if figure == "frobenius_norm":
            value, error = norm, norm_error
            allowed, data_error = tolerance.allowed(value), self.spread.frobenius_norm(norm)
        else:
            value, error = self._trace(remainder, tolerance.confidence, norm)
            allowed, data_error = tolerance.allowed(value, norm), self.spread.trace()
            if abs(value) < norm and tolerance.rtol * norm > tolerance.atol:
                relative_to = "frobenius_norm"
        exact = self.dimension == 0
        method = "exact" if exact else "krylov" if self.krylov.m else "hutchinson"
        converged = exact or error <= allowed
        return Estimate(value, error, tolerance.confidence, converged, self.hvps, method, relative_to, data_error)

    def _trace(self, remainder: Remainder, confidence: float, norm: float) -> tuple[float, float]:
        known = float(np.trace(self.krylov.projection.T))
        if self.dimension == 0:
            return known, self._rounding(norm)
        if remainder.count == 0:
            return math.nan, math.inf
        rest, half = remainder.trace(confidence)
        return known + rest, half + self._rounding(norm)

    def _norm(self, remainder: Remainder, confidence: float) -> tuple[float, float]:
        known = self.krylov.projection
        squares = float((known.T**2).sum() + 2 * (known.coupling**2).sum())
        if self.dimension == 0:
            return math.sqrt(squares), self._rounding(math.sqrt(squares))
        if remainder.count == 0:
            return math.nan, math.inf
        rest, factor = remainder.squared_norm(confidence)
        norm = math.sqrt(squares + rest)
        # The interval is lopsided; the longer, upper side is reported.
        return norm, math.sqrt(squares + rest * factor) - norm + self._rounding(norm)

    def _rounding(self, norm: float) -> float:
        """What rounding in the products, as far as they showed it, adds to a sum over the basis."""
        return 16 * self.A.eps * math.sqrt(1 + self.krylov.m) * norm + float(
            np.linalg.norm(self.krylov.projection.defects)
        )
