"""Calls with parts of their own for ranks find what one process finds."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from tests.distributed import calls
from tests.distributed.ranks import on_ranks
from tests.distributed.test_figures import same

BATCHES = 5


CALLS = {"gradients": calls.gradients, "batches": calls.single_batches, "budget": calls.short_budget}


def made(rank, batches, names, folder=None):
    found = {name: CALLS[name](batches) for name in names}
    if folder is not None:
        of_files = calls.loaded if Path(folder, "whole").exists() else calls.saved
        found["files"] = of_files(batches, folder)
    return found


@pytest.fixture(scope="module")
def alone():
    return made(0, BATCHES, ("gradients", "batches"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def ranks(folder):
    """What two ranks find, and what three, which read what the two have written; of single batches three alone."""
    return [on_ranks(made, size, BATCHES, names, str(folder)) for size, names in ((2, ("gradients",)), (3, (*CALLS,)))]


def test_gradients(ranks, alone):
    figures, reasons = alone["gradients"]
    for found in itertools.chain(*ranks):
        same(found["gradients"][0], figures)
        assert found["gradients"][1] == reasons


def test_single_batches(ranks, alone):
    """Also of a sample of the batches, whose numbers and noise do not depend on the ranks."""
    for found in ranks[1]:
        for name, expected in alone["batches"].items():
            same(found["batches"][name], expected)


def test_budget_and_end_of_single_batches(ranks):
    for found, last, ended, then in (each["budget"] for each in ranks[1]):
        assert 5 <= found.hvps <= 11
        assert not any(batch.largest.converged for batch in found.batches)
        assert ended
        assert last.batches  # what other ranks have found by then, too
        assert len(then["ends"]) == 6


def test_eigenvectors_saved_by_two_ranks_are_read_by_three_and_by_one(ranks, folder):
    values, vectors = ranks[0][0]["files"]
    read = [each["files"] for each in ranks[1]]
    assert sum(of[0][1] for of in read) == len(vectors)
    for of in (*read, calls.loaded(BATCHES, folder)):
        for own_values, _rows, whole, warm, hvps in of:
            assert np.array_equal(own_values, values)
            assert np.array_equal(whole, vectors)
            np.testing.assert_allclose(warm, values, rtol=1e-9)
            assert hvps == of[0][4]
