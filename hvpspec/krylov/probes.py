"""Random probes on the complement of a basis, and the small matrices from which all estimates are computed.

With P the projector on the basis and B = (I − P) H (I − P), a probe is w = (I − P) ω for a standard normal vector ω,
and its image is y = B w. When the basis grows by X with the remainder R = (I − P') H X, both are updated without a
product:

    w' = w − X a,    y' = (I − X Xᵀ) y − R a,    a = Xᵀ w

so that all probes belong to the current basis, whenever they were made.

Normal vectors, and not random signs: the samples of these depend on the eigenvectors. Where one is sparse, the signs
of a few probes may agree on it by chance, and hide it from all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.kernels.full_precision import full_precision, in_full_precision
from hvpspec.kernels.random_vectors import probes
from hvpspec.krylov.basis import orthogonalise
from hvpspec.krylov.lanczos import Krylov, Step, outside_of
from hvpspec.krylov.operator_view import refuse_asymmetric
from hvpspec.krylov.vectors import inner, subtract_times, times

MAX_LIVE_PROBES = 64  # probes that are kept as vectors, each with its image
_LEAST_PROBES_FOR_DIRECTION = 4


@dataclass(frozen=True)
class Grams:
    """Inner products of b probes and their images: wᵀw, wᵀy and yᵀy, each (b, b)."""

    ww: np.ndarray
    wy: np.ndarray
    yy: np.ndarray

    @property
    def count(self) -> int:
        return len(self.ww)

    @property
    def centre(self) -> float:
        """The mean eigenvalue of B, as these probes estimate it."""
        return float(np.trace(self.wy) / np.trace(self.ww)) if self.ww.any() else 0.0


@dataclass(frozen=True)
class Direction:
    """A unit vector w of the complement, (n, 1), with zeroth = ‖w‖², first = wᵀBw and second = ‖B w‖².

    The three are measured, or estimated with the same probes; then also the first one is not exactly 1.
    """

    vector: Tensor
    zeroth: float
    first: float
    second: float


class Pool:
    """Probes w and images y, both (n, N), kept as vectors while the basis may grow; after that only their Grams.

    Once there are more probes than may be kept, all are reduced to their Grams ("retired"), and the basis must not grow
    any more. What `gather(numbers, images)` returns for them is then appended to `gathered`. numbers: of the probes
    that are kept as vectors.
    """

    def __init__(
        self,
        krylov: Krylov,
        capacity: int,
        together: int = 1,
        gather: Callable[[Sequence[int], Tensor], Any] = lambda numbers, images: None,
    ) -> None:
        """capacity: probes that may be kept as vectors. together: basis vectors to deflate them against at once."""
        self._krylov = krylov
        self._capacity = capacity
        self._together = together
        self._drawn = 0
        self._gather = gather
        self.clear()

    def clear(self) -> None:
        """Drops all probes. The next ones have new numbers."""
        self._rows = self._krylov.frontier.new_empty(2, 0, self._krylov.rows)
        self._pending: list[Step] = []
        self.numbers: list[int] = []
        self.gathered: list[Any] = []
        self._retired: list[Grams] = []
        self._live: Grams | None = None

    @property
    def probes(self) -> Tensor:
        self._settle()
        return self._live_vectors(0)

    @property
    def images(self) -> Tensor:
        self._settle()
        return self._live_vectors(1)

    def _live_vectors(self, which: int) -> Tensor:
        """The probes (0) or their images (1) that are kept, before the pending steps: a view that may be written to."""
        return self._rows[which, : len(self.numbers)].T

    @property
    def count(self) -> int:
        return len(self.numbers) + sum(grams.count for grams in self._retired)

    @property
    def frozen(self) -> bool:
        return bool(self._retired)

    def full(self, count: int) -> bool:
        """Whether `count` more probes would be retired immediately."""
        return self.frozen or len(self.numbers) + count > self._capacity

    def grams(self) -> list[Grams]:
        """One for each set of probes within which the inner products of all pairs are known."""
        if self._live is None and self.numbers:
            self._live = _grams(self.probes, self.images)
        return [*self._retired, *([self._live] if self._live else [])]

    def draw(self, count: int) -> Tensor:
        """The next probes, projected onto the complement: shape (n, count)."""
        krylov = self._krylov
        numbers = range(self._drawn, self._drawn + count)
        self._drawn += count
        like = krylov.frontier
        drawn = probes(krylov.positions, numbers, seed=krylov.seed, dtype=like.dtype, device=like.device)
        drawn = outside_of(krylov.zero, drawn)
        orthogonalise(krylov.basis, drawn[:, :0], drawn)
        return drawn

    def confine(self) -> None:
        """Confines probes made before it was known which rows of H are zero; their images are the same."""
        self.probes.copy_(outside_of(self._krylov.zero, self.probes))
        self._live = None

    def add(self, probes: Tensor, products: Tensor) -> None:
        """Adds probes w with their products H w. Raises InputError if these contradict symmetry."""
        krylov = self._krylov
        images = products.clone()
        inside = orthogonalise(krylov.basis, images[:, :0], images).coefficients
        grams = _grams(probes, images)
        rounding = 1e3 * krylov.eps * krylov.projection.norm * math.sqrt(krylov.n)
        scale = math.sqrt((1 + grams.count) * float(np.trace(grams.yy) + (inside**2).sum())) + rounding
        refuse_asymmetric(float(np.linalg.norm(grams.wy - grams.wy.T)), scale)
        if krylov.m:  # Qᵀ H w = C Fᵀ w
            expected = krylov.projection.coupling @ inner(krylov.frontier, probes).cpu().numpy()
            refuse_asymmetric(float(np.linalg.norm(inside - expected)), scale + krylov.projection.norm)
        numbers = list(range(self._drawn - probes.shape[1], self._drawn))
        if self.full(probes.shape[1]):
            self.retire()
            self.gathered.append(self._gather(numbers, images))
            self._retired.append(grams)
            return
        self._settle()
        if not self._rows.shape[1]:  # for all that may come: to grow later would take the memory twice
            self._rows = probes.new_empty(2, self._capacity, krylov.rows)
        places = slice(len(self.numbers), len(self.numbers) + len(numbers))
        self._rows[0, places], self._rows[1, places] = probes.T, images.T
        self.numbers += numbers
        self._live = None

    def retire(self) -> None:
        """Reduces all probes to their Grams, which frees their memory."""
        if self.numbers:
            self.gathered.append(self._gather(self.numbers, self.images))
        self._retired = self.grams()
        self.numbers, self._live = [], None
        self._rows = self._rows.new_empty(2, 0, self._krylov.rows)

    def follow(self, step: Step) -> None:
        """Deflates all probes against the vectors that the step added to the basis."""
        if not self.numbers:
            return
        self._pending.append(step)
        self._live = None
        if sum(step.vectors.shape[1] for step in self._pending) >= self._together:
            self._settle()

    def _settle(self) -> None:
        """Applies the pending steps: y' = (I − X Xᵀ)(y − R a), as each R is orthogonal to the X up to its step."""
        if not self._pending:
            return
        vectors = torch.cat([step.vectors for step in self._pending], 1)
        remainders = torch.cat([step.remainder for step in self._pending], 1)
        self._pending = []
        own, images = self._live_vectors(0), self._live_vectors(1)
        with full_precision(own.device):
            a = inner(vectors, own)
            subtract_times(own, vectors, a)
            subtract_times(images, remainders, a)
            subtract_times(images, vectors, inner(vectors, images))

    def direction(self, number: int = 0, centre: float = 0.0) -> Direction | None:
        """The principal direction of (B − cI) ω over the probes with this number, the strongest being 0; no product.

        Its moments are estimated for each probe from the direction that the others give: only if w does not depend on
        ω_j does (wᵀy_j)² = ((B w)ᵀω_j)² have the mean ‖B w‖². None if there are too few probes, or no such direction.
        """
        if len(self.numbers) < max(_LEAST_PROBES_FOR_DIRECTION, number + 2):
            return None
        grams = self.grams()[-1]
        yw = grams.wy.T - centre * grams.ww  # the images, less c times the probes, with the probes
        yy = grams.yy - centre * (grams.wy + yw)
        moments = []
        for j in range(len(yy)):
            others = np.delete(np.arange(len(yy)), j)
            values, vectors = np.linalg.eigh(yy[np.ix_(others, others)])
            if values[-1 - number] <= 0:
                return None
            image = float(vectors[:, -1 - number] @ (yy + centre * yw)[others, j])
            sign = float(vectors[:, -1 - number] @ yw[others, j])
            moments.append([product / values[-1 - number] for product in (sign**2, sign * image, image**2)])
        values, vectors = np.linalg.eigh(yy)
        coefficients = vectors[:, [-1 - number]] / math.sqrt(values[-1 - number])
        direction = times(self.images, coefficients)
        if centre:
            subtract_times(direction, self.probes, centre * coefficients)
        zeroth, first, second = (float(np.mean(column)) for column in zip(*moments, strict=True))
        return Direction(direction, zeroth, first, second)


@in_full_precision
def _grams(probes: Tensor, images: Tensor) -> Grams:
    read = torch.stack([inner(probes, probes), inner(probes, images), inner(images, images)]).cpu().numpy()
    return Grams(*read)
