import json
import math

import numpy as np
import pytest

from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Estimate
from hvpspec.results.parts import Batch, Batches
from hvpspec.results.spectrum import Spectrum


def estimate(**changes):
    return Estimate(**{"value": 12.5, "error": 0.25, "confidence": 0.95, "converged": True, "hvps": 40, **changes})


def spectrum(**changes):
    pairs = Eigenpairs(np.array([3.0, -1.0]), None, np.array([1e-3, 2e-3]), np.array([2e-3, 3e-3]), True, 12)
    return Spectrum(**{
        "parameters": 7, "eigenpairs": pairs, "trace": estimate(), "frobenius_norm": estimate(error=math.inf),
        "hvps": 52, "seconds": 1.5, "complete": True, **changes,
    })  # fmt: skip


def test_text():
    assert str(estimate()) == "12.5 ± 0.25 (0.95)"
    assert "vectors" not in repr(spectrum())


def test_dictionaries_are_json_and_come_back():
    for original in (spectrum(), spectrum(eigenpairs=None, trace=None, complete=False)):
        text = json.dumps(original.to_dict(), allow_nan=False)
        again = Spectrum.from_dict(json.loads(text))
        assert again.to_dict() == original.to_dict()
    assert Estimate.from_dict(estimate(error=math.inf).to_dict()).error == math.inf
    assert estimate(error=math.inf).to_dict()["error"] is None
    first = spectrum().to_dict()["eigenvalues"][0]
    assert first == {"value": 3.0, "error": 2e-3, "residual": 1e-3}


@pytest.mark.parametrize(
    ("changes", "converged"),
    [({}, True), ({"complete": False}, False), ({"trace": None}, False), ({"trace": estimate(converged=False)}, False)],
)
def test_converged_means_all_of_it(changes, converged):
    assert spectrum(**changes).converged is converged


def test_results_are_frozen():
    with pytest.raises(AttributeError):
        estimate().value = 3


def test_batches_are_averaged_by_their_weights():
    ends = [Estimate(value, 0.0, 0.95, True, 1) for value in (2.0, 6.0)]
    batches = [Batch(number, weight, end) for number, (weight, end) in enumerate(zip((3.0, 1.0), ends, strict=True))]
    found = Batches(tuple(batches), None, 2, 2, 2)
    assert found.mean() == 3.0  # (3 · 2 + 1 · 6) / 4
    assert found.deviation() == pytest.approx(np.sqrt(3.0))  # (3 · 1² + 1 · 3²) / 4
