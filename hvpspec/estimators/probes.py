"""Random sign probes on the complement of a basis, and the small matrices that all their figures come from.

With P the projector on the basis and B = (I − P) H (I − P), a probe is w = (I − P) ω for random signs ω, and its image
y = B w. When the basis grows by X with the remainder R = (I − P') H X, both follow without a product:

    w' = w − X a,    y' = (I − X Xᵀ) y − R a,    a = Xᵀ w

so that all probes serve the basis of the moment, whenever they were made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvpspec.estimators.basis import Basis
from hvpspec.estimators.krylov import Krylov, Step
from hvpspec.estimators.symmetric import refuse_asymmetric
from hvpspec.estimators.vectors import inner, rademacher


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

    Once a block of probes is retired the basis must not grow any more.
    """

    def __init__(self, krylov: Krylov, capacity: int) -> None:
        self._krylov = krylov
        self._capacity = capacity
        self._drawn = 0
        self.clear()

    def clear(self) -> None:
        """Forgets all probes; those to come are others."""
        self.probes = self._krylov.frontier.new_empty(self._krylov.n, 0)
        self.images = self.probes
        self._retired: list[Grams] = []
        self._live: Grams | None = None

    @property
    def count(self) -> int:
        return self.probes.shape[1] + sum(grams.count for grams in self._retired)

    @property
    def frozen(self) -> bool:
        return bool(self._retired)

    def full(self, count: int) -> bool:
        """Whether `count` more probes would be retired at once."""
        return self.frozen or self.probes.shape[1] + count > self._capacity

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
        if self.full(probes.shape[1]):
            self._retired += self.grams()[len(self._retired) :]
            self.probes, self.images, self._live = probes[:, :0], images[:, :0], None
            self._retired.append(block)
            return
        self.probes = torch.cat([self.probes, probes], 1)
        self.images = torch.cat([self.images, images], 1)
        self._live = None

    def follow(self, step: Step) -> None:
        """Deflates all probes against the vectors that the step added to the basis."""
        if not self.probes.shape[1]:
            return
        a = inner(step.vectors, self.probes).to(self.probes.dtype)
        along = inner(step.vectors, self.images).to(self.images.dtype)
        self.probes = self.probes - step.vectors @ a
        self.images = self.images - step.vectors @ along - step.remainder @ a
        self._live = None

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
    """(I − P) block, projected twice, and the coefficients of what was taken off."""
    total = np.zeros((basis.m, block.shape[1]))
    for _ in range(2 if basis.m else 0):
        inside = basis.inner(block)
        block = block - basis.combine(inside)
        total += inside.cpu().numpy()
    return block, total


def _grams(probes: Tensor, images: Tensor) -> Grams:
    ww, wy, yy = inner(probes, probes), inner(probes, images), inner(images, images)
    return Grams(ww.cpu().numpy(), wy.cpu().numpy(), yy.cpu().numpy())
