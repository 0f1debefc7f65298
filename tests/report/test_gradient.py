"""The gradient in reports: rows and notes, the page, the schema, comparisons, a frame, and damaged files."""

import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from report import examples

from hvpspec.errors import InputError
from hvpspec.report.documents import schema, to_document
from hvpspec.report.explanations import EXPLANATIONS
from hvpspec.report.html import report_html
from hvpspec.report.numbers import QUANTITY_NAMES
from hvpspec.report.rows.gradient import gradient_notes, gradient_rows
from hvpspec.report.terminal import report_sections
from hvpspec.results.estimate import Estimate
from hvpspec.results.gradient import Gradient, Update
from hvpspec.results.record import Record
from hvpspec.results.spectrum import Preconditioned, Spectrum
from hvpspec.runs.compare_values import values_of


def exact(value, error=1e-6):
    return Estimate(value, error, 0.95, True, 1, "exact")


UPDATE = Update("AdamW", 160, 0.01, -0.002, exact(0.5), exact(-0.001975, 1e-8))
FULL = Gradient(
    exact(0.25), exact(1.5), Estimate.between(0.8, 0.78, 0.9, 0.99, 0), np.array([3.0, 1.0]), np.array([0.7, 0.1]),
    np.array([0.01, 0.1]), Estimate.between(300.0, 250.0, 400.0, 0.95, 0), 8, 1797.0, 2, UPDATE,
)  # fmt: skip


def shown(found):
    return {row.name: (row.value, row.error, row.note) for row in gradient_rows(found)}


def test_every_figure_has_a_row_and_an_explanation():
    rows = shown(FULL)
    assert rows["‖g‖"][:2] == ("0.2500000", "1e-06")
    assert rows["best step along −g"] == ("0.666667", "", "lowers the loss by 0.0208")
    assert rows["share in eigenvectors"] == ("78 % … 90 %", "", "70 % λ1, 10 % λ2")
    assert rows["noise scale"] == ("250 … 400", "", "samples, of 1,797 (95 %)")
    assert rows["‖u‖"][2] == "u: AdamW, step 161"
    assert rows["change of the loss"][0].startswith("-0.00197500")
    for row in gradient_rows(FULL):
        assert row.name == QUANTITY_NAMES[row.quantity]
        assert row.quantity in EXPLANATIONS
    assert gradient_notes(FULL, preconditioned=False) == []


def test_what_is_not_known_is_said():
    upward = replace(FULL, curvature=exact(-1.5), share=None, noise_scale=None, update=None)
    found = replace(upward, reasons={"noise_scale": "one batch", "update": "no moments", "share": "no eigenvectors"})
    assert shown(found)["best step along −g"][0] == "unbounded"
    assert "noise scale" not in shown(found)
    notes = gradient_notes(found, preconditioned=True)
    assert "noise scale: not known: one batch" in notes
    assert "next update: not known: no moments" in notes
    assert notes[0].startswith("g is the gradient in the coordinates of this matrix")
    few = replace(
        FULL, noise_scale=Estimate.between(300, 90, 7000, 0.95, 0), samples=400.0, reasons={"share": "no gap"}
    )
    notes = gradient_notes(few, preconditioned=False)
    assert [note.partition(":")[0] for note in notes] == ["share in eigenvectors", "noise scale", "noise scale"]
    assert "mostly noise" in notes[-1]
    zero = replace(FULL, curvature=None, share=None, noise_scale=None, update=None, reasons={"curvature": "it is zero"})
    assert list(shown(zero)) == ["‖g‖"]


def test_it_is_on_the_terminal_and_the_page():
    spectrum = examples.spectrum(gradient=FULL, preconditioned=Preconditioned("AdamW", 160, 1e-3, 38000.0))
    (section,) = [section for section in report_sections(spectrum) if "noise_scale" in section.quantities]
    assert section.table.lines(80)[0].startswith("gradient g")
    page = report_html(Record(spectrum, 0.5))
    assert "The gradient" in page
    assert "78 % … 90 %".replace(" ", "\N{NO-BREAK SPACE}") in page
    assert "The gradient" not in report_html(Record(examples.spectrum(), 0.5))


@pytest.mark.parametrize("found", [FULL, replace(FULL, update=None, curvature=None, share=None, noise_scale=None)])
def test_its_file_keeps_to_the_schema_and_is_read_again(found):
    document = json.loads(json.dumps(to_document(Record(examples.spectrum(gradient=found), 0.5))))
    jsonschema.Draft202012Validator(schema("spectrum")).validate(document)
    again = Spectrum.from_dict(document).gradient
    assert again.to_dict() == found.to_dict()
    assert again.step == found.step


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda g: g.pop("norm"), "gradient.norm: missing"),
        (lambda g: g["parts"][0].update(share=-1), "share"),
        (lambda g: g.update(samples="many"), "gradient.samples"),
        (lambda g: g["update"].update(length=-2.0), "gradient.update.length"),
        (lambda g: g.update(hvps=1.5), "gradient.hvps"),
    ],
)
def test_a_damaged_file_is_refused(damage, said):
    document = json.loads(json.dumps(examples.spectrum(gradient=FULL).to_dict()))
    damage(document["gradient"])
    with pytest.raises(InputError, match=said):
        Spectrum.from_dict(document)


def test_it_is_compared_and_in_a_frame():
    spectrum = examples.spectrum(gradient=FULL)
    values = values_of(spectrum)
    assert values["curvature along g"].value == 1.5
    assert values["share of g, k = 2"].error == pytest.approx(0.1)
    frame = spectrum.to_frame().set_index("quantity")
    assert frame.loc["noise_scale", ["value", "lower", "upper"]].tolist() == [300, 250, 400]
