"""No kind of fault in products, data, folds, memory or files becomes a figure beyond its error without a word.

A short form of scripts/measure_faults.py, which makes results/faults.md of many more runs.
"""

from collections import Counter
from pathlib import Path

import pytest
from bounds import faults, model_faults
from measure_faults import SEEN, kinds, unseen

import hvpspec

OF_FILES = [name for name in kinds() if name.startswith(("journal", "files", "verify"))]
OF_MODELS = [change for change in model_faults.CHANGES if change.lasting or "user" in change.name]


def check(outcomes):
    """That none is missed; how often each outcome was."""
    made = list(outcomes)
    assert [(where, said) for where, said in made if said not in SEEN] == []
    return Counter(said for _, said in made)


@pytest.mark.parametrize("kind", faults.OPERATOR_KINDS, ids=lambda kind: kind.name)
def test_wrong_products(kind):
    check(faults.outcomes(kind, range(1), 3, ["probes"]))


def test_right_products_are_not_called_wrong():
    right = faults.Kind("none", lambda product: product.y)
    assert check(faults.outcomes(right, range(3), 1)) == {"within": 6}


def test_a_wrong_matrix_is_missed_where_all_agrees():
    """So that an outcome "within" has a meaning: the checks can fail."""
    for kind in faults.CONSISTENT:
        assert all(said not in SEEN for _, said in faults.outcomes(kind, range(1), 1, ["whole space"]))


@pytest.mark.parametrize("change", OF_MODELS, ids=lambda change: change.name)
def test_data_and_parameters_that_change(change):
    check(model_faults.of_change(change, range(1), 2))


@pytest.mark.parametrize("name", model_faults.FOLDS)
def test_folds_that_do_not_add_up(name):
    assert check(model_faults.of_folds(model_faults.FOLDS[name], range(1)))["detected"] >= 4


def test_memory_that_is_short():
    check(model_faults.of_memory(0, 2, lasting=False))
    assert check(model_faults.of_memory(0, 2, lasting=True))["detected"] >= 1


@pytest.mark.parametrize("name", OF_FILES)
def test_files(name):
    check(kinds()[name](1, 2))


@pytest.mark.parametrize("rtol", [0.05, 1e-9])
def test_products_that_differ_in_float64_are_said_to(rtol):
    """From the second product on: all but the first are those of another matrix, whose figures it would give."""
    kind = faults.Kind("", faults.scaled(1e-6), lasting=True)
    with pytest.warns(RuntimeWarning, match=r"products contradict one another by .*more than rounding in float64"):
        hvpspec.spectrum(faults.Faulty(faults.Case(0), kind, 1), faults.K, rtol=rtol)


def test_the_table_has_every_kind():
    said = (Path(__file__).parents[2] / "results/faults.md").read_text()
    assert [name for name in {**kinds(), **unseen()} if f"| {name} |" not in said] == []
    assert "0 missed." in " ".join(said.split())
