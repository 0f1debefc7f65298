"""The time that the matrices of single batches add to a forecast."""

import pytest

from hvpspec.options import BatchOptions
from hvpspec.preflight.per_batch import planned_per_batch, with_per_batch
from hvpspec.results.preflight import Preflight


def test_a_product_with_one_batch_takes_its_part():
    known = Preflight(seconds=6.0, expected_seconds=100.0, most_seconds=300.0)
    found = with_per_batch(known, planned_per_batch(60, BatchOptions()))
    assert found.expected_seconds == pytest.approx(100 + 60 * (8 + 1) * 0.1 + 60 * 8 * 5e-3)
    assert found.most_seconds == pytest.approx(300 + 60 * (20 + 1) * 0.1 + 60 * 20 * 5e-3)
    some = planned_per_batch(5000, BatchOptions(which="BE", max_batches=100, max_hvps=900))
    assert (some.batches, some.of, some.expected_hvps, some.most_hvps) == (100, 5000, 900, 900)


def test_nothing_is_added_to_what_is_not_known():
    assert with_per_batch(Preflight(), planned_per_batch(3, BatchOptions())) == Preflight()
