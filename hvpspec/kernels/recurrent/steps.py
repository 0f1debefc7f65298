"""Which rows of a matrix are which step of which sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """Rows in the order of the steps: first step 0 of every sequence, then step 1 of those that have one, and so on.

    sizes: how many rows each step has, never more than the step before: the longest sequences come first. One number
        where all sequences have the same length.
    The others are numbers of rows, and None where all sequences have the same length: `previous`, in the initial values
    with the rows below them, of the step before each row; `mirrored`, of the step as far from the sequence's other end;
    `ends`, of the last step of each sequence.
    """

    sizes: list[int]
    previous: Tensor | None = None
    mirrored: Tensor | None = None
    ends: Tensor | None = None

    def before(self, values: Tensor, initial: Tensor) -> Tensor:
        """For each row its value at the step before."""
        if len(values) == len(initial):
            return initial
        if self.previous is None:
            return torch.cat([initial, values[: -len(initial)]])
        return torch.cat([initial, values]).index_select(0, self.previous)

    def reversed(self, values: Tensor) -> Tensor:
        """Each sequence from its end to its beginning."""
        if self.mirrored is None:
            return values.view(-1, self.sizes[0], values.shape[1]).flip(0).flatten(0, 1)
        return values.index_select(0, self.mirrored)

    def last(self, values: Tensor) -> Tensor:
        """The value of each sequence at its last step."""
        return values[-self.sizes[-1] :] if self.ends is None else values.index_select(0, self.ends)


def packed(sizes: Sequence[int], device: torch.device) -> Steps:
    """The steps of sequences of these sizes, such as a PackedSequence's `batch_sizes`."""
    if sizes[0] == sizes[-1]:
        return Steps([sizes[0]])
    counts = torch.tensor(sizes)
    starts = counts.cumsum(0) - counts
    step = torch.arange(len(counts)).repeat_interleave(counts)
    sequence = torch.arange(int(counts.sum())) - starts[step]
    lengths = (counts[:, None] > torch.arange(sizes[0])).sum(0)
    before = torch.cat([torch.zeros(1, dtype=torch.long), sizes[0] + starts[:-1]])
    return Steps(
        list(sizes),
        previous=(before[step] + sequence).to(device),
        mirrored=(starts[lengths[sequence] - 1 - step] + sequence).to(device),
        ends=(starts[lengths - 1] + torch.arange(sizes[0])).to(device),
    )
