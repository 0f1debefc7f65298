"""The layout that hvpspec/README.md draws: imports flow one way, without circles, and every room can be seen at a glance.

Lazy imports and those for type checkers count as well: they hide a circle, they do not remove it.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hvpspec"

# From the ground up: a module may import its own floor and those below.
FLOORS = (
    "ground",  # the files of the package itself
    "results", "demo", "checkpoint", "objective", "oracle", "operators", "krylov", "bounds", "estimators", "preflight",
    "plots", "report", "runs", "cli",
)  # fmt: skip
TOP = ("hvpspec", "hvpspec.__main__")  # these two know everything
NUMERICS = ("krylov", "bounds", "estimators")  # on any symmetric operator
MODELS = ("checkpoint", "objective", "oracle", "operators")  # what the numerics must not know

MOST_FILES = 12  # a folder, besides __init__.py
MOST_LINES = 400  # a file
LONGEST_FUNCTION = 50  # lines after signature and docstring


def modules(package=PACKAGE):
    """{dotted name: path} of every module."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree, known):
    """The modules of the package that a file imports, wherever in it."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "hvpspec":
                while name not in known:
                    name = name.rpartition(".")[0]
                yield name


def graph(package=PACKAGE):
    known = modules(package)
    return {name: set(imported(ast.parse(path.read_text()), known)) - {name} for name, path in known.items()}


def floor_of(name):
    parts = name.split(".")
    is_room = len(parts) > 2 or (PACKAGE / parts[-1]).is_dir()
    return FLOORS.index(parts[1] if is_room else "ground")


def upward(imports):
    """Imports from a lower floor to a higher one."""
    return [
        f"{name} imports {other}"
        for name, others in imports.items()
        if name not in TOP
        for other in sorted(others)
        if other in TOP or floor_of(other) > floor_of(name)
    ]


def circles(imports):
    """A circle of imports, if there is one."""
    done, path = set(), []

    def follow(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        path.append(name)
        for other in sorted(imports[name]):
            if circle := follow(other):
                return circle
        done.add(path.pop())
        return None

    return next((circle for name in imports if (circle := follow(name))), None)


def of_models(imports):
    """Imports of models, losses and data by the numerics."""
    return [
        f"{name} imports {other}"
        for name, others in imports.items()
        if name.split(".")[1:2] and name.split(".")[1] in NUMERICS
        for other in sorted(others)
        if len(other.split(".")) > 1 and other.split(".")[1] in MODELS
    ]


def body_lines(function):
    """From the first line after signature and docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def test_nothing_flows_back():
    assert upward(graph()) == []


def test_there_are_no_circles():
    assert circles(graph()) is None


def test_the_numerics_know_no_models():
    assert of_models(graph()) == []


@pytest.mark.parametrize(
    ("module", "line", "check"),
    [
        ("hvpspec.wording", "from hvpspec.results.estimate import Estimate", upward),
        ("hvpspec.results.density", "def f():\n    from hvpspec.report.html import report_html", upward),
        ("hvpspec.krylov.basis", "from hvpspec.operators.hessian import HessianOperator", of_models),
        ("hvpspec.results.estimate", "def f():\n    from hvpspec.results.spectrum import Spectrum", circles),
        ("hvpspec.cli.options", "import hvpspec", upward),
    ],
)
def test_an_import_turned_round_is_seen(module, line, check):
    known = modules()
    broken = dict(graph())
    broken[module] = broken[module] | set(imported(ast.parse(line), known))
    assert check(broken)


def test_every_room_can_be_seen_at_a_glance():
    folders = {path.parent for path in modules().values()}
    crowded = [
        f"{folder.relative_to(ROOT)}: {count} files"
        for folder in sorted(folders)
        if (count := len([path for path in folder.glob("*.py") if path.name != "__init__.py"])) > MOST_FILES
    ]
    assert crowded == []


@pytest.mark.parametrize("folder", ["hvpspec", "tests", "scripts"])
def test_no_file_is_long(folder):
    long = [
        f"{path.relative_to(ROOT)}: {count} lines"
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (count := len(path.read_text().splitlines())) > MOST_LINES
    ]
    assert long == []


def test_no_function_is_long():
    long = [
        f"{name}.{node.name}: {count} lines"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (count := body_lines(node)) > LONGEST_FUNCTION
    ]
    assert long == []


def test_the_map_names_every_folder():
    text = (PACKAGE / "README.md").read_text()
    rows = set(re.findall(r"^\| `([\w/]+)/?` \|", text, re.MULTILINE))
    rooms = {path.parent.relative_to(PACKAGE).as_posix() for path in modules().values()} - {"."}
    assert {row.rstrip("/") for row in rows if "/" in row or (PACKAGE / row).is_dir()} == rooms
