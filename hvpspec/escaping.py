"""Names are data: a text from a file or a user, made harmless for the place where it is shown.

A key of a checkpoint, a block, a path, an error text of somebody's loss may hold anything: escape sequences that move a
terminal's cursor, marks that turn the reading direction, line breaks, markup, mathematics, a formula. There is one
function for each medium, and whatever is shown goes through it.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata

from hvpspec.wording import shortened

MAX_WORD_LETTERS = 240  # of one word in a message: a path is shown whole, a name made to fill the screen is not
MAX_MESSAGE_LETTERS = 4000
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # with which a cell begins that a spreadsheet computes


def on_screen(text: str) -> str:
    r"""As a terminal may show it: letters that are hidden, or would move others, as Python writes them ("\x1b").

    Examples
    --------
    >>> print(on_screen("fc\x1b[2J.weight"))
    fc\x1b[2J.weight
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter if _is_visible(letter) else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def on_lines(text: str) -> str:
    """Several lines, each as on a screen."""
    return "\n".join(map(on_screen, text.split("\n")))


def in_message(text: str) -> str:
    """As a message may quote it: several lines, each as on a screen, long words and long messages cut."""
    lines = [re.sub(rf"\S{{{MAX_WORD_LETTERS + 1},}}", _cut, on_screen(line)) for line in text.split("\n")]
    return shortened("\n".join(lines), MAX_MESSAGE_LETTERS)


def in_html(text: str) -> str:
    """As text in a page; HTML has no control characters, escaped or not."""
    return html.escape(on_screen(text))


def in_picture(text: str) -> str:
    """As a label of Matplotlib: with no mathematics in it."""
    return on_screen(text).replace("$", r"\$")


def in_csv(text: str) -> str:
    """As a cell of a spreadsheet: one that would be computed begins with an apostrophe, which makes it a text."""
    return f"'{on_screen(text)}" if text.startswith(_FORMULA) else on_screen(text)


def in_json(text: str) -> str:
    """A JSON document, which means the same, without hidden letters, and halves of surrogate pairs among them."""
    return re.sub("[^\n -~]", lambda match: match[0] if _is_visible(match[0]) else json.dumps(match[0])[1:-1], text)


def _cut(match: re.Match[str]) -> str:
    return shortened(match[0], MAX_WORD_LETTERS)


def _is_visible(letter: str) -> bool:
    """Not so: control characters, marks that turn or join letters, line separators, halves of surrogate pairs, private
    use, and code points that are not assigned."""
    return letter.isprintable() or unicodedata.category(letter) == "Zs"
