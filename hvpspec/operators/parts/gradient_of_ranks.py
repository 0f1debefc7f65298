"""The gradient of the loss where ranks share the batches: each adds up its own, and gets its rows of the sum."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import torch

from hvpspec.objective.losses.conventions import NoWeight
from hvpspec.objective.objective import Objective
from hvpspec.operators.parts.ranks import Ranks
from hvpspec.oracle.loss_gradient import LossGradient, Receive, Sums, no_batches, sums
from hvpspec.system.stops import asked


def gradient_of_ranks(ranks: Ranks, objective: Objective, receive: Receive) -> LossGradient:
    """As `loss_gradient`, to be called on all ranks; `receive` is told of this rank's batches."""
    ranks.settle()
    group = ranks.group

    def each(*batch: Any) -> None:
        if (stop := asked()) is not None:
            raise stop
        receive(*batch)

    def own() -> Sums:
        with contextlib.suppress(NoWeight):
            if ranks.has_data:
                return sums(objective, each)
        return no_batches(objective)

    found = group.together(own)
    weight, squares, samples = (sum(group.met(each)) for each in (found.weight, found.squares, found.samples))
    sizes = {size for told in group.told(json.dumps(sorted(found.sizes))) for size in json.loads(told)}
    # One after the other: what is sent is a copy.
    columns = torch.cat([ranks.shard.added_part(column[:, None]) for column in found.columns.T], 1)
    mean = Sums(columns, weight, squares, samples, sizes).mean(objective)
    return mean._replace(by_samples=group.agreed(mean.by_samples))  # a rank without data does not know
