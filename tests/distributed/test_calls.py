"""Calls with parts of their own for ranks find what one process finds."""

import pytest

from tests.distributed import calls
from tests.distributed.ranks import on_ranks
from tests.distributed.test_figures import same


def made(rank, batches):
    named = {"gradients": calls.gradients, "batches": calls.single_batches, "budget": calls.short_budget}
    return {name: call(batches) for name, call in named.items()}


@pytest.fixture(scope="module")
def alone():
    return made(0, 5)


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request):
    return on_ranks(made, request.param, 5)


def test_gradients(ranks, alone):
    figures, reasons = alone["gradients"]
    for found in ranks:
        same(found["gradients"][0], figures)
        assert found["gradients"][1] == reasons


def test_single_batches(ranks, alone):
    """Also of a sample of the batches, whose numbers and noise do not depend on the ranks."""
    for found in ranks:
        for name, expected in alone["batches"].items():
            same(found["batches"][name], expected)


def test_budget_and_end_of_single_batches(ranks):
    for found, last, ended, then in (each["budget"] for each in ranks):
        assert 5 <= found.hvps <= 11
        assert not any(batch.largest.converged for batch in found.batches)
        assert ended
        assert last.batches  # what other ranks have found by then, too
        assert len(then["ends"]) == 6
