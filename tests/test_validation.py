"""The checks of single options, and the tolerance of an estimate."""

import math

import numpy as np
import pytest
import torch

from hvpspec.errors import InputError
from hvpspec.validation import Tolerance, all_finite, check_count, check_seed


def test_allowed_width():
    assert Tolerance(0.1, 2.0).allowed(-30) == 3
    assert Tolerance(0.1, 2.0).allowed(5) == 2
    assert Tolerance(0.1, 2.0).allowed(5, 40) == 4


def test_what_a_tolerance_is_relative_to():
    """A value below the norm is compared with the norm, unless the absolute tolerance is the looser one."""
    assert Tolerance(0.1).relative_to(-50, 40) == "value"
    assert Tolerance(0.1).relative_to(-30, 40) == "frobenius_norm"
    assert Tolerance(0.1, atol=5.0).relative_to(-30, 40) == "value"
    assert Tolerance(0.0, atol=5.0).relative_to(-30, 40) == "value"
    assert Tolerance(0.1).relative_to(-30) == "value"
    assert Tolerance(0.1).relative_to(math.nan, math.nan) == "value"


def test_whole_numbers():
    assert check_count("k", np.int32(3)) == 3
    assert check_seed(2**64 - 1) == 2**64 - 1
    for value in (0, -1, 2.0, True, "3", None):
        with pytest.raises(InputError, match="k must be a whole number"):
            check_count("k", value)
    for value in (-1, 2**64, 1.5, False):
        with pytest.raises(InputError, match="seed must be"):
            check_seed(value)


@pytest.mark.parametrize(("entry", "finite"), [(1.0, True), (3e38, True), (math.inf, False), (math.nan, False)])
def test_finite_entries(entry, finite):
    """The sum of large entries may overflow though each is finite."""
    assert all_finite(torch.tensor([entry, entry, 1.0])) is finite
