"""The noise of a gradient, from its spread over the batches: tr Σ, with the covariance Σ of the samples' gradients.

If the N samples are put into batches at random, n_b in each, the gradient g_b of a batch's mean is that of all of them,
g, plus noise of covariance Σ/n_b, so that

    T = Σ_b ‖n_b (g_b − g)‖² = Σ_b n_b² ‖g_b‖² − 2 gᵀ Σ_b n_b² g_b + ‖g‖² Σ_b n_b²      has the mean

    tr Σ (N − Σ_b n_b² / N) N / (N − 1)                                     with Σ = (1/N) Σ_i (g_i − g)(g_i − g)ᵀ

exactly, for batches of any sizes. The weights n_b² leave only inner products of different samples to chance: the
squares of all samples are in T however they are divided, so that a few large ones do no harm.

T is about χ² with ν degrees of freedom (Satterthwaite 1946, doi:10.2307/3002019): as many as there are batches, less
one, times the number of directions d = (tr Σ)² / tr Σ² that the noise is spread over. d follows from the inner products
of the batches' noise, of which sketches are kept: random signed sums of the entries. (tr Σ / ‖g‖²: McCandlish et al.,
arXiv:1812.06162, where it is called the simple noise scale.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hvpspec.bounds.data_error import SKETCH_SUMS, signs_of_sketches, sketched
from hvpspec.bounds.population import MIN_FOLDS, in_random_order
from hvpspec.bounds.probe_intervals import chi_squared
from hvpspec.distributed.shard import added
from hvpspec.krylov.vectors import column_inner_of_part

_SEED = 0  # of the signs, which mean nothing
_MOST_COMPARED = 32  # groups of neighbouring batches whose order is looked at
_NOTHING = 1e-12
_CAUTION = 3.0  # 1/d is not taken to be less than this over the square of the number of batches


@dataclass
class Batches:
    """What is kept of each batch's gradient, by the batch's number."""

    weights: dict[int, float] = field(default_factory=dict)
    squares: dict[int, float] = field(default_factory=dict)
    sketches: dict[int, np.ndarray] = field(default_factory=dict)
    _signs: Tensor | None = None

    def receive(self, number: int, weight: float, gradient: Tensor) -> None:
        """Takes the gradient (n, 1) of a batch, which is whole, also where other vectors are spread over ranks."""
        if self._signs is None:
            self._signs = signs_of_sketches(len(gradient), _SEED, gradient.device)
        square, sketch = column_inner_of_part(gradient, gradient), sketched(gradient, self._signs)[:, 0]
        kept = torch.cat([square, sketch]).cpu().numpy()
        self.weights[number], self.squares[number], self.sketches[number] = weight, float(kept[0]), kept[1:]

    def gather(self, count: int, device: torch.device) -> None:
        """Where ranks share the batches, of which there are `count`: each gets what the others have kept."""
        kept = torch.zeros(count, 2 + SKETCH_SUMS, dtype=torch.float64)
        for number, weight in self.weights.items():
            kept[number, 0], kept[number, 1] = weight, self.squares[number]
            kept[number, 2:] = torch.from_numpy(self.sketches[number])
        everything = added(kept.to(device)).cpu().numpy()
        known = [int(number) for number in np.flatnonzero(everything[:, 0])]
        self.weights = {number: float(everything[number, 0]) for number in known}
        self.squares = {number: float(everything[number, 1]) for number in known}
        self.sketches = {number: everything[number, 2:] for number in known}

    @property
    def mean_square(self) -> float:
        """Σ_b w_b ‖g_b‖² / Σ_b w_b."""
        weights = np.array([*self.weights.values()])
        return float(weights @ np.array([*self.squares.values()]) / weights.sum())


@dataclass(frozen=True)
class Noise:
    """tr Σ, and the ends of its interval. reason: why it is not known; "" where it is."""

    trace: float = math.nan
    lower: float = 0.0
    upper: float = math.inf
    reason: str = ""


def noise_of(batches: Batches, square: float, across: float, samples: float, confidence: float) -> Noise:
    """From the batches of a pass over the data.

    square: ‖g‖². across: gᵀ Σ_b w_b² g_b / Σ_b w_b². samples: N.
    """
    if len(batches.weights) < 2:
        return Noise(reason="there is one batch only, which does not tell how samples differ; give the data in several")
    shares = np.array([*batches.weights.values()])
    shares = shares / shares.sum()
    together = float(shares @ shares)  # Σ n_b² / N²
    sketches = np.array([*batches.sketches.values()])
    noise = shares[:, None] * (sketches - shares @ sketches)
    spread = float(shares**2 @ np.array([*batches.squares.values()])) + together * (square - 2 * across)
    trace = max(spread, 0.0) * max(samples - 1, 0.0) / (1 - together)
    within = 1 - 1 / (samples * together)  # of all pairs of a batch's samples, those of two different ones
    if within <= _NOTHING:  # single samples, which leave nothing to chance
        return Noise(trace, trace, trace)
    if not _random_order(noise / shares[:, None], shares):
        return Noise(
            reason="neighbouring batches are more alike than they would be in random order, so that their spread is "
            "not that of samples; shuffle the samples before they are put into batches"
        )
    freedom = _freedom(noise, 1 / together - 1) / within
    low, high = (chi_squared((1 - side * confidence) / 2, freedom) / freedom for side in (1, -1))
    return Noise(trace, trace / high, trace / low if low > 0 else math.inf)


def _freedom(noise: np.ndarray, batches: float) -> float:
    """Degrees of freedom of Σ ‖x_b‖². noise: x_b, row by row. batches: their number less one, counted by their weights.

    With the sums S = Σ ‖x_b‖² and Q = Σ (x_bᵀ x_c)² over all b and c, (k + 1) S² − 2 Q and k Q − S² have the means
    of k (k − 1) (k + 2) (tr Σ)² and k (k − 1) (k + 2) tr Σ² for normal noise and k + 1 batches of one size.
    """
    k = batches
    total, squares = float((noise**2).sum()), float(((noise.T @ noise) ** 2).sum())
    first, second = (k + 1) * total**2 - 2 * squares, k * squares - total**2
    inverse = 1.0 if not first > 0 else min(max(second / first, 0.0) + _CAUTION / k**2, 1.0)
    return k / inverse


def _random_order(noise: np.ndarray, shares: np.ndarray) -> bool:
    """Whether the batches may be in random order, as far as means over as many neighbours each show."""
    size = -(-len(shares) // _MOST_COMPARED)
    groups = [slice(start, start + size) for start in range(0, len(shares), size)]
    if len(groups) < MIN_FOLDS:
        return True
    weights = np.array([shares[group].sum() for group in groups])
    means = np.array([shares[group] @ noise[group] for group in groups]) / weights[:, None]
    return in_random_order(np.zeros((len(groups), 1, 1)), means[:, :, None], weights)
