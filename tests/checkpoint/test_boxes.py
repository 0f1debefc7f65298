"""Ranges of the flattened entries of a tensor as boxes."""

import math

import numpy as np
import pytest

from hvpspec.checkpoint.formats.boxes import boxes


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4), (1, 1, 5), (2, 1, 3, 2), (5, 1)])
def test_boxes_make_up_every_range(shape):
    n = math.prod(shape)
    entries = np.arange(n).reshape(shape)
    for start in range(n + 1):
        for stop in range(start, n + 1):
            found = []
            for box in boxes(shape, range(start, stop)):
                window = tuple(slice(a, a + b) for a, b in zip(box.offsets, box.sizes, strict=True))
                assert entries[window].shape == box.sizes
                assert entries[window].ravel().tolist() == list(box.positions)
                found += box.positions
            assert found == list(range(start, stop))


def test_they_are_few():
    assert max(len(list(boxes((50, 40, 30), range(start, 60_000 - start)))) for start in range(0, 3000, 7)) <= 5
