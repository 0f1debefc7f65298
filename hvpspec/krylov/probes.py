"""Random sign probes on the complement of a basis, and the small matrices that all their figures come from.

With P the projector on the basis and B = (I − P) H (I − P), a probe is w = (I − P) ω for random signs ω, and its image
y = B w. When the basis grows by X with the remainder R = (I − P') H X, both follow without a product:

    w' = w − X a,    y' = (I − X Xᵀ) y − R a,    a = Xᵀ w

so that all probes serve the basis of the moment, whenever they were made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.krylov.basis import Basis
from hvpspec.krylov.lanczos import Krylov, Step, orthogonalise
from hvpspec.krylov.operator_view import refuse_asymmetric
from hvpspec.krylov.vectors import inner, rademacher


@dataclass(frozen=True)
class Grams:
    """Inner products of a block of b probes: wᵀw, wᵀy and yᵀy, each (b, b)."""

    ww: np.ndarray
    wy: np.ndarray
    yy: np.ndarray

    @property
    def count(self) -> int:
        return len(self.ww)


class Pool:
    """Probes w and images y, both (n, N), kept for as long as the basis may still grow; after that only their Grams.

    Once a block of probes is retired the basis must not grow any more; what `gather` makes of the numbers of the probes
    and their images, which are not kept, is `gathered` then. `numbers`: of the probes that are kept.
    """

    def __init__(self, krylov: Krylov, capacity: int, together: int = 1) -> None:
        """capacity: of live probes. together: basis vectors that they are deflated against in one go."""
        self._krylov = krylov
        self._capacity = capacity
        self._together = together
        self._drawn = 0
        self.gather: Callable[[Sequence[int], Tensor], Any] = lambda numbers, images: None
        self.clear()

    def clear(self) -> None:
        """Forgets all probes; those to come are others."""
        self._probes = self._krylov.frontier.new_empty(self._krylov.n, 0)
        self._images = self._probes
        self._pending: list[Step] = []
        self.numbers: list[int] = []
        self.gathered: list[Any] = []
        self._retired: list[Grams] = []
        self._live: Grams | None = None

    @property
    def probes(self) -> Tensor:
        self._settle()
        return self._probes

    @property
    def images(self) -> Tensor:
        self._settle()
        return self._images

    @property
    def count(self) -> int:
        return self._probes.shape[1] + sum(grams.count for grams in self._retired)

    @property
    def frozen(self) -> bool:
        return bool(self._retired)

    def full(self, count: int) -> bool:
        """Whether `count` more probes would be retired at once."""
        return self.frozen or self._probes.shape[1] + count > self._capacity

    def grams(self) -> list[Grams]:
        """One for each block within which all pairs are known."""
        if self._live is None and self.probes.shape[1]:
            self._live = _grams(self.probes, self.images)
        return [*self._retired, *([self._live] if self._live else [])]

    def draw(self, count: int) -> Tensor:
        """The next probes, projected on the complement: shape (n, count)."""
        krylov = self._krylov
        numbers = range(self._drawn, self._drawn + count)
        self._drawn += count
        like = krylov.frontier
        signs = rademacher(krylov.n, numbers, seed=krylov.seed, dtype=like.dtype, device=like.device)
        return _complement(krylov.basis, signs)[0]

    def add(self, probes: Tensor, products: Tensor) -> None:
        """Takes in probes w and their products H w. Raises InputError when those contradict symmetry."""
        krylov = self._krylov
        images, inside = _complement(krylov.basis, products)
        block = _grams(probes, images)
        rounding = 1e3 * krylov.eps * krylov.projection.norm * math.sqrt(krylov.n)
        scale = math.sqrt((1 + block.count) * float(np.trace(block.yy) + (inside**2).sum())) + rounding
        refuse_asymmetric(float(np.linalg.norm(block.wy - block.wy.T)), scale)
        if krylov.m:  # Qᵀ H w = C Fᵀ w
            expected = krylov.projection.coupling @ inner(krylov.frontier, probes).cpu().numpy()
            refuse_asymmetric(float(np.linalg.norm(inside - expected)), scale + krylov.projection.norm)
        fresh = list(range(self._drawn - probes.shape[1], self._drawn))
        if self.full(probes.shape[1]):
            if self.numbers:
                self.gathered.append(self.gather(self.numbers, self.images))
            self.gathered.append(self.gather(fresh, images))
            self.numbers = []
            self._retired += self.grams()[len(self._retired) :]
            self._probes, self._images, self._live = probes[:, :0], images[:, :0], None
            self._retired.append(block)
            return
        self._probes, self._images = torch.cat([self.probes, probes], 1), torch.cat([self.images, images], 1)
        self.numbers += fresh
        self._live = None

    def follow(self, step: Step) -> None:
        """Deflates all probes against the vectors that the step added to the basis."""
        if not self._probes.shape[1]:
            return
        self._pending.append(step)
        self._live = None
        if sum(step.vectors.shape[1] for step in self._pending) >= self._together:
            self._settle()

    def _settle(self) -> None:
        """Does what steps left to do. Of several in a row: y' = (I − X Xᵀ)(y − R a), as each R is orthogonal to the X
        up to its own."""
        if not self._pending:
            return
        vectors = torch.cat([step.vectors for step in self._pending], 1)
        remainders = torch.cat([step.remainder for step in self._pending], 1)
        self._pending = []
        a = inner(vectors, self._probes).to(self._probes.dtype)
        self._probes = self._probes - vectors @ a
        images = self._images - remainders @ a
        self._images = images - vectors @ inner(vectors, images).to(images.dtype)

    def strongest(self) -> tuple[float, Tensor] | None:
        """The direction w that the images lean to most, (n, 1), and an estimate of ‖B w‖ ≤ ‖B‖₂ without a product.

        For each probe the direction is taken from the others, as wᵀy_j = (B w)ᵀω_j has the mean square ‖B w‖² only if
        w does not know ω_j.
        """
        if self.probes.shape[1] < 4:
            return None
        yy = self.grams()[-1].yy
        squares = []
        for j in range(len(yy)):
            others = np.delete(np.arange(len(yy)), j)
            values, vectors = np.linalg.eigh(yy[np.ix_(others, others)])
            if values[-1] <= 0:
                return None
            squares.append(float(vectors[:, -1] @ yy[others, j]) ** 2 / values[-1])
        values, vectors = np.linalg.eigh(yy)
        direction = self.images @ torch.from_numpy(vectors[:, -1:] / math.sqrt(values[-1])).to(self.images)
        return math.sqrt(float(np.mean(squares))), direction


def _complement(basis: Basis, block: Tensor) -> tuple[Tensor, np.ndarray]:
    """(I − P) block, and the coefficients of what was taken off."""
    outside = block.clone()
    return outside, orthogonalise(basis, block[:, :0], outside, np.zeros((0, block.shape[1])))


def _grams(probes: Tensor, images: Tensor) -> Grams:
    ww, wy, yy = inner(probes, probes), inner(probes, images), inner(images, images)
    return Grams(ww.cpu().numpy(), wy.cpu().numpy(), yy.cpu().numpy())
