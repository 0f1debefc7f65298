"""Hidden letters, markup, mathematics and formulas in a name are shown, and do nothing."""

import json
import unicodedata

import pytest

from hvpspec.errors import CheckpointWarning, InputError, NotTwiceDifferentiable
from hvpspec.escaping import in_csv, in_html, in_json, in_message, in_picture, on_lines, on_screen

HIDDEN = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zl", "Zp", "Cs")]


def test_no_hidden_letter_reaches_a_screen():
    assert len(HIDDEN) > 2000
    for letter in HIDDEN:
        shown = on_screen(f"a{letter}b")
        assert shown.isascii()
        assert shown.isprintable()
        assert f"a{letter}b" == shown.encode().decode("unicode_escape")  # nothing is lost
    assert on_screen("λ_max ± 0.5\N{NO-BREAK SPACE}% 重み é é ☃") == "λ_max ± 0.5\N{NO-BREAK SPACE}% 重み é é ☃"
    assert on_lines("a\nb\rc") == "a\nb\\rc"


def test_a_message_is_cut():
    assert in_message("a\x1b[2J\nb") == "a\\x1b[2J\nb"
    long = in_message(f"no parameter {'x' * 10**6} in {'a/' * 50}model.pt")
    assert long.startswith("no parameter xxxx")
    assert long.endswith(f" in {'a/' * 50}model.pt")
    assert "x…x" in long
    assert len(long) < 500
    assert len(in_message("word " * 10**5)) <= 4000
    for error in (
        InputError("\u202e" + "x" * 9999),
        NotTwiceDifferentiable(0, "op", "\x9b" + "x" * 9999),
        CheckpointWarning("kind", "\x1b]0;" + "x" * 9999, "done"),
    ):
        assert str(error).isprintable()
        assert len(str(error)) < 600


@pytest.mark.parametrize("start", [*"=+-@\t\r＝＋"])
def test_a_cell_that_would_be_computed_is_a_text(start):
    assert in_csv(f"{start}1+1.pt").startswith("'")
    assert in_csv("1=1.pt") == "1=1.pt"


def test_pictures_and_pages():
    assert in_picture(r"a$x^2$\$") == r"a\$x^2\$\\$"
    assert in_html("<b>&\x00\"'") == "&lt;b&gt;&amp;\\x00&quot;&#x27;"


def test_json_means_the_same():
    said = {"é重\n\u202e": [*HIDDEN, 1.5]}
    text = in_json(json.dumps(said, ensure_ascii=False, indent=2))
    assert json.loads(text) == said
    assert on_lines(text) == text
    assert "é重" in text
