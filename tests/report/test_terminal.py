import math

import numpy as np
import pytest
from report import examples

import hvpspec
from hvpspec import cli
from hvpspec.report.documents import load_spectrum
from hvpspec.report.explanations import EXPLANATIONS
from hvpspec.report.notes import shortfalls
from hvpspec.report.numbers import QUANTITY_NAMES, rounded, with_error
from hvpspec.report.sentences import sentences
from hvpspec.report.terminal import report_sections, section_lines, spectrum_table, summary
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Estimate
from hvpspec.results.record import Provenance, Record
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
    pairs = Eigenpairs(np.array([3.0, -1.0]), None, np.full(2, 0.02), np.array([1e-3, 2e-2]), False, 12)
    trace = Estimate(12.5, 0.5, 0.9, False, 40)
    text = render(Spectrum(7, pairs, trace, None, 52, 1.5, True))
    assert "λ1" in text
    assert "-1.00" in text
    assert "± error (90 %)" in text.splitlines()[0]
    assert "tolerance not reached" in text
    assert "not reached" in text.splitlines()[-1]
    notes = shortfalls(Spectrum(7, pairs, trace, None, 52, 1.5, True), rtol=0.01, tol=1e-3)
    assert [note.split()[0] for note in notes] == ["Not", "The", "The"]
    accurate = Eigenpairs(np.array([3.0, -1.0]), None, np.zeros(2), np.zeros(2), False, 12)
    notes = shortfalls(Spectrum(7, accurate, trace, None, 52, 1.5, True), rtol=0.01, tol=1e-3)
    assert notes[0] == (
        "It is not shown that no eigenvalue is missing, such as a copy of one of those found. "
        "More products (--max-hvps) would show it."
    )
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


def lines_of(spectrum, **options):
    return [line for section in report_sections(spectrum, **options) for line in section_lines(section, None)]


def test_the_stable_step_is_shown_with_eigenvalues_only():
    only = examples.spectrum(trace=None, frobenius_norm=None, density=None, asked=("eigenvalues",))
    (step,) = (line for line in lines_of(only) if line.startswith("largest stable step"))
    assert step.split("   ") == ["largest stable step", "0.03846", "learning rate: 2/λ_max (95 %)"]  # 2/52
    (step,) = (line for line in lines_of(only, momentum=0.5) if line.startswith("largest stable step"))
    assert step.split("   ") == ["largest stable step", "0.05769", "learning rate: (2 + 2β)/λ_max, β = 0.5 (95 %)"]


@pytest.mark.parametrize(
    ("lr", "momentum", "edge", "ratio", "verdict"),
    [
        (0.01, 0.0, "200   2/lr at lr = 0.01", "0.25 … 0.26", "stable: below 1"),  # of 50 … 52
        (0.1, 0.0, "20   2/lr at lr = 0.1", "2.5 … 2.6", "not stable: above 1"),
        (0.1, 0.5, "30   (2 + 2β)/lr at lr = 0.1, β = 0.5", "1.667 … 1.733", "not stable: above 1"),
        (0.0392, 0.0, "51.0204   2/lr at lr = 0.0392", "0.98 … 1.019", "not known: the range contains 1"),
    ],
)
def test_a_learning_rate_is_judged(lr, momentum, edge, ratio, verdict):
    lines = [" ".join(line.split()) for line in lines_of(examples.spectrum(), lr=lr, momentum=momentum)]
    assert f"edge of stability {' '.join(edge.split())}" in lines
    assert f"λ_max / edge {ratio} {verdict}" in lines
    options = {"lr": lr, "momentum": momentum}
    said = sentences(Record(examples.spectrum(), provenance=Provenance(options=options)))[1]
    words = {"stable": "is stable", "not s": "is not stable", "not k": "may or may not be stable"}
    assert next(word for begin, word in words.items() if verdict.startswith(begin)) in said
    assert f"The learning rate {lr:g}" + (f" with momentum {momentum:g}" if momentum else "") in said


def test_adjacent_errors_say_what_they_are():
    heading, *_ = lines_of(examples.spectrum())
    assert heading.split("   ")[-2:] == ["± error (95 %)", "± data (1 s.e.)"]
    said = " ".join(lines_of(examples.spectrum()))
    assert "± error (95 %): the true value lies within it with 95 % probability; for eigenvalues, for certain" in said
    assert "± data (1 s.e.): one standard error due to the choice of data" in said
    mixed = examples.spectrum(trace=Estimate(36.2, 1.5, 0.9, True, 30))
    assert "± error (" not in lines_of(mixed)[0]
    assert [line.split()[-2:] for line in lines_of(mixed) if line.startswith(("trace", "Frob"))] == [
        ["90", "%"],
        ["95", "%"],
    ]


def test_every_quantity_shown_is_explained():
    spectrum = examples.record(condition={**examples.CONDITION, **FULL}).spectrum
    sections = report_sections(spectrum, lr=0.1, explain=True)
    shown = [name for section in sections for name in section.quantities]
    assert {"eigenvalues", "edge_ratio", "negative", "bulk_spread", "refined", "block"} <= {*shown}
    assert {*shown} <= {*EXPLANATIONS}
    lines = lines_of(spectrum, lr=0.1, explain=True)
    lines = lines[lines.index("What the figures mean:") :]
    for name in shown:
        assert sum(line.startswith(f"{QUANTITY_NAMES[name]}: ") for line in lines) == 1, name
    assert not any(line.startswith("trace: Sum") for line in lines_of(spectrum))
    assert {*EXPLANATIONS} <= {*QUANTITY_NAMES}


FULL = {
    "refined": {"eigenvalues": [{"value": -0.09, "error": 0.03, "residual": 0.02}], "converged": True, "hvps": 30},
    "bulk_mean": examples.estimate(0.1, 0.01), "bulk_spread": examples.estimate(0.1, 0.01),
    "participation_ratio": examples.estimate(3.0, 0.1), "effective_dimension": examples.estimate(3.0, 0.1),
    "log_determinant": examples.estimate(3.0, 0.1), "step": examples.bracket(0.0383, 0.0399),
    "gradient_descent": examples.bracket(100.0, 200.0),
    "conjugate_gradients": {"value": 50.0, "kind": "upper", "confidence": 0.95},
}  # fmt: skip


def test_the_summary_is_what_the_command_prints(tmp_path, capsys):
    assert cli.run(["demo", "-k", "2", "--rtol", "0.2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    found = load_spectrum(tmp_path)
    assert f"\n{summary(found, width=None)}\n" in printed
    folded = found.summary()
    assert max(map(len, folded.splitlines())) <= 80
    assert folded.split() == summary(found, width=None).split()


def test_each_figure_says_that_its_own_tolerance_was_not_reached():
    A = np.diag(np.r_[np.linspace(1, 2, 198), 5.0, 7.0])
    found = hvpspec.spectrum(A, 3, max_hvps=12, rtol=1e-6)
    assert not found.eigenpairs.converged
    assert not found.trace.converged
    rows = {line.split()[0]: line for line in found.summary(width=None).splitlines() if line}
    for name in ("λ3", "trace", "Frobenius"):
        assert "tolerance not reached" in rows[name]
    assert "others may be missing" in rows["λ1"]  # it is accurate, but a copy of it is not excluded
    assert [row["converged"] for row in found.to_dict()["eigenvalues"]] == [True, True, False]
    assert ("tolerance not reached" in rows["density:"]) == (not found.density.converged)
