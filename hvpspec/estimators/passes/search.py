"""The search for eigenvalues among those asked for that the start of a pass could not show: above all, copies.

With B = (I − P) H (I − P) on the complement of the basis: if B has no eigenvalue above a, then H has no more
eigenvalues from a Ritz value θ > a on than T has. (For t just below θ, H − t has as many positive eigenvalues as T − t
and B − t − Cᵀ(T − t)⁻¹C together, and the last term is then large along the frontier: Haynsworth 1968,
doi:10.1016/0024-3795(68)90050-5.) So all depends on the ends of B's spectrum. They are bounded in three ways, the
first two of which make no product:

- by the outer bounds on the spectrum of H, which hold for copies as well,
- by the images of the probes, see `bounds/missed.py`,
- by Lanczos on B from a random vector of its own, which leaves basis and probes as they are.

Where copies may be in the basis without having converged (added vectors and rounding bring them there), B says nothing
of them. Lanczos on B − Cᵀ(T − t)⁻¹C then shows, for one t, that H has as many eigenvalues beyond it as T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from hvpspec.bounds.eigenvalues import Count, Exclusion
from hvpspec.bounds.missed import (
    PROBABILITY_OF_MISS,
    ends_asked,
    hides_copies,
    images_within,
    interval_of_rest,
    least_to_exclude,
    proved,
    sides_to_count,
    suspect,
)
from hvpspec.estimators.eigsh import Wanted, converged, current, relative_residuals, steps_to_tolerance, worth_checking
from hvpspec.estimators.passes.extend_or_probe import SMALL_COMPLEMENT
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.krylov.lanczos import Krylov, Ritz, confine, extend, favour, start
from hvpspec.krylov.probes import Direction
from hvpspec.krylov.vectors import inner, times, uploaded
from hvpspec.options import PILOT_PROBES
from hvpspec.results.eigenpairs import Eigenpairs

_MAX_VAIN_SEARCHES = 8  # for missed eigenvalues, by probes
_RESERVED_GAUSSIANS = 2000  # of the seed, after those drawn so far, for Lanczos on B
_RESIDUALS_TO_EIGENVALUE = 2  # from a Ritz value whose vector is a fifth of an eigenvector, and its image orthogonal
_LEAST_STEPS = 20  # of Lanczos on B that are allowed, however few there were on H

Interval = tuple[float, float]


class Search:
    """The search of one pass. `rest` bounds the spectrum of B, at 99 %.

    left: products that may still be made. report: is told the eigenpairs while they improve.
    """

    def __init__(
        self,
        shared: SharedPass,
        wanted: Wanted,
        confidence: float,
        left: Callable[[], float],
        report: Callable[[Eigenpairs], None],
    ) -> None:
        self._shared, self._wanted, self._confidence = shared, wanted, confidence
        self._left, self._report = left, report
        self._lanczos: tuple[int, Interval] = (0, (-math.inf, math.inf))  # basis vectors then, and what it showed
        self._counts: list[Count] = []
        self._runs = 0
        self._given_up = False

    def current(self) -> tuple[Eigenpairs, np.ndarray, Ritz]:
        """See `hvpspec.estimators.eigsh.current`; with what is known of B."""
        return current(self._shared, self._wanted, self._confidence, rest=self.rest(), counts=self._counts)

    def eigenpairs(
        self, left: Callable[[], float], *, watched: bool, after: int
    ) -> Iterator[tuple[float | None, Eigenpairs]]:
        """The products still to come, if that can be estimated, and the pairs; the basis grows until these are found.

        left: products that may be made now. watched: whether the pairs are of interest before that. after: products
        that follow.
        """
        shared, wanted = self._shared, self._wanted
        history: list[tuple[int, float]] = []  # products, and the largest relative residual at that point
        while (allowed := left()) > 0:
            shared.extend(int(min(allowed, shared.A.n)), wanted.choose)
            worth = worth_checking(shared.krylov) and (watched or converged(shared.krylov, wanted))
            if allowed > 1 and not worth:
                continue
            pairs, _, _ = self.current()
            if len(pairs.values) == min(wanted.k, shared.A.n):
                history.append((shared.hvps, float(relative_residuals(pairs).max())))
            steps = steps_to_tolerance(history, wanted.tol)
            yield None if steps is None else min(steps, allowed - 1) + after, pairs
            if pairs.converged:
                return

    def rest(self) -> Interval:
        """Bounds on the spectrum of B. As the basis grows they remain valid; a restart ends that."""
        krylov, pool = self._shared.krylov, self._shared.pool
        low, high = self._lanczos[1] if krylov.m >= self._lanczos[0] else (-math.inf, math.inf)
        bounds = [images_within(pool.grams())] if pool.count else []
        exclusion = Exclusion.of(krylov)
        if exclusion is not None:
            bounds.append((exclusion.beyond(PROBABILITY_OF_MISS, -1), exclusion.beyond(PROBABILITY_OF_MISS, 1)))
        for below, above in bounds:
            low, high = max(low, below), min(high, above)
        return low, high

    def by_probes(self) -> None:
        """Adds missed eigenvalues that the probes show.

        Where they suggest that there is one, a product decides.
        """
        shared, searches = self._shared, 0
        while searches < _MAX_VAIN_SEARCHES and shared.dimension > 1 and self._left() > 1:
            pairs, _, _ = self.current()
            if len(pairs.values) < self._wanted.k or not pairs.converged:
                return
            found = self._suspect(pairs)
            if found is None:
                return
            if self._spans_rest(SMALL_COMPLEMENT):
                return
            if not proved(shared.A, shared.krylov, *found):
                searches += 1
                if self._spans_rest(shared.hvps):  # rather than perhaps probe in vain again
                    return
                shared.probe(int(min(PILOT_PROBES, self._left())))  # to make the next suspicion more reliable
                continue
            self._add(pairs, PILOT_PROBES)

    def to_the_end(self) -> bool:
        """Searches until it is shown that nothing is missing, or cannot be; whether that has taken products."""
        shared, added, already = self._shared, 0, self._shared.hvps
        while not self._given_up and shared.dimension and self._left() > 0:
            pairs = self._reached()
            if len(pairs.values) < self._wanted.k or not pairs.converged or pairs.all_copies:
                break
            if self._spans_rest(PILOT_PROBES):  # Lanczos on B would take as many products
                break
            before = shared.hvps
            missed = self._by_lanczos(pairs)
            if missed is False:
                continue
            # One random vector shows one more copy of each eigenvalue. Where k are not enough, the tolerance is too
            # large to tell the eigenvalues from the others, and every further vector would find some more.
            if missed is None or not shared.can_extend or added == self._wanted.k:
                self._given_up = True
                break
            self._add(pairs, 2 * (shared.hvps - before) + PILOT_PROBES)
            added += 1
        return shared.hvps > already

    def _reached(self) -> Eigenpairs:
        """The pairs, once they have converged: after others were added, further ones may be among them."""
        shared = self._shared
        pairs, chosen, ritz = self.current()
        while len(pairs.values) == self._wanted.k and not pairs.converged and self._left() > 0 and shared.can_extend:
            self._favour_worst(pairs, chosen, ritz)
            shared.extend(1)
            pairs, chosen, ritz = self.current()
            self._report(pairs)
        return pairs

    def _spans_rest(self, most: float) -> bool:
        """Extends the basis to the whole space where that takes `most` products and few are left besides."""
        shared = self._shared
        if shared.dimension > min(most, self._left()) or not 0 <= shared.spare <= PILOT_PROBES:
            return False
        while self._left() > 0 and shared.can_extend:
            shared.extend(1)
        return True

    def _favour_worst(self, pairs: Eigenpairs, chosen: np.ndarray, ritz: Ritz) -> None:
        """Puts the frontier vector first that reduces the largest residual most."""
        favour(self._shared.krylov, ritz.coefficients[:, chosen[np.argmax(relative_residuals(pairs))]])

    def _favour_approaching(self) -> bool:
        """Whether a Ritz value that has not converged may belong among those found; its frontier vector is then first.

        Of several sequences, one may have been left in the middle of an eigenvector. The rest of that is then in the
        frontier, to which every new random vector is orthogonal.
        """
        krylov, (pairs, chosen, ritz) = self._shared.krylov, self.current()
        low, high = least_to_exclude(pairs.values, self._wanted.which, self._interval(pairs))
        further = _RESIDUALS_TO_EIGENVALUE * ritz.residuals
        reach = np.maximum(ritz.values + further - high, low - ritz.values + further)
        reach[chosen] = -math.inf
        reach[ritz.residuals <= ritz.noise] = -math.inf
        if krylov.frontier.shape[1] < 2 or reach.max() <= 0:
            return False
        favour(krylov, ritz.coefficients[:, reach.argmax()])
        return True

    def _interval(self, pairs: Eigenpairs) -> Interval:
        """Where all other eigenvalues lie if nothing is missing."""
        assert pairs.smallest is not None
        assert pairs.largest is not None
        low, high = interval_of_rest(pairs.values, self._wanted.which, self._wanted.tol, pairs.smallest, pairs.largest)
        noise = float(self._shared.krylov.ritz().noise.max())
        return low - noise, high + noise

    def _suspect(self, pairs: Eigenpairs) -> tuple[Direction, Interval] | None:
        """A direction that seems to show an eigenvalue outside the interval that holds all others; no product."""
        rest = self._interval(pairs)
        found = suspect(self._shared.pool, self._wanted.which, rest)
        return None if found is None else (found, rest)

    def _add(self, known: Eigenpairs, most: int) -> None:
        """Extends the basis from a new random vector until the pairs have converged with what it adds to those known.

        most: steps after which they are taken to have converged if nothing has been added. The start is not the
        direction in which something was found: the basis must remain independent of the probes.
        """
        shared = self._shared
        if not self._favour_approaching():
            shared.add_random()
        added = shared.krylov.m
        while self._left() > 0 and shared.can_extend:
            shared.extend(1)
            if not worth_checking(shared.krylov):
                continue
            pairs, chosen, ritz = self.current()
            self._report(pairs)
            if not pairs.converged:
                self._favour_worst(pairs, chosen, ritz)
                continue
            changed = not np.allclose(pairs.values, known.values, rtol=self._wanted.tol, atol=0)
            if shared.krylov.m - added >= most or (changed and self._suspect(pairs) is None):
                break

    def _by_lanczos(self, pairs: Eigenpairs) -> bool | None:
        """Whether an eigenvalue is missing among the pairs; None if that remains open."""
        shared, interval, wanted = self._shared, self._interval(pairs), self._wanted
        _, chosen, ritz = self.current()
        target = least_to_exclude(pairs.values, wanted.which, interval)
        if not hides_copies(shared.krylov, ritz, chosen, wanted.which, wanted.tol, target):
            return self._outside(interval, np.array(ends_asked(target, wanted.which)))
        for count in sides_to_count(ritz, chosen, wanted.which, wanted.tol, self._counts):
            missed = self._beyond(count)
            if missed is not False:
                return missed
            self._counts.append(count)
        return False

    def _outside(self, interval: Interval, points: np.ndarray) -> bool | None:
        """Whether B has an eigenvalue outside the interval; it is enough if there is none beyond the points."""
        finite = interval if all(map(math.isfinite, interval)) else (0.0, 0.0)
        for krylov in self._lanczos_on(self._on_complement((finite[0] + finite[1]) / 2)):
            ritz, exclusion = krylov.ritz(), Exclusion.of(krylov)
            if (ritz.values - ritz.noise > interval[1]).any() or (ritz.values + ritz.noise < interval[0]).any():
                return True
            inside = all(point <= ritz.values[0] or point >= ritz.values[-1] for point in points)
            if exclusion is None or (inside and exclusion.empty_at(points, PROBABILITY_OF_MISS)):
                self._lanczos = (self._shared.krylov.m, _ends(ritz, exclusion, points))
                return False
        return None

    def _beyond(self, count: Count) -> bool | None:
        """Whether H has more eigenvalues beyond t than T.

        It has as many more as S = B − F Cᵀ(T − t)⁻¹C Fᵀ, whatever the basis holds.
        """
        known, frontier = self._shared.krylov.projection, self._shared.krylov.frontier
        shift = known.T - count.t * np.eye(len(known.T))
        raised = uploaded(known.coupling.T @ np.linalg.solve(shift, known.coupling), frontier)
        on_complement = self._on_complement(count.t - count.side * known.norm)

        def multiply(X: Tensor, /) -> Tensor:
            return on_complement(X) - times(frontier, times(raised, inner(frontier, X)))

        for krylov in self._lanczos_on(multiply):
            ritz, exclusion = krylov.ritz(), Exclusion.of(krylov)
            if (count.side * (ritz.values - count.t) > ritz.noise).any():
                return True
            if exclusion is None or exclusion.empty_at(np.array([count.t]), PROBABILITY_OF_MISS):
                return False
        return None

    def _lanczos_on(self, multiply: Callable[[Tensor], Tensor]) -> Iterator[Krylov]:
        """The Krylov space of a random vector of its own, after each step that may be made."""
        shared = self._shared
        steps = min(
            max(_LEAST_STEPS, shared.krylov.m),
            self._room(),
            shared.A.n + 2 * PILOT_PROBES - shared.hvps,
            self._left(),
        )
        krylov = self._start_on_complement()
        for _ in range(int(steps)):
            extend(krylov, multiply)
            yield krylov

    def _room(self) -> int:
        """How many vectors memory holds besides the basis; where there are too few, probes are reduced to Grams."""
        shared = self._shared
        room = shared.capacity - shared.krylov.m
        if room < _LEAST_STEPS and shared.capacity < shared.A.n:
            room += 2 * len(shared.pool.numbers)
            shared.pool.retire()
        return room

    def _start_on_complement(self) -> Krylov:
        shared = self._shared
        self._runs += 1
        drawn = shared.krylov.drawn + _RESERVED_GAUSSIANS + self._runs
        krylov = start(shared.A, seed=shared.krylov.seed, place=shared.place, drawn=drawn)
        if shared.krylov.zero is not None:
            confine(krylov, shared.krylov.zero)
        return krylov

    def _on_complement(self, centre: float) -> Callable[[Tensor], Tensor]:
        """Multiplies by B + centre · P, which has its other eigenvalues where they do not matter."""
        shared = self._shared

        def multiply(X: Tensor, /) -> Tensor:
            basis = shared.krylov.basis
            inside = basis.combine(basis.inner(X))
            image: Tensor = shared.A @ (X - inside)
            for _ in range(2):
                image = image - basis.combine(basis.inner(image))
            result: Tensor = image + centre * inside
            return result

        return multiply


def _ends(ritz: Ritz, exclusion: Exclusion | None, points: np.ndarray) -> Interval:
    """The bounds on the spectrum of B that its own Krylov space gives."""
    if exclusion is None:  # it is invariant
        return float(ritz.values[0] - ritz.noise[0]), float(ritz.values[-1] + ritz.noise[-1])
    low, high = (exclusion.beyond(PROBABILITY_OF_MISS, side) for side in (-1, 1))
    for point in points:
        low, high = (low, min(high, point)) if point >= ritz.values[-1] else (max(low, point), high)
    return low, high
