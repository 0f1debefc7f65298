"""One process and several find the same figures, with as many products."""

from functools import cache

import numpy as np
import pytest

from tests.distributed import programs
from tests.distributed.ranks import on_ranks

PROGRAMS = {
    "classifier": (programs.classifier, "cross_entropy"),
    "language model": (programs.language_model, programs.next_token),
    "convolutional": (programs.convolutional, "cross_entropy"),
}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-10, err_msg=name)
    assert found.get("hvps") == expected.get("hvps")


def every_program(rank, batches):
    return {name: programs.spectra(*of, batches) for name, of in PROGRAMS.items()}


@cache
def alone(batches):
    return every_program(0, batches)


@pytest.mark.parametrize(("size", "batches"), [(2, 5), (3, 5), (4, 3)])
def test_spectra(size, batches):
    """Ragged shares; of four ranks with three batches, one has none."""
    for found in on_ranks(every_program, size, batches):
        for name, expected in alone(batches).items():
            same(found[name], expected)


def other_calls(rank, batches):
    return programs.others(batches)


def test_other_calls_and_matrices():
    for found in on_ranks(other_calls, 2, 5):
        same(found, programs.others(5))
