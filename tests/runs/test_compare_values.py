"""Which eigenvalues of two runs are compared with each other, whichever were asked for."""

import json

import numpy as np
import pytest

import hvpspec
from hvpspec.plots.spectrum import panels
from hvpspec.results.spectrum import Spectrum
from hvpspec.runs.compare_values import values_of

MATRIX = np.diag([7.0, 5.0, 0.5, 0.4, -0.3, -6.0, -8.0])


@pytest.mark.parametrize(
    ("which", "top", "bottom"),
    [
        ("LM", [7, 5], [-8, -6]),
        ("LA", [7, 5, 0.5, 0.4], []),
        ("SA", [], [-8, -6, -0.3, 0.4]),
        ("BE", [7, 5], [-8, -6]),
    ],
)
def test_eigenvalues_count_from_their_own_end(which, top, bottom):
    """The smallest four include a positive one, which is not the largest eigenvalue."""
    found = hvpspec.spectrum(MATRIX, 4, which=which)
    values = values_of(Spectrum.from_dict(json.loads(json.dumps(found.to_dict()))))
    for end, expected in (("top", top), ("bottom", bottom)):
        named = [value.value for name, value in values.items() if name.startswith("λ") and name.endswith(f"the {end}")]
        np.testing.assert_allclose(named, expected)
    others = "mean of 3 others" if which == "LM" else f"mean of 3 others ({which})"
    assert others in values


def test_a_spectrum_names_the_eigenvalues_that_it_has():
    found = hvpspec.spectrum(MATRIX, 2, which="SA")
    assert Spectrum.from_dict(found.to_dict()).which == "SA"
    old = found.to_dict()
    del old["which"]
    assert Spectrum.from_dict(old).which == "LM"  # files of versions that had no choice
    (scree,) = (panel for panel in panels(found) if panel.name == "scree")
    assert scree.title == "Smallest eigenvalues"
    assert "smallest eigenvalues" in scree.alt
