"""What somebody's own code raised, in words: the type, what it says, and the line of that code where it arose."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import PurePath
from types import CodeType
from typing import Any, NamedTuple

from hvpspec.wording import shortened

MAX_TEXT_LETTERS = 400  # of what an exception says: it may hold a whole program, or another traceback
_PACKAGES = {"site-packages", "dist-packages"}  # the folders in which they are installed
_ENGINES = ("hvpspec", "torch", "functorch")  # whose frames say nothing of the user's code
_IN_A_TEXT = re.compile(r'File "([^"\n]+)", line (\d+)(?:, in (\S+))?')
_COMPREHENSIONS = ("<genexpr>", "<listcomp>", "<setcomp>", "<dictcomp>")


class _Line(NamedTuple):
    file: str
    number: int
    function: str


def raised(error: BaseException) -> str:
    """ "KeyError: 'row' (train.py:42, in loss)"; of a DataLoader's worker, what was raised there."""
    where = place(error)
    return f"{said(error)} ({where})" if where else said(error)


def said(error: BaseException) -> str:
    """The type of an exception and what it says, in one line."""
    kind, text = type(error).__name__, text_of(error)
    if "Traceback" in text:  # of a DataLoader's worker, or of a scripted module
        text = text.splitlines()[-1].strip()
        if re.match(r"[\w.]+(: |$)", text):  # "KeyError: 'row'"
            return shortened(text, MAX_TEXT_LETTERS)
    elif "\nfrom user code:" in text:  # torch.compile's
        text = text.splitlines()[0]
    if not text and isinstance(error, AssertionError) and (lines := _lines(error)):
        line = linecache.getline(lines[-1].file, lines[-1].number).strip()
        text = line if line.startswith("assert") else ""
    text = shortened(" ".join(text.split()), MAX_TEXT_LETTERS).removesuffix(".")
    return f"{kind}: {text}" if text else kind


def place(error: BaseException) -> str:
    """ "train.py:42, in loss": the last line of the user's own code that ran; "" where there is none.

    Lines of torch, of hvpspec and of Python's library are passed over; those of other packages, such as a model of
    transformers, are named where there is no line of a file outside of the folders in which packages are installed.
    """
    cause = error.__cause__
    remote = str(cause) if type(cause).__name__ == "_RemoteTraceback" else ""
    return _last([*_lines(error), *_told(remote), *_told(text_of(error))])


def place_in(text: str) -> str:
    """The same for a traceback that was written down."""
    return _last(_told(text))


def _last(lines: Sequence[_Line]) -> str:
    for kind in ("own", "package"):
        for line in reversed(lines):
            if _kind(line.file) == kind:
                return _shown(line)
    return ""


def defined(function: Any) -> str:
    """ "train.py:42": where a function is defined; "" where that is not known."""
    code: CodeType | None = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or _kind(code.co_filename) != "own":
        return ""
    return _shown(_Line(code.co_filename, code.co_firstlineno, ""))


def text_of(error: BaseException) -> str:
    """What an exception says."""
    try:
        return str(error).strip()
    except Exception:  # a class of its own may fail even there
        return ""


def _lines(error: BaseException) -> list[_Line]:
    """Those that ran, the innermost last."""
    frames = traceback.walk_tb(error.__traceback__)
    return [_Line(_file(frame), number, frame.f_code.co_qualname) for frame, number in frames]


def _told(text: str) -> list[_Line]:
    """Those that a text tells of: of another process, or of a program that Python does not run."""
    return [_Line(found[1], int(found[2]), found[3] or "<module>") for found in _IN_A_TEXT.finditer(text)]


def _file(frame: Any) -> str:
    """A frame's file; "" for code without one, unless the user has typed it."""
    name: str = frame.f_code.co_filename
    typed = frame.f_globals.get("__name__") == "__main__"
    return name if typed or not name.startswith("<") else ""


def _kind(file: str) -> str:
    """ "own", "package" or ""."""
    if not file or file.startswith("<frozen"):
        return ""
    if any(_is_inside(file, getattr(sys.modules.get(name), "__file__", None)) for name in _ENGINES):
        return ""
    if _PACKAGES & set(PurePath(file).parts):
        return "package"
    library = sysconfig.get_paths()
    return "" if any(file.startswith(library[name] + os.sep) for name in ("stdlib", "platstdlib")) else "own"


def _is_inside(file: str, package: str | None) -> bool:
    return package is not None and file.startswith(os.path.dirname(package) + os.sep)


def _shown(line: _Line) -> str:
    """As "train.py:42, in loss"; of a notebook as it numbers its cells."""
    function = _function(line.function)
    inside = f", in {function}" if function else ""
    cell = _cell(line.file)
    where = f"{cell}, line {line.number}" if cell else f"{_from_here(line.file)}:{line.number}"
    return f"{where}{inside}"


def _function(name: str) -> str:
    """ "Net.forward" of "main.<locals>.Net.forward"; "" outside of functions."""
    parts = name.split(".<locals>.")
    while len(parts) > 1 and parts[-1] in _COMPREHENSIONS:
        parts.pop()
    if parts[-1].endswith("<lambda>"):
        return "a lambda"
    return "" if parts[-1].startswith("<") else parts[-1]


def _cell(file: str) -> str:
    """ "Cell In[3]" for the file that IPython has made of it."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    with contextlib.suppress(Exception):  # of versions that name their cells otherwise
        return " ".join(shell.compile.format_code_name(file))
    return ""


def _from_here(file: str) -> str:
    """A path below the current folder is relative to it."""
    with contextlib.suppress(OSError):  # the folder may be gone
        here = os.getcwd() + os.sep
        if file.startswith(here):
            return file[len(here) :]
    return file
