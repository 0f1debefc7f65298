"""Calls with parts of their own for ranks find what one process finds."""

import pytest

from tests.distributed import calls
from tests.distributed.ranks import on_ranks
from tests.distributed.test_figures import same


def made(rank, batches):
    return {"gradients": calls.gradients(batches)}


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
