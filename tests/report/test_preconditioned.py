"""What reports say of a matrix that an optimizer preconditions: its name, and how far it is from the edge."""

import dataclasses
import re

import jsonschema
import pytest
from report import examples

import hvpspec
from hvpspec.errors import InputError
from hvpspec.plots.series import plot_series
from hvpspec.report.documents import schema
from hvpspec.report.html import report_html
from hvpspec.report.sentences import sentences
from hvpspec.report.terminal import summary
from hvpspec.results.spectrum import Preconditioned
from hvpspec.runs.series_rows import edge

BY = Preconditioned("AdamW", 1200, 0.5, 53.0)


def said(**changes):
    spectrum = examples.spectrum(preconditioned=dataclasses.replace(BY, **changes))
    record = dataclasses.replace(examples.record(), spectrum=spectrum)
    return spectrum, record


@pytest.mark.parametrize(
    ("threshold", "sentence"),
    [
        (53.0, "0.943 … 0.981 of the edge of stability of AdamW at step 1,200 (26.5 / lr at lr = 0.5, 95 %): its steps "
         "are stable."),
        (51.0, "0.98 … 1.02 of the edge of stability of AdamW at step 1,200 (25.5 / lr at lr = 0.5): its steps may "
         "or may not be stable."),
        (40.0, "1.25 … 1.3 of the edge of stability of AdamW at step 1,200 (20 / lr at lr = 0.5): its steps are not "
         "stable, as long as its preconditioner stays."),
    ],
)  # fmt: skip
def test_the_finding(threshold, sentence):
    _, record = said(threshold=threshold)
    assert f"λ_max is at {sentence}" in sentences(record)
    assert any(
        line.startswith("The largest eigenvalue of the preconditioned Hessian is ") for line in sentences(record)
    )
    assert not any("gradient descent" in line for line in sentences(record))


def test_without_a_step_or_an_optimizer():
    assert any("of the edge of stability of SGD (" in line for line in sentences(said(optimizer="SGD", step=None)[1]))
    spectrum, record = said(optimizer=None, step=None, lr=None, threshold=None)
    assert not any("edge" in line for line in sentences(record))
    assert "edge of stability" not in summary(spectrum)


def test_tables_and_page():
    spectrum, record = said()
    text = summary(spectrum, width=None)
    assert text.startswith("preconditioned Hessian:")
    assert re.search(r"AdamW +value +note", text)
    assert re.search(r"edge of stability +53 +AdamW at step 1,200: 26.5 / lr at lr = 0.5", text)
    page = report_html(record)
    assert "Spectrum of the preconditioned Hessian" in page
    assert '<h2 id="stability">AdamW</h2>' in page


def test_the_file_keeps_it():
    spectrum, _ = said()
    document = spectrum.to_dict()
    assert document["preconditioned"] == {
        "optimizer": "AdamW", "step": 1200, "lr": 0.5, "threshold": 53.0, "decay": 0.0
    }  # fmt: skip
    jsonschema.validate(document, schema())
    assert hvpspec.Spectrum.from_dict(document).preconditioned == BY
    document["preconditioned"]["threshold"] = -1.0
    with pytest.raises(InputError, match=r"preconditioned\.threshold"):
        hvpspec.Spectrum.from_dict(document)


def test_a_series_draws_the_edge_of_each_checkpoint():
    assert edge(26.5, None, None, BY) == {"edge": 53.0, "lambda_max_over_edge": 0.5}
    assert edge(26.5, 0.1, None, Preconditioned()) == {"edge": None, "lambda_max_over_edge": None}
    empty = dict.fromkeys(("lambda_min", "trace", "frobenius_norm", "overlap"))
    rows = [
        {"step": step, "lambda_max": 10.0, "edge": bound, **empty} for step, bound in ((1, 5.0), (2, 9.0), (3, None))
    ]
    drawn = {line.get_label(): list(line.get_ydata()) for line in plot_series(rows).axes[0].lines}
    assert drawn["edge of stability"] == [5.0, 9.0]
