"""How often the interval for λ_max of the population holds, on five data sets; writes results/data_error.md.

    python scripts/calibrate_data_error.py [--repetitions 100] [--short]

Each data set stands for a population: batches are drawn from it with replacement, and the largest eigenvalue on all of
it is the truth. --short: ten repetitions, printed and not written.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy import special
from torch import Tensor, nn

import hvpspec
from hvpspec.demo import CHECKPOINT, batches, build

ROOT = Path(__file__).parent.parent
DESIGNS = ((4, 25), (8, 10), (8, 40), (24, 10))  # batches, and samples in each
STEPS_OF_TRAINING = 200
SHUFFLES = 20
CONFIDENCE = 0.95
LEAST_CHANCE = 0.001


@dataclass(frozen=True)
class Population:
    model: nn.Module
    loss: str
    x: Tensor
    y: Tensor
    largest: float

    def operator(self, chosen: Tensor, size: int) -> hvpspec.HessianOperator:
        data = list(zip(self.x[chosen].split(size), self.y[chosen].split(size), strict=True))
        return hvpspec.HessianOperator(self.model, self.loss, data, verify=False, engine="autograd")

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self.x), (count,), generator=generator)

    def pairs(self, chosen: Tensor, size: int, seed: int = 0) -> hvpspec.Eigenpairs:
        return hvpspec.eigsh(self.operator(chosen, size), 1, "LA", seed=seed)


def population(model: nn.Module, loss: str, x: Tensor, y: Tensor, *, steps: int = STEPS_OF_TRAINING) -> Population:
    """Of a model that is trained for a while, so that its Hessian has outliers as those of real checkpoints do."""
    model = model.double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    criterion = {"cross_entropy": nn.functional.cross_entropy, "mse": nn.functional.mse_loss}[loss]
    for _ in range(steps):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    whole = hvpspec.HessianOperator(model, loss, [(x, y)])
    return Population(model, loss, x, y, float(hvpspec.eigsh(whole, 1, "LA", tol=1e-6).values[0]))


@cache
def digits() -> Population:
    x, y = (torch.cat(part) for part in zip(*batches(), strict=True))
    return population(hvpspec.load_checkpoint(CHECKPOINT, build()), "cross_entropy", x.double(), y, steps=0)


@cache
def text() -> Population:
    """Word pairs with Zipf's frequencies: most words are rare, and a few are in every batch."""
    generator = np.random.default_rng(0)
    frequency = 1 / np.arange(1.0, 41)
    first = generator.choice(40, 4000, p=frequency / frequency.sum())
    second = (first * 7 + generator.choice(40, 4000, p=frequency / frequency.sum())) % 40
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 8), nn.Linear(8, 40))
    return population(model, "cross_entropy", torch.from_numpy(first), torch.from_numpy(second))


@cache
def heavy_tails() -> Population:
    """Regression on lognormal features: few samples make up most of the curvature."""
    generator = torch.Generator().manual_seed(0)
    x = torch.exp(0.7 * torch.randn(4000, 20, generator=generator, dtype=torch.float64))
    x *= torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
    torch.manual_seed(0)
    return population(nn.Linear(20, 1), "mse", x, x[:, :1] + torch.randn(4000, 1, generator=generator))


@cache
def wide() -> Population:
    """More parameters than samples in a batch, and an indefinite Hessian."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 30, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 60), nn.Tanh(), nn.Linear(60, 3))
    return population(model, "cross_entropy", x, (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long(), steps=50)


@cache
def clusters() -> Population:
    """Images of noise with a bright patch in one of nine places, for a convolutional network."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 9, (1500,), generator=generator)
    x = torch.randn(1500, 1, 9, 9, generator=generator, dtype=torch.float64) / 2
    for place in range(9):
        row, column = 3 * (place // 3), 3 * (place % 3)
        x[y == place, :, row : row + 3, column : column + 3] += 1
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 9))
    return population(model, "cross_entropy", x, y)


POPULATIONS = {
    "digits classifier": digits, "word pairs": text, "heavy tails": heavy_tails, "wide MLP": wide, "images": clusters,
}  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """Of runs: how often the interval holds, is missing, and how often ± t standard errors around λ_max would hold.

    intervals: how many there are. bias, width: means, relative to the truth.
    """

    intervals: int
    held: float
    missing: float
    naive: float
    bias: float
    width: float


def calibrate(of: Population, count: int, size: int, repetitions: int) -> Counts:
    rows = []
    for seed in range(repetitions):
        chosen = of.sample(count * size, torch.Generator().manual_seed(seed))
        found = of.pairs(chosen, size, seed)
        value, interval = float(found.values[0]), found.population
        inside = math.nan if interval is None else float(interval.lower <= of.largest <= interval.upper)
        width = math.nan if interval is None else (interval.upper - interval.lower) / of.largest
        naive = abs(value - of.largest) <= 1.96 * found.data_error[0]
        rows.append((inside, interval is None, naive, value / of.largest - 1, width))
    held, _, _, _, width = np.nanmean(rows, 0)
    _, missing, naive, bias, _ = np.mean(rows, 0)
    intervals = repetitions - sum(row[1] for row in rows)
    return Counts(intervals, float(held), float(missing), float(naive), float(bias), float(width))


def silent_where_sorted(of: Population, repetitions: int, *, by_label: bool) -> tuple[float, float]:
    """Of samples that are sorted before they are put into eight batches: how often nothing is said, or what is holds.

    by_label: else by the size of the input, which drifts from the first batch to the last.
    """
    silent = held = 0
    for seed in range(repetitions):
        chosen = of.sample(320, torch.Generator().manual_seed(seed))
        keys = (of.y if by_label else of.x)[chosen].reshape(len(chosen), -1).double()
        interval = of.pairs(chosen[torch.argsort(keys.norm(dim=1), stable=True)], 40, seed).population
        silent += interval is None
        held += interval is None or interval.lower <= of.largest <= interval.upper
    return silent / repetitions, held / repetitions


def reshuffled(of: Population) -> tuple[float, float, float, float]:
    """One sample of 320 in eight batches, shuffled again and again.

    Returns the largest over the smallest standard error, the same of the interval's width, and the standard deviations
    of its lower and upper ends, in means of its width.
    """
    chosen = of.sample(320, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    found = [of.pairs(chosen[torch.randperm(320, generator=generator)], 40) for _ in range(SHUFFLES)]
    errors = [pairs.data_error[0] for pairs in found]
    ends = np.array([(i.lower, i.upper) for i in (pairs.population for pairs in found) if i is not None])
    widths = ends[:, 1] - ends[:, 0]
    lower, upper = ends.std(0) / widths.mean()
    return max(errors) / min(errors), float(widths.max() / widths.min()), float(lower), float(upper)


def table(repetitions: int) -> Iterator[str]:
    yield "| data | batches × samples | held | nothing said | ± 1.96 s.e. held | bias of λ_max | width / λ_max |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, make in POPULATIONS.items():
        for count, size in DESIGNS:
            found = calibrate(make(), count, size, repetitions)
            low = special.bdtr(round(found.held * found.intervals), found.intervals, CONFIDENCE) < LEAST_CHANCE
            held = f"{found.held:.0%} of {found.intervals}{', too few' if low else ''}"
            yield (
                f"| {name} | {count} × {size} | {held} | {found.missing:.0%} | {found.naive:.0%} | "
                f"{found.bias:+.0%} | {found.width:.2f} |"
            )


def other_orders(repetitions: int) -> Iterator[str]:
    yield (
        "| data | by label: nothing said | … or held | by size: nothing said | … or held | "
        "± data, largest / smallest | width, largest / smallest | sd of lower end | sd of upper end |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, make in POPULATIONS.items():
        cells = []
        for by_label in (True, False):
            cells += [f"{share:.0%}" for share in silent_where_sorted(make(), repetitions, by_label=by_label)]
        errors, widths, lower, upper = reshuffled(make())
        yield f"| {name} | {' | '.join(cells)} | {errors:.2f} | {widths:.2f} | {lower:.0%} | {upper:.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    repetitions = 10 if options.short else options.repetitions
    lines = [
        "# λ_max of the population: how often its interval holds",
        "",
        f"Made by `python scripts/calibrate_data_error.py --repetitions {repetitions}`; confidence 95 %. Each data set",
        "stands for a population, from which batches are drawn with replacement. Last columns: how often λ_max of",
        "the batches ± 1.96 of its standard errors would have held, by how much it is too large on average, and the",
        "mean width of the interval. Too few held where a binomial variable with the confidence would be so small with",
        f"a chance below {LEAST_CHANCE:.1%}: of 38 intervals of 95 %, 32 or fewer hold once in 92 rows.",
        "",
    ]
    for line in lines:
        print(line)
    for line in table(repetitions):
        print(line, flush=True)
        lines.append(line)
    lines += [
        "",
        "Left: eight batches of 40 from samples sorted by label, or by the size of the input. How often nothing is",
        "said, and how often that or an interval that holds. Right: the same 320 samples shuffled into eight batches",
        f"{SHUFFLES} times. How much one standard error and the width of the interval differ, and its ends, relative",
        "to the mean width.",
        "",
    ]
    for line in other_orders(max(repetitions // 5, 5)):
        print(line, flush=True)
        lines.append(line)
    if not options.short:
        (ROOT / "results" / "data_error.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
