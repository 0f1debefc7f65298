"""Differences and their errors, against numbers made by hand and by simulation."""

import dataclasses
import json
import math
import re

import jsonschema
import numpy as np
import pytest
from report import examples
from scipy import stats

from hvpspec.atomic_files import write_json
from hvpspec.errors import InputError
from hvpspec.plots.comparison import plot_comparison
from hvpspec.report.documents import schema, to_document
from hvpspec.report.explanations import EXPLANATIONS
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Estimate
from hvpspec.results.record import Record
from hvpspec.results.runs.comparison import Value
from hvpspec.runs.compare import combined, compared, read_runs
from hvpspec.runs.compare_table import comparison_explanations, comparison_notes, comparison_tables


def runs(tmp_path, *documents, shared=False):
    """Each of a seed of its own, unless `shared`."""
    paths = []
    for i, document in enumerate(documents):
        (tmp_path / f"run{i}").mkdir(exist_ok=True)
        paths.append(tmp_path / f"run{i}")
        seed = {} if shared else {"seed": i}
        document = {**document, "provenance": {**seed, **document["provenance"]}}
        write_json(paths[-1] / "spectrum.json", document)
    return read_runs(paths)


def with_trace(value, error, confidence=0.95, **changes):
    found = examples.spectrum(trace=Estimate(value, error, confidence, True, 30), **changes)
    return to_document(Record(found, 0.5))


def test_errors_combine():
    random = [Value(1.0, 3.0, 0.95), Value(2.0, 4.0, 0.95)]
    assert combined(*random, 0.95) == pytest.approx(5.0)
    certain = [Value(1.0, 3.0, None), Value(2.0, 4.0, None)]
    assert combined(*certain, 0.95) == combined(*certain, 0.999) == pytest.approx(7.0)
    assert combined(certain[0], random[1], 0.95) == pytest.approx(7.0)
    widened = 5.0 * stats.t.ppf(0.9975, 7) / stats.t.ppf(0.975, 7)
    assert combined(*random, 0.995) == pytest.approx(widened)
    assert combined(*random, 0.5) == pytest.approx(5.0)  # never narrower than what was measured
    assert math.isinf(combined(Value(1.0, math.inf, 0.95), random[1], 0.95))


def test_intervals_of_other_confidence_are_made_equal_first():
    low, high = Value(0.0, 1.0, 0.9), Value(0.0, 1.0, 0.99)
    ratio = stats.t.ppf(0.975, 7) / stats.t.ppf(0.95, 7)
    assert combined(low, high, 0.95) == pytest.approx(math.hypot(ratio, 1.0))


def test_significance_by_hand(tmp_path):
    """Two runs whose traces differ by d: significant from the widened quadrature sum on, not below."""
    only = {"eigenpairs": None, "frobenius_norm": None, "density": None}
    limit = math.hypot(3.0, 4.0)  # one figure alone: nothing is widened
    for d, significant in ((limit * 1.001, True), (limit * 0.999, False), (-limit * 1.001, True)):
        found = compared(runs(tmp_path, with_trace(100.0, 3.0, **only), with_trace(100.0 + d, 4.0, **only)))
        (row,) = found.differences
        assert (row.quantity, row.run) == ("trace", "run1")
        assert row.difference == pytest.approx(d)
        assert row.error == row.limit == pytest.approx(limit)
        assert row.significant is significant


def test_several_figures_widen_the_intervals(tmp_path):
    found = compared(runs(tmp_path, with_trace(100.0, 3.0), with_trace(106.0, 4.0)))
    rows = {row.quantity: row for row in found.differences}
    names = [
        "λ1 from the top",
        "λ2 from the top",
        "λ1 from the bottom",
        "λ2 from the bottom",
        "λ_max",
        "λ_min",
        "trace",
        "Frobenius norm",
    ]
    assert list(rows) == names
    widening = stats.t.ppf(1 - 0.05 / 8 / 2, 7) / stats.t.ppf(0.975, 7)
    assert rows["trace"].error == pytest.approx(5.0)
    assert rows["trace"].limit == pytest.approx(5.0 * widening)
    assert not rows["trace"].significant  # 6 is beyond 5, but not beyond what eight figures ask for
    assert rows["λ1 from the top"].error == rows["λ1 from the top"].limit == 4.0  # bounds: 2 + 2
    assert math.isinf(rows["λ2 from the bottom"].error)


def test_false_alarms_are_as_rare_as_stated(tmp_path):
    """The same Hessian measured again: of 800 sets of six figures, at most one in twenty shows a difference."""
    rng = np.random.default_rng(0)
    half = {nu: stats.t.ppf(0.975, nu) for nu in (7, 30)}
    alarms = 0
    for trial in range(800):
        nu = (7, 30)[trial % 2]
        hit = False
        for _ in range(6):
            pair = []
            for _ in range(2):
                samples = rng.standard_normal(nu + 1)
                pair.append(Value(samples.mean(), half[nu] * samples.std(ddof=1) / math.sqrt(nu + 1), 0.95))
            hit |= abs(pair[0].value - pair[1].value) > combined(*pair, 1 - 0.05 / 6)
        alarms += hit
    assert alarms <= 0.05 * 800
    assert alarms >= 2  # nor is everything called alike


def test_eigenvalues_are_counted_from_their_end_of_the_spectrum(tmp_path):
    def with_values(*values):
        values = np.array(values)
        pairs = Eigenpairs(values, None, np.zeros(len(values)), np.full(len(values), 1e-3), True, 9)
        return with_trace(1.0, 1.0, eigenpairs=pairs)

    found = compared(runs(tmp_path, with_values(3.0, -2.99, 1.0), with_values(-3.01, 3.0, 1.0)))
    rows = {row.quantity: row for row in found.differences}
    assert rows["λ1 from the top"].difference == 0
    assert rows["λ1 from the bottom"].difference == pytest.approx(-0.02)
    assert rows["λ1 from the bottom"].significant
    assert rows["λ2 from the top"].difference == 0


def test_conditioning_is_compared_where_the_damping_is_the_same(tmp_path):
    mine = {**examples.CONDITION, "effective_dimension": examples.estimate(10.0, 0.5)}
    other = {**mine, "effective_dimension": examples.estimate(20.0, 0.5), "stable_rank": examples.estimate(2.0, 0.03)}
    names = [
        row.quantity
        for row in compared(runs(tmp_path, *(examples.document(condition=c) for c in (mine, other)))).differences
    ]
    assert {"stable rank", "effective dimension of H + 0.1 I", "sum of negative |λ|", "κ of H + 0.1 I"} <= {*names}
    other["damping"] = 0.2
    names = [
        row.quantity
        for row in compared(runs(tmp_path, *(examples.document(condition=c) for c in (mine, other)))).differences
    ]
    assert "stable rank" in names
    assert not any("effective dimension" in name or "κ" in name for name in names)


def row_of(tmp_path, name, *conditions, **more):
    documents = [examples.document(condition={**examples.CONDITION, **condition}) for condition in conditions]
    (row,) = (row for row in compared(runs(tmp_path, *documents, **more)).differences if row.quantity == name)
    return row


def counted(value, error):
    return examples.estimate(float(value), float(error))


def test_counts_are_bounds_and_hold_to_what_is_certain(tmp_path):
    row = row_of(tmp_path, "numerical rank", {"rank": counted(300, 50)}, {"rank": counted(390, 500)})
    assert (row.first.text, row.other.text) == ("250 … 350", "0 … 400")
    assert row.first.side(True, 0.999999) == 100  # of 400
    assert row.error == 50 + 390
    assert not row.significant
    few, many = ({"negative": counted(5, 2)}, {"negative": counted(320, 300), "negative_at_least": 310})
    row = row_of(tmp_path, "negative eigenvalues", few, many)
    assert row.other.text == "310 … 400"
    assert row.other.side(False, 0.9999) == 10  # 310 there are for certain
    assert row.significant


def test_counts_are_shown_as_whole_numbers(tmp_path):
    conditions = [{**examples.CONDITION, "rank": counted(*count)} for count in ((300, 50), (390, 500))]
    (table,) = comparison_tables(compared(runs(tmp_path, *(examples.document(condition=c) for c in conditions))))
    (line,) = (line for line in table.lines() if line.startswith("numerical rank"))
    assert re.split(r"  +", line) == ["numerical rank", "250 … 350", "0 … 400", "90", "440"]


def test_kappa_is_told_apart_only_where_the_bounds_leave_no_doubt(tmp_path):
    """From below both are certain; from above one needs the brackets of λ_max and λ_min."""
    close = {"kappa": examples.bracket(100.0, 104.0), "definite": "positive", "damping": 0.5,
             "largest": examples.bracket(50.0, 50.1), "smallest": examples.bracket(0.0, 0.01)}  # fmt: skip
    far = {"kappa": examples.bracket(12500.0, None), "damping": 0.5}
    assert row_of(tmp_path, "κ of H + 0.5 I", close, far).significant
    assert row_of(tmp_path, "κ of H + 0.5 I", far, close).significant
    assert not row_of(tmp_path, "κ of H + 0.5 I", far, {**far, "kappa": examples.bracket(90000.0, None)}).significant
    near = {**close, "kappa": examples.bracket(103.0, 104.0)}
    assert not row_of(tmp_path, "κ of H + 0.5 I", close, near).significant


def test_brackets_widen_in_proportion_to_the_probability_of_a_miss(tmp_path):
    row = row_of(tmp_path, "λ_max", {}, {"largest": examples.bracket(51.0, 51.5)})
    assert (row.first.value, row.other.value) == (50.0, 51.0)
    assert row.first.side(True, 0.95) == pytest.approx(2.0)
    assert row.first.side(True, 0.995) == pytest.approx(20.0)
    assert row.first.side(False, 0.995) == 0  # the lower end is certain
    assert row_of(tmp_path, "λ_min", {}, {}).first.side(False, 0.995) == pytest.approx(10.0)
    assert row.error == pytest.approx(2.0)
    assert not row.significant


def test_blocks_bulk_and_step_are_compared(tmp_path):
    found = {**examples.CONDITION, "bulk_mean": examples.estimate(0.1, 0.01), "step": examples.bracket(0.0383, 0.0399)}
    first = examples.document(condition=found)
    other = examples.document(condition={**found, "bulk_count": 396})
    names = {row.quantity: row for row in compared(runs(tmp_path, first, other)).differences}
    assert {"trace of features.weight", "norm of features.weight", "λ_max of features.weight"} <= {*names}
    assert "stable step, H + 0.1 I" in names
    assert not any("others" in name for name in names)  # of another number of eigenvalues
    assert "mean of 397 others" in {row.quantity for row in compared(runs(tmp_path, first, first)).differences}


def test_runs_of_one_seed_have_errors_that_add(tmp_path):
    only = {"eigenpairs": None, "frobenius_norm": None, "density": None}
    documents = [with_trace(100.0, 3.0, **only), with_trace(106.0, 4.0, **only)]
    found = compared(runs(tmp_path, *documents, shared=True))
    assert found.differences[0].error == found.differences[0].limit == pytest.approx(7.0)
    assert "errors are added" in comparison_notes(found)[1]
    apart = compared(runs(tmp_path, *documents))
    assert apart.differences[0].error == pytest.approx(5.0)
    assert apart.differences[0].significant
    assert "in quadrature" in comparison_notes(apart)[1]


@pytest.mark.parametrize("width", [45, 60, 72, 80, 120])
def test_narrow_tables_cut_no_number_and_keep_the_star(tmp_path, width):
    pairs = examples.spectrum().eigenpairs
    exact = [dataclasses.replace(pairs, values=pairs.values * (1 + i * 1e-3), error=np.full(4, 1e-9)) for i in (0, 1)]
    found = compared(runs(tmp_path, *(with_trace(40.0, 2.0, eigenpairs=entry) for entry in exact)))
    (table,) = comparison_tables(found, width)
    lines = table.lines(width)
    assert max(map(len, lines)) <= width
    (line,) = (line for line in lines if line.split("  ")[0] == "λ1 from the top")
    assert line.endswith(" *")
    assert ("50.0500000" in line) == (width > 72)
    assert "0.0500000" in line
    assert "…" not in line


def test_what_is_not_comparable_is_said(tmp_path):
    first, other = examples.document(), examples.document(complete=False, parameters=300)
    other["provenance"] = {
        **other["provenance"],
        "loss": "mse",
        "data": {"source": "other.py:f", "batches": 3, "weight": 60.0},
    }
    warnings = " | ".join(compared(runs(tmp_path, first, other)).warnings)
    assert "run1: interrupted" in warnings
    assert "differ in loss: mse, not cross_entropy" in warnings
    assert "differ in data: other.py:f, not train.py:batches" in warnings
    assert "differ in weight of the data: 60, not 50" in warnings
    assert "number of batches" not in warnings
    assert "300 parameters, run0 400" in warnings
    assert compared(runs(tmp_path, first, first)).warnings == ()


def test_the_document_validates_and_the_picture_shows_every_run(tmp_path):
    found = compared(runs(tmp_path, examples.document(), with_trace(40.0, 2.0), with_trace(50.0, math.inf)))
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    jsonschema.validate(document, schema("compare"))
    _, scree, trace, _ = plot_comparison(found).axes
    assert len(scree.get_yticklabels()) > 2
    drawn = {
        (round(float(low), 3), round(float(high), 3))
        for bars in trace.containers
        for (_, low), (_, high) in bars[2][0].get_segments()
    }
    assert drawn == {(34.7, 37.7), (38.0, 42.0), (50.0, 50.0)}


def test_tables_fit_80_columns(tmp_path):
    found = compared(runs(tmp_path, examples.document(), with_trace(40.0, 2.0)))
    (table,) = comparison_tables(found, 80)
    lines = table.lines(80)
    assert max(map(len, lines)) <= 80
    (trace,) = (line.split() for line in lines if line.startswith("trace"))
    assert trace == ["trace", "36.2", "40.0", "3.8", "2.5"]
    assert comparison_notes(found)[0].startswith("* significant: 0 of 8 differences, at 95 % for all 8 together")


def test_bad_input(tmp_path):
    (one,) = runs(tmp_path, examples.document())
    with pytest.raises(InputError, match=r"two spectrum\.json files or more"):
        compared([one])
    with pytest.raises(InputError, match="between 0 and 1"):
        compared([one, one], confidence=95)
    (tmp_path / "run0/spectrum.json").write_text('{"schema": "hvpspec/spectrum/1"}')
    with pytest.raises(InputError, match="damaged"):
        read_runs([tmp_path / "run0"])
    with pytest.raises(InputError, match="cannot be read"):
        read_runs([tmp_path / "nowhere"])


def test_labels_tell_runs_apart(tmp_path):
    for name in ("a/x", "b/x"):
        (tmp_path / name).mkdir(parents=True)
        write_json(tmp_path / name / "spectrum.json", examples.document())
    labels = [run.label for run in read_runs([tmp_path / "a/x", tmp_path / "b/x/spectrum.json"])]
    assert labels == ["a/x", "b/x"]
    assert len({run.label for run in read_runs([tmp_path / "a/x", tmp_path / "a/x"])}) == 2


def test_every_quantity_that_is_compared_is_explained_once(tmp_path):
    found = compared(runs(tmp_path, examples.document(), examples.document()))
    assert all(row.first.about in EXPLANATIONS for row in found.differences)
    lines = comparison_explanations(found)
    assert len(lines) == len({*lines}) == len({row.first.about for row in found.differences})
    assert lines[0].startswith("λ1, λ2, …: Curvature")
