"""Tables keep to a width without cutting a number."""

import pytest

from hvpspec.report.table import Table
from hvpspec.wording import shortened

ROWS = [("trace", "2.682691430", "1.8e-14", "tolerance not reached"), ("a.very.long.name.of.a.weight", "7", "", "95 %")]


def table(notes=True):
    found = Table(("figure", "value", "± error", "note"), notes=notes)
    for row in ROWS:
        found.add(*row)
    return found


def test_columns_line_up_and_nothing_trails():
    heading, first, second = table().lines()
    assert (
        heading.index("value") + len("value")
        == first.index("2.682691430") + len("2.682691430")
        == second.index("7") + 1
    )
    assert first.index("tolerance") == second.index("95 %") == heading.index("note")
    assert all(line == line.rstrip() for line in (heading, first, second))
    assert max(map(len, (heading, first, second))) == table().width()


@pytest.mark.parametrize("width", range(40, 80))
@pytest.mark.parametrize("notes", [True, False])
def test_a_narrow_one_folds_notes_and_shortens_names_but_cuts_no_number(width, notes):
    lines = table(notes).lines(width)
    for number in ("2.682691430", "1.8e-14"):
        assert sum(number in line for line in lines) == 1
    assert "…" not in "".join(line for line in lines if not line.startswith("a."))
    words = " ".join(" ".join(lines).split())
    assert "95 %" in words
    if notes:
        assert max(map(len, lines)) <= width
        assert {"tolerance", "not", "reached"} <= {*words.split()}


def test_shortened_names_keep_both_ends():
    assert shortened("layers.0.attention.weight", 12) == "layers…eight"
    assert shortened("head", 4) == "head"
    for length in range(3, 30):
        assert len(shortened("layers.0.attention.weight", length)) == min(length, 25)
