"""Rows of a series against numbers by hand."""

import numpy as np
import pytest
from report import examples

import hvpspec
from hvpspec.cli import series
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bracket
from hvpspec.results.runs.tracked import Tracked
from hvpspec.runs.series_rows import COLUMNS, edge, row


def made(spectrum, **changes):
    options = {"checkpoint": "a.pt", "step": 3, "loss": 0.5, "lr": None, "sha256": "0" * 64, **changes}
    return row(Tracked(spectrum, None, None, 12), **options)


def test_the_edge_with_and_without_momentum():
    assert edge(10.0, 0.1) == {"edge": pytest.approx(20), "lambda_max_over_edge": pytest.approx(0.5)}
    assert edge(19.0, 0.1, 0.9) == {"edge": pytest.approx(38), "lambda_max_over_edge": pytest.approx(0.5)}
    assert edge(None, 0.1)["lambda_max_over_edge"] is None
    assert edge(10.0, None) == {"edge": None, "lambda_max_over_edge": None}
    assert made(examples.spectrum(), lr=0.1, momentum=0.5)["lambda_max_over_edge"] == pytest.approx(50 / 30)


def test_extreme_eigenvalues_are_the_ritz_values():
    found = made(examples.spectrum())
    assert tuple(found) == COLUMNS
    assert (found["lambda_max"], found["lambda_max_error"], found["lambda_max_upper"]) == (50.0, 2.0, 52.0)
    assert (found["lambda_min"], found["lambda_min_error"], found["lambda_min_lower"]) == (-20.0, 0.5, -21.0)
    assert (found["trace"], found["trace_error"]) == (36.2, 1.5)


def test_brackets_take_over_where_they_lie_further_out():
    """All of the largest magnitude are negative: λ_max is known by its bracket."""
    pairs = examples.spectrum().eigenpairs
    negative = Eigenpairs(
        pairs.values[[1, 3]], None, pairs.residuals[:2], pairs.error[[1, 1]], True, 9,
        largest=Bracket(4.0, 6.0, 0.95), smallest=Bracket(-21.0, -20.0, 0.95),
    )  # fmt: skip
    found = made(examples.spectrum(eigenpairs=negative))
    assert (found["lambda_max"], found["lambda_max_error"]) == (4.0, 2.0)
    assert (found["lambda_min"], found["lambda_min_error"]) == (-20.0, 0.5)


def test_each_quantity_says_whether_it_is_within_its_tolerance():
    spectrum = hvpspec.spectrum(
        np.diag([30.0, *np.linspace(-1, 3, 299)]), 3, max_hvps=30, rtol=0.003, refine=True, refine_hvps=4
    )
    found, document = made(spectrum), spectrum.to_dict()
    assert not found["converged"]
    for name in ("trace", "frobenius_norm", "density"):
        assert found[f"{name}_converged"] == document[name]["converged"]
    for name in ("eigenvalues_converged", "eigenvalues_all_copies"):
        assert found[name] == document[name]
    assert found["refined_converged"] == document["condition"]["refined"]["converged"]
    assert made(examples.spectrum(density=None, condition=None))["density_converged"] is None


def test_a_line_marks_what_is_not_within_its_tolerance():
    entry = made(hvpspec.spectrum(np.diag([30.0, *np.linspace(-1, 3, 299)]), 3, max_hvps=30, rtol=0.2))
    assert series._line(entry).count("†") == 1
    assert "†" not in series._line({**entry, "eigenvalues_converged": None})
