"""A rank's part of a random vector is that part of the whole one."""

import pytest
import torch

from hvpspec.distributed.group import shares
from hvpspec.kernels.random_vectors import CHUNK, gaussian, probes, rademacher
from hvpspec.krylov.blocks import BlockRows

N = 70 * CHUNK + 13  # more than is filled at once
ROWS = [range(10), range(7, 99), range(CHUNK - 6, CHUNK + 9), range(64 * CHUNK - 5, N), range(N - 1, N)]
OPTIONS = {"seed": 3, "dtype": torch.float64, "device": torch.device("cpu")}


@pytest.mark.parametrize("draw", [rademacher, probes, lambda rows, numbers, **of: gaussian(rows, numbers[0], **of)])
def test_random_vectors(draw):
    whole = draw(N, [2, 5], **OPTIONS)
    for rows in ROWS:
        assert torch.equal(draw(rows, [2, 5], **OPTIONS), whole[rows.start : rows.stop])


@pytest.mark.parametrize(("n", "size"), [(10, 1), (10, 3), (3, 3), (1000, 7)])
def test_parts_are_as_equal_as_possible(n, size):
    found = shares(n, size)
    assert sum(found) == n
    assert max(found) - min(found) <= 1


@pytest.mark.parametrize("positions", [(slice(2, 5), slice(7, 9)), torch.tensor([8, 1, 4]), (slice(9, 10),)])
def test_rows_of_a_block(positions):
    size = len(positions) if isinstance(positions, torch.Tensor) else sum(part.stop - part.start for part in positions)
    block, X = BlockRows("b", size, positions), torch.arange(10.0)[:, None]
    own, total = block.take(X), torch.zeros(size, 1)
    for rows in (range(4), range(4, 6), range(6, 10)):
        part, numbers = block.within(rows).take(X[rows.start : rows.stop]), block.numbered_within(rows)
        assert torch.equal(numbers.take(own), part)
        total += numbers.embed(part, size)
    assert torch.equal(total, own)
