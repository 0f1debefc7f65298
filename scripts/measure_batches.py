"""λ_max of each of 64 mini-batches of the digits classifier: what it takes, and how far it is from that of all data.

python scripts/measure_batches.py        a few minutes; writes results/batches.md and results/batches.png

The values are compared with SciPy's eigsh on each batch's operator. Warm starts (from the eigenvector of all data, and
from that of the batch before) are measured with the same stopping rule.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import scipy.sparse.linalg as sla
import torch
from torch import Tensor
from usage import only_help

import hvpspec
from hvpspec.demo import CHECKPOINT, batches, build
from hvpspec.estimators.passes.ends import Ends
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.plots.batches import batches_panels
from hvpspec.plots.spectrum import panels
from hvpspec.plots.style import drawn, to_bytes

RESULTS = Path(__file__).resolve().parent.parent / "results"
RTOL = 0.01  # of the intervals, as by default
Batch = tuple[Tensor, Tensor]


def split(count: int) -> list[Batch]:
    """The digits in so many batches of about one size."""
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    return [(images[i::count], labels[i::count]) for i in range(count)]


def operator(data: list[Batch]) -> hvpspec.HessianOperator:
    """Of the packaged checkpoint."""
    model = hvpspec.load_checkpoint(CHECKPOINT, build())
    return hvpspec.HessianOperator(model, "cross_entropy", data, dtype="float64", engine="autograd")


def started(H: hvpspec.HessianOperator, first: np.ndarray, *, previous: bool) -> list[int]:
    """Products that each batch takes with a warm start: from `first`, or from the eigenvector of the batch before."""
    taken, direction = [], first
    for number, find in H.batch_operators(range(H.batch_count())):
        shared = SharedPass(
            as_symmetric(find()[1]), seed=1, storage=check_storage(None, "device"), probes=False, first_draw=number,
            towards=direction,
        )  # fmt: skip
        ends = Ends(shared, 0.95)
        for _ in ends.steps(100, 1):
            if ends.within(1, RTOL * ends.norm):
                break
        taken.append(shared.hvps)
        if previous:
            direction = shared.krylov.vectors(shared.krylov.ritz().coefficients[:, -1:]).numpy()
    return taken


def contradicted(H: hvpspec.HessianOperator, found: hvpspec.Batches) -> int:
    """How many intervals do not hold what SciPy finds."""
    wrong = 0
    for number, find in H.batch_operators(range(H.batch_count())):
        (top,) = sla.eigsh(find()[1], 1, which="LA", tol=1e-10, return_eigenvectors=False)
        low, high = found.batches[number].largest.interval
        wrong += not low - 1e-9 <= top <= high + 1e-9
    return wrong


def row(name: str, taken: list[int]) -> str:
    return f"| {name} | {sum(taken):,} | {np.mean(taken):.1f} | {max(taken)} |"


def sizes() -> list[str]:
    """λ_max of batches of several sizes."""
    lines = []
    for count in (16, 64, 256):
        H = operator(split(count))
        found = hvpspec.per_batch(H, rtol=RTOL)
        values, samples = found.values(), 1797 / count
        lines.append(
            f"| {count} | {samples:.0f} | {found.mean():.2f} | {found.deviation():.2f} | {values.min():.2f} … "
            f"{values.max():.2f} | {found.hvps / count:.1f} |"
        )
    return lines


def main() -> None:
    H = operator(split(64))
    pairs = hvpspec.eigsh(H, 3, "LA", tol=1e-6)
    start = time.process_time()
    found = hvpspec.per_batch(H, rtol=RTOL, pairs=pairs)
    seconds = time.process_time() - start
    H @ np.ones(H.shape[0])
    start = time.process_time()
    for _ in range(5):
        H @ np.ones(H.shape[0])
    product = (time.process_time() - start) / 5
    cold = [batch.largest.hvps for batch in found.batches]
    assert pairs.vectors is not None
    wrong, ratio = contradicted(H, found), seconds / product
    version = torch.__version__.split("+")[0]
    low, high, mean, top = found.values().min(), found.values().max(), found.mean(), pairs.values[0]
    text = f"""# λ_max of every mini-batch

Made by `python scripts/measure_batches.py`; torch {version}, float64, engine autograd. The digits classifier, 3,466
parameters, its 1,797 images in 64 mini-batches of 28 or 29. Products with the matrix of one batch each, until λ_max is
known to {RTOL:.0%} at 95 %:

| start | products | a batch | most |
| --- | ---: | ---: | ---: |
{row("random: `hvpspec.per_batch`", cold)}
{row("warm, from the eigenvector of all data", started(H, pairs.vectors[:, :1], previous=False))}
{row("warm, from three of them", started(H, pairs.vectors, previous=False))}
{row("warm, from the batch before", started(H, pairs.vectors[:, :1], previous=True))}

A warm start saves nothing: λ_max itself is found sooner, but half of the start is random, so that to show that nothing
lies beyond takes as many steps more. SciPy's `eigsh`, to 1e-10, contradicts {wrong} of the 64 intervals.

The work is that of {sum(cold) / 64:.1f} products with all data. The processor time was that of {ratio:.0f} of them: on
a network this small, most of what a product with one batch costs does not depend on the batch.

λ_max of all data is {top:.3f}. Of batches:

| batches | images each | mean | standard deviation | range | products a batch |
| ---: | ---: | ---: | ---: | ---: | ---: |
{chr(10).join(sizes())}

![Above: a histogram of λ_max of the 64 mini-batches, from {low:.1f} to {high:.1f}. A solid line marks that of all data
at {top:.2f}, near the lower end, and a dashed one the mean at {mean:.1f}. Below: the densities of the diagonal blocks
of the three layers, on the same axes.](batches.png)
"""
    spectrum = hvpspec.spectrum(H, k=1, rtol=0.1, blocks="*", block_density=True)
    densities = [panel for panel in panels(spectrum) if panel.name == "block-densities"]
    shown = [*batches_panels(found), *densities]
    (RESULTS / "batches.png").write_bytes(to_bytes(drawn(shown), "png"))
    (RESULTS / "batches.md").write_text(text)
    print(text)


if __name__ == "__main__":
    only_help(__doc__)
    main()
