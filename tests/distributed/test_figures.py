"""One process and several find the same figures, with as many products."""

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
        off = 1e-6 if "bounds" in str(name) else 1e-10  # these have square roots of residuals that are rounding
        np.testing.assert_allclose(found[name], value, rtol=off, atol=off, err_msg=name)
    assert found.get("hvps") == expected.get("hvps")


def spectra(rank, batches, names):
    return {name: programs.spectra(*PROGRAMS[name], batches) for name in names}


@pytest.mark.parametrize(
    ("size", "batches", "names"), [(2, 5, tuple(PROGRAMS)), (3, 5, ("classifier",)), (4, 3, ("language model",))]
)
def test_spectra(size, batches, names):
    """Ragged shares; of four ranks with three batches, one has none."""
    expected = spectra(0, batches, names)
    for found in on_ranks(spectra, size, batches, names):
        for name in names:
            same(found[name], expected[name])


def other_calls(rank, batches):
    return programs.others(batches)


def test_other_calls_and_matrices():
    expected = programs.others(3)
    for found in on_ranks(other_calls, 2, 3):
        same(found, expected)
