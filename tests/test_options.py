"""The options of a run, and the plan that follows from them."""

import json
import math
from types import MappingProxyType

import numpy as np
import pytest
from estimators.spectra import matrix

import hvpspec
from hvpspec.errors import InputError
from hvpspec.options import (
    QUANTITIES,
    SpectrumOptions,
    check_only,
    fewest,
    planned_hvps,
    planned_probes,
    planned_steps,
    verification_hvps,
)


def test_they_come_out_checked_and_in_one_form():
    options = SpectrumOptions(k=np.int64(3), only="trace", blocks="layer*", basis_memory="1 kB", seed=np.uint8(7))
    assert (options.k, options.only, options.blocks, options.basis_memory) == (3, ("trace",), ("layer*",), 1000)
    assert SpectrumOptions().only == QUANTITIES
    assert SpectrumOptions(only=["density", "eigenvalues"]).only == ("eigenvalues", "density")
    assert SpectrumOptions(only=["density", "trace"]).sampled == ("trace",)
    described = SpectrumOptions(blocks={"head": slice(0, 3)}, rtol=np.float64(0.1), verify=np.bool_(True)).to_dict()
    assert json.loads(json.dumps(described))["blocks"] == ["head"]
    assert set(described) == set(SpectrumOptions.__dataclass_fields__)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a whole number"),
        ({"which": "LR"}, 'which must be one of "LM", "LA", "SA", "BE"'),
        ({"rtol": -1}, "rtol must be"),
        ({"confidence": 1}, "confidence must lie"),
        ({"tol": float("nan")}, "tol must be"),
        ({"seed": -1}, "seed must be"),
        ({"max_hvps": 0}, "max_hvps must be"),
        ({"only": "figures"}, "only must name quantities among .* got 'figures'"),
        ({"only": ()}, "got nothing"),
        ({"verify": "yes"}, "verify must be True or False"),
        ({"damping": -0.1}, "damping must be"),
        ({"refine_hvps": 0}, "refine_hvps must be"),
        ({"block_hvps": 0}, "block_hvps must be"),
        ({"block_density": True}, "block_density is of diagonal blocks"),
        ({"block_density": 1, "blocks": "*"}, "block_density must be"),
        ({"basis_memory": "much"}, "basis_memory must be"),
        ({"basis_on": "moon"}, "basis_on must be one of"),
        ({"refine": True, "only": "trace"}, "refine sharpens the conditioning, which needs the density"),
    ],
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        SpectrumOptions(**options)
    with pytest.raises(InputError, match=message):
        hvpspec.spectrum(np.eye(3), **options)


def test_quantities_that_are_not_known():
    assert check_only(MappingProxyType({"trace": 1})) == ("trace",)
    with pytest.raises(InputError, match="got 'norm'"):
        check_only(("trace", "norm"))


@pytest.mark.parametrize(
    ("options", "n", "blocks", "planned"),
    [
        ({}, 10_000, (), 26 + 46),
        ({"only": "eigenvalues"}, 10_000, (), 26),
        ({"only": "eigenvalues", "tol": 0.1}, 10_000, (), 18),
        ({"only": "eigenvalues", "which": "BE"}, 10_000, (), 103),
        ({"only": "density"}, 10_000, (), 25),
        ({"only": "trace", "rtol": 0.05}, 10_000, (), 8),
        ({"verify": True}, 10_000, (), 82),
        ({"verify": True, "max_hvps": 11}, 10_000, (), 11),
        ({}, 40, (), 48),
        ({"rtol": 0.0, "max_hvps": 500}, 10_000, (), 500),
        ({}, 10_000, (200, 3), 72 + 15 + 3),
        ({"only": "trace"}, 10_000, (200, 3), 46),
        ({"refine": True}, 10_000, (), 572),
        ({"refine": True, "damping": 0.1, "refine_hvps": 200, "max_hvps": 50}, 10_000, (), 150),
        ({"k": 7, "only": "eigenvalues"}, 3, (), 3),
        ({"blocks": "*", "block_density": True}, 10_000, (200, 3), 72 + 15 + 3 + 25 + 3),
        ({"blocks": "*", "block_density": True, "block_hvps": 9, "max_hvps": 50}, 10_000, (200, 3), 50 + 9),
    ],
)
def test_the_plan(options, n, blocks, planned):
    assert planned_hvps(SpectrumOptions(**options), n, blocks) == planned


def test_the_plan_in_parts():
    options = SpectrumOptions(k=4, rtol=0.05, verify=True)
    assert (planned_steps(options, 1000), planned_probes(options), verification_hvps(options, 1000)) == (13, 8, 4)
    assert verification_hvps(SpectrumOptions(k=4, verify=True, max_hvps=5), 1000) == 0  # nothing would be left


def test_the_fewest_probes_and_steps():
    """The minimum over m of m + N exp(−m/r), found on a grid."""
    for needed, rank in ((30, 60), (60, 60), (500, 60), (1e4, 5.5)):
        grid = [m + needed * math.exp(-m / rank) for m in range(1000)]
        assert fewest(needed, rank) == pytest.approx(min(grid), rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [{}, {"k": 3, "verify": True}, {"max_hvps": 40}, {"blocks": {"a": slice(0, 50)}}, {"refine": True, "damping": 0.5}],
)
def test_a_run_begins_with_its_plan(options):
    """The number that the first callback has is that of the pure function."""
    first = []

    def stop(step):
        first.append(step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hvpspec.spectrum(matrix("polynomial", 300), **options, callback=stop)
    sizes = [50] if "blocks" in options else []
    assert first[0].expected == planned_hvps(SpectrumOptions(**options), 300, sizes)
    assert first[0].hvps == 0
