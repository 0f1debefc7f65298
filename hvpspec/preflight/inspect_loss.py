"""What the user should know of how the loss is evaluated and its batches are weighed."""

from __future__ import annotations

from collections.abc import Iterator

from hvpspec.objective.objective import Objective
from hvpspec.objective.weights import BATCHES, GIVEN, SAMPLES
from hvpspec.results.preflight import Finding


def loss_findings(objective: Objective) -> Iterator[Finding]:
    """Notes on a loss that has been evaluated on all data."""
    if objective.noise_seed is not None:
        yield Finding(
            "noise",
            f"random numbers of the model and the loss are fixed by the seed {objective.noise_seed}",
            "the results are those of this one sample of the noise",
            "note",
        )
    counting = objective.counting
    if counting.is_sum:
        yield Finding(
            "sum",
            "the loss is a sum over the batch, not a mean",
            "the results grow with the number of samples; divide them by it, or return the mean, to compare runs",
            "note",
        )
    elif counting.by not in (GIVEN, SAMPLES, BATCHES):
        yield Finding(
            "weights", f"as measured, the loss is a mean over {counting.by}", "batches are weighed by that", "note"
        )
