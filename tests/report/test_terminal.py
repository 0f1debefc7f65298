import math

import numpy as np
import pytest

from hvpspec.report.notes import shortfalls
from hvpspec.report.numbers import rounded, with_error
from hvpspec.report.terminal import spectrum_table
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Estimate
from hvpspec.results.spectrum import Spectrum
from hvpspec.wording import counted


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (12.345678, 0.00051, ("12.34568", "0.00051")),
        (-12.345678, 0.51, ("-12.35", "0.51")),
        (0.000123456, 1e-6, ("0.0001235", "1e-06")),
        (5.0, 7.0, ("5.0", "7")),
        (3.0, 1e-16, ("3.00000000", "1e-16")),
        (3.0, 0.0, ("3", "0")),
        (0.0, 0.1, ("0", "0.1")),
        (1234.5, 12, ("1234", "12")),
        (3.0, math.inf, ("3", "unknown")),
        (501, 2500, ("500", "2500")),
        (3.14159e9, 1e10, ("3e+09", "1e+10")),
    ],
)
def test_digits_follow_the_error(value, error, shown):
    assert with_error(value, error) == shown


@pytest.mark.parametrize(("value", "shown"), [(99.7, "100"), (123.4, "120"), (0.00123, "0.0012"), (3e9, "3e+09")])
def test_numbers_are_written_out(value, shown):
    assert rounded(value, 2) == shown


def render(spectrum):
    return "\n".join(spectrum_table(spectrum).lines(80))


def test_table_and_shortfalls():
    pairs = Eigenpairs(np.array([3.0, -1.0]), None, np.zeros(2), np.array([1e-3, 2e-2]), False, 12)
    trace = Estimate(12.5, 0.5, 0.9, False, 40)
    text = render(Spectrum(7, pairs, trace, None, 52, 1.5, True))
    assert "λ1" in text
    assert "-1.00" in text
    assert "± error (90 %)" in text.splitlines()[0]
    assert "tolerance not reached" in text
    assert "not reached" in text.splitlines()[-1]
    notes = shortfalls(Spectrum(7, pairs, trace, None, 52, 1.5, True), rtol=0.01, tol=1e-3)
    assert [note.split()[0] for note in notes] == ["Not", "The", "The"]
    assert "±4.00%, not to the ±1.00%" in notes[1]
    exact = Estimate(12.5, 1e-15, 0.95, True, 40, "exact")
    assert "exact, up to rounding" in render(Spectrum(7, None, exact, exact, 52, 1.5, True))


def test_one_of_a_kind_is_no_plural():
    assert [counted(number, "block") for number in (0, 1, 2, 1200)] == [
        "0 blocks",
        "1 block",
        "2 blocks",
        "1,200 blocks",
    ]
