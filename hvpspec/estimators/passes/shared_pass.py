"""One pass over shared products: a Krylov basis and probes on its complement, from which every quantity is estimated.

With B = (I − P) H (I − P), where P projects onto the basis Q, H Q = Q T + F Cᵀ gives

    tr H = tr T + tr B,    ‖H‖_F² = ‖T‖_F² + 2 ‖C‖_F² + ‖B‖_F²

The parts with T and C are known, and the probes estimate the rest. (Krylov-aware trace: arXiv:2205.01736; deflated
Hutchinson: arXiv:2010.09649.)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.bounds.copies import Sums
from hvpspec.bounds.data_error import BatchSpread
from hvpspec.bounds.probe_intervals import Remainder, not_below
from hvpspec.bounds.rounding import SampledRounding, check_products, explained, measure_rounding
from hvpspec.distributed.shard import added, rows_of
from hvpspec.errors import InputError
from hvpspec.krylov.basis import Storage
from hvpspec.krylov.lanczos import add_random, confine, extend, restart, start
from hvpspec.krylov.operator_view import AsymmetricProducts, Symmetric
from hvpspec.krylov.probes import MAX_LIVE_PROBES, Pool
from hvpspec.krylov.vectors import warm_direction
from hvpspec.memory import readable
from hvpspec.options import PILOT_PROBES, SampledQuantity
from hvpspec.results.estimate import Estimate, Rounding
from hvpspec.system.time_limit import OutOfTime, Pace
from hvpspec.validation import Tolerance

_ROOM_PER_LIVE_PROBE = 8  # vectors of the room to one probe that is kept
_LEAST_PROBES_TOGETHER = 2  # whose inner product is needed
_VECTORS_PER_PROBE = 4  # at the time of its product: itself, the product, and a copy of each
_BASIS_VECTORS_TOGETHER = 8  # that probes are deflated against at once, where these take little of the memory


def least_basis(k: int, block: int = 1) -> int:
    """The fewest basis vectors with which k eigenpairs can be found from `block` start vectors."""
    return k + block + 2


def share_room(room: int, n: int, itemsize: int, least: int, *, probes: bool) -> tuple[int, int]:
    """How many of `room` vectors go to the basis, and how many probes may be kept (each with its image).

    least: vectors that the basis needs; 0 without a basis: probes are then kept where there is ample room, and need
    not be. Raises InputError if the basis would have room for fewer than `least` vectors.
    """
    if least == 0 and room < PILOT_PROBES * _ROOM_PER_LIVE_PROBE:
        return 0, 0
    live = max(PILOT_PROBES, min(MAX_LIVE_PROBES, room // _ROOM_PER_LIVE_PROBE)) if probes else 0
    capacity, least = min(room - 2 * live, n), min(least, n)
    if capacity < least:
        raise InputError(too_little_room(room, least + 2 * live, n, itemsize))
    return capacity, live


def too_little_room(room: int, needed: int, n: int, itemsize: int) -> str:
    """The message of an InputError."""
    return (
        f"there is room for {room} vectors of {n:,} numbers, and at least {needed} ({readable(needed * n * itemsize)}) "
        "are needed; raise basis_memory, or keep the basis on the CPU or on disk (basis_on)."
    )


class SharedPass:
    """The state of a pass, and what can be done next: `extend` the basis, or `probe` its complement.

    capacity: basis vectors that fit in memory. history: (m, tr T, ‖T‖_F² + 2 ‖C‖_F²) after each step. gather: what is
    to be collected from probes that are no longer kept, see `Pool`.
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
        zero: Tensor | None = None,
        find_zero: bool = False,
    ) -> None:
        """block: random start vectors. k: eigenpairs for which there must be room. basis: whether it may grow.

        first_draw: how many of the seed's first Gaussians are skipped. towards: vectors of a warm start. zero: rows of
        H that are known to be zero, of which basis and probes are kept free. find_zero: whether the first product of
        the basis is to show them: with a dense random vector, a row that is not zero is 0 there with probability 0, but
        for rounding, and later products show that.
        """
        self.A = A
        self.gather: Callable[[Sequence[int], Tensor], Any] = lambda numbers, images: None
        self.block, self.place = min(block, A.n), storage.place
        self._grows = basis
        self._already = A.hvps
        room = A.decide("room", lambda: storage.vectors(len(rows_of(A.n)), A.dtype, A.device))
        self.capacity, live = share_room(
            room, A.n, A.dtype.itemsize, least_basis(k, block) if basis else 0, probes=probes
        )
        self._probes_together = max(room // _VECTORS_PER_PROBE, _LEAST_PROBES_TOGETHER)
        if not basis and room < _VECTORS_PER_PROBE * _LEAST_PROBES_TOGETHER:
            needed = _VECTORS_PER_PROBE * _LEAST_PROBES_TOGETHER
            raise InputError(too_little_room(room, needed, A.n, A.dtype.itemsize))
        self._start = partial(start, A, seed=seed, block=self.block, place=storage.place, drawn=first_draw)
        self._live, self._together, self._kept = live, min(_BASIS_VECTORS_TOGETHER, 1 + room // 64), 0.0
        self._zero, self._finds_zero = zero, find_zero and block == 1
        self._begin(warm_direction(towards, A.n, A.dtype, A.device))

    def _begin(self, towards: Tensor | None) -> None:
        self.krylov = self._start(towards=towards)
        if self._zero is not None:
            confine(self.krylov, self._zero)
        self.pool = Pool(self.krylov, self._live, self._together, lambda numbers, images: self.gather(numbers, images))
        self.spread = BatchSpread(self.A, self.krylov, self.pool)
        self.history: list[tuple[int, float, float]] = [(0, 0.0, 0.0)]
        self._width: int | None = None
        self.rounding: Rounding | None = None
        self.sampled_rounding = SampledRounding()
        self._sample: tuple[Tensor, Tensor] | None = None  # a probe and its product

    @property
    def hvps(self) -> int:
        """Products made in this pass."""
        return self.A.hvps - self._already

    @property
    def dimension(self) -> int:
        """Of the complement."""
        return self.krylov.n - self.krylov.m

    @property
    def checks(self) -> int:
        """Products that `check` needs."""
        return 0 if self.A.explicit else 1

    @property
    def can_extend(self) -> bool:
        """Whether the basis can grow without a restart."""
        room = self.krylov.m < min(self.capacity, self.krylov.n)
        return self._grows and room and not self.pool.frozen and self.A.left > 0

    @property
    def spare(self) -> float:
        """How many products may be spent on probes such that a basis of the whole space is still within the limit."""
        whole = self.can_extend and self.capacity >= self.krylov.n
        return self.A.left - self._kept - (self.A.n - self.krylov.m) if whole else math.inf

    def promise(self, further: float, kept: float) -> None:
        """Limits the products to n for a basis of the whole space, `further` ones, and those kept for checks.

        There is no limit where memory does not hold such a basis: only probes can then reach a tolerance.
        """
        self._kept = kept
        self.A.limit = self._already + self.A.n + further + kept if self.capacity >= self.A.n else math.inf

    # --- actions ------------------------------------------------------------------------------------------------

    def extend(self, limit: int, best: Callable[[np.ndarray, int], np.ndarray] | None = None) -> None:
        """One Krylov step of at most `limit` products.

        When memory is full, the basis is first reduced to the Ritz vectors that `best(values, count)` selects (a thick
        restart); existing probes are then dropped. Where that would happen to a warm start, the space is started again
        without the given vectors, as only an undisturbed space can show that a warm start has missed nothing.
        Without `best`, there must be room for one vector (`can_extend`), and a block is cut to the room there is.
        """
        if limit < 1:  # the time was up between the question how many there are left and now
            raise OutOfTime
        krylov = self.krylov
        if krylov.warm and krylov.m + 1 > self.capacity < krylov.n:
            self._begin(None)
            krylov = self.krylov
        width = min(krylov.frontier.shape[1], limit, self._width or limit)
        if best is None:
            width = min(width, self.capacity - krylov.m)
        if best is not None and krylov.m + width > self.capacity < krylov.n:
            self._restart(best, width)
        elif self.pool.frozen:
            self.pool.clear()
        with self._explaining():
            shows_zeros = self._finds_zero and not krylov.m and not krylov.warm
            multiply = self._first_product() if shows_zeros else self._multiply
            step = extend(krylov, multiply, width)
        krylov.eps = self.A.eps  # products with finite differences may have shown it to be larger
        self.spread.extended(step)
        self.pool.follow(step)
        known = krylov.projection
        self.history.append((krylov.m, float(np.trace(known.T)), known.squared_norm))

    def probe(self, count: int) -> None:
        """`count` more probes, at one product each; as many at once as there is room for."""
        if count < 1:
            raise OutOfTime
        while count > self._probes_together:
            # The inner products of all pairs of a set count, so that a set of one probe would be wasted.
            part = min(self._probes_together, count - _LEAST_PROBES_TOGETHER)
            self._probe(part)
            count -= part
        self._probe(count)

    def _probe(self, count: int) -> None:
        probes = self.pool.draw(count)
        products = self._multiply(probes)
        self.spread.probed(count)
        if self.A.recompute is not None and self._sample is None and self.rounding is None:
            self._sample = (probes[:, :1].clone(), products[:, :1].clone())
        with self._explaining():
            self.pool.add(probes, products)

    def check(self, left: float, chosen: np.ndarray | None = None) -> None:
        """Checks the products made so far by one more, where `left` allows it, and measures their rounding.

        chosen: coefficients of the Ritz vectors of interest; by default all. Errors include from now on what it shows.
        """
        with self._explaining():
            if self.checks <= left and not self.A.explicit:
                check_products(self.A, self.krylov)
        if self.rounding is None:
            mixed = np.eye(self.krylov.m) if chosen is None else chosen
            self.rounding, self.sampled_rounding = measure_rounding(self.A, self.krylov, mixed, self._sample)
            self._sample = None

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Says where float32 is the reason that products are not symmetric."""
        try:
            yield
        except AsymmetricProducts as error:
            better = explained(self.A, error, self.krylov.seed)
            if better is error:
                raise
            raise better from None

    def add_random(self) -> None:
        """Starts another Krylov sequence from a new random vector, in the same basis.

        Further steps continue this one, one vector at a time; `favour` returns to the others.
        """
        if self.krylov.m + self.krylov.frontier.shape[1] < self.krylov.n:
            add_random(self.krylov)
            self._width = 1

    def _multiply(self, X: Tensor) -> Tensor:
        products = self.spread.multiply(X)
        if self._zero is not None:
            wrong = self._zero & (products != 0).any(1)
            if int(added(wrong.sum())):  # these rows were 0 in the first product by rounding alone
                self._zero = self._zero & ~wrong
                self.krylov.zero, self.krylov.zeros = self._zero, int(added(self._zero.sum()))
        return products

    def _first_product(self) -> Callable[[Tensor], Tensor]:
        """What multiplies the start: H g, made now, which shows the rows of H that are zero.

        H g is also the product with g in the other rows alone, from which the space then starts.
        """
        self._finds_zero = False
        product = self.spread.multiply(self.krylov.frontier)
        zero = (product == 0).all(1)
        exact = self.A.eps <= torch.finfo(self.A.dtype).eps  # finite differences may round small entries to 0
        if exact and 0 < int(added(zero.sum())) < self.A.n:
            self._zero = zero
            factor = confine(self.krylov, zero)
            product = product * factor
            self.spread.scaled(factor)
            self.pool.confine()
        return lambda X: product

    def _restart(self, best: Callable[[np.ndarray, int], np.ndarray], width: int) -> None:
        self.pool.clear()
        coefficients = restart(
            self.krylov, lambda values: best(values, max(self.capacity // 2, 1))[: self.capacity - width]
        )
        self.spread.restarted(coefficients)
        self.history = []

    # --- estimates ----------------------------------------------------------------------------------------------

    def remainder(self) -> Remainder:
        return Remainder(tuple(self.pool.grams()), self.dimension)

    def sums(self, confidence: float) -> Sums | None:
        """tr H and tr H² from basis and probes, with intervals; None if there are too few products for these."""
        tolerance = Tolerance(1.0, 0.0, confidence)
        trace, norm = self.estimate("trace", tolerance), self.estimate("frobenius_norm", tolerance)
        if not math.isfinite(trace.error) or not math.isfinite(norm.error):
            return None
        grams = max(self.pool.grams(), key=lambda grams: grams.count, default=None)
        squares_error = norm.error * (2 * norm.value + norm.error)
        return Sums(trace.value, trace.error, norm.value**2, squares_error, self.pool.count, grams)

    def estimate(self, quantity: SampledQuantity, tolerance: Tolerance) -> Estimate:
        """The current estimate of the quantity."""
        remainder = self.remainder()
        norm, norm_error = self._norm(remainder, tolerance.confidence)
        if quantity == "frobenius_norm":
            value, error, least = norm, norm_error, 0.0
            data_error = self.spread.frobenius_norm(norm)
        else:
            value, error = self._trace(remainder, tolerance.confidence, norm)
            least, data_error = norm, self.spread.trace()
        done, of = not self.dimension or error <= tolerance.allowed(value, least), tolerance.relative_to(value, least)
        found = Estimate(value, error, tolerance.confidence, done, self.hvps, self.method, of, data_error)
        return not_below(found, self._least_trace()) if quantity == "trace" and self.dimension else found

    @property
    def method(self) -> str:
        """The name of the estimator that basis and probes make up now."""
        return "exact" if self.dimension == 0 else "krylov" if self.krylov.m else "hutchinson"

    def _trace(self, remainder: Remainder, confidence: float, norm: float) -> tuple[float, float]:
        known = float(np.trace(self.krylov.projection.T))
        rounding = self.krylov.projection.sum_error(self.A.eps, norm)
        if self.dimension == 0:
            return known, rounding
        if remainder.count == 0:
            return math.nan, math.inf
        rest, half = remainder.trace(confidence)
        return known + rest, half + rounding + self.sampled_rounding.trace

    def _least_trace(self) -> float:
        """What tr H is at least, for certain: without negative eigenvalues, tr T and √(‖T‖_F² + 2 ‖C‖_F²)."""
        known, krylov = self.krylov.projection, self.krylov
        if not krylov.semidefinite or (krylov.m and krylov.ritz().floor < 0):
            return -math.inf
        return max(float(np.trace(known.T)), math.sqrt(known.squared_norm)) - known.sum_error(self.A.eps, known.norm)

    def _norm(self, remainder: Remainder, confidence: float) -> tuple[float, float]:
        known = self.krylov.projection
        squares = known.squared_norm
        if self.dimension == 0:
            return math.sqrt(squares), known.sum_error(self.A.eps, math.sqrt(squares))
        if remainder.count == 0:
            return math.nan, math.inf
        rest, factor = remainder.squared_norm(confidence)
        norm = math.sqrt(squares + rest)
        # The interval is not symmetric; the error is the longer, upper side.
        rounding = known.sum_error(self.A.eps, norm) + self.sampled_rounding.norm
        return norm, math.sqrt(squares + rest * factor) - norm + rounding


class Budget:
    """What a run may still spend on a pass: of products, and of time.

    reserved: products that are kept for what comes later, and `checks` for the last ones. out_of_time: whether a
    product was refused or given up because there was no time for it; then no further one is to be asked for.
    """

    def __init__(self, shared: SharedPass, products: int | None, checks: float, pace: Pace) -> None:
        self._shared, self._pace = shared, pace
        self._products = math.inf if products is None else float(products)
        self.reserved, self.checks, self.out_of_time = 0.0, checks, False

    @property
    def left(self) -> float:
        """Products that may be made now."""
        return 0.0 if self.out_of_time else min(self._of_products, self._pace.affordable() - self.checks)

    def left_besides(self, others: float, before: int) -> float:
        """Those that may be made now where `others` are to follow: these get half of all since `before` at most."""
        together = (left := self.left) + self._shared.hvps - before  # the same after each product, clocks apart
        return left - min(others, together // 2)

    @property
    def unspent(self) -> float:
        """Products of the budget that were not made yet, those in reserve included."""
        return self._products - self._shared.hvps

    @property
    def _of_products(self) -> float:
        return min(self.unspent - self.reserved, self._shared.A.left) - self.checks

    @property
    def whole(self) -> float:
        """Products that all of the run may make, as it looks now."""
        return min(self._products, self._shared.hvps + self._pace.affordable())

    @property
    def time_binds(self) -> bool:
        """Whether it is the time alone that leaves no further product."""
        return self.left < 1 <= self._of_products

    @contextlib.contextmanager
    def within_time(self) -> Iterator[None]:
        """Ends what is inside where there is no time for a product."""
        try:
            yield
        except OutOfTime:
            self.out_of_time = True
