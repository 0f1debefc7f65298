"""The layout in hvpspec/README.md: imports flow one way and in no circle; folders, files and functions stay small.

Imports inside functions and for type checkers count too: they hide a circle, they do not remove it.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hvpspec"

# From the ground up: a module may import from its own floor and from those below.
FLOORS = (
    "ground",  # the files of the package itself
    "system", "distributed", "results", "demo", "checkpoint", "kernels", "objective", "oracle", "operators", "krylov",
    "bounds", "estimators", "preflight", "plots", "report", "runs", "cli",
)  # fmt: skip
TOP = ("hvpspec", "hvpspec.__main__")  # these two may import from everywhere; nothing imports them
NUMERICS = ("krylov", "bounds", "estimators")  # for any symmetric operator
MODELS = ("checkpoint", "objective", "oracle", "operators")

MAX_FILES_IN_A_FOLDER = 12  # besides __init__.py
MAX_LINES_OF_A_FILE = 400
MAX_LINES_OF_A_BODY = 50  # of a function, after signature and docstring


def modules(package=PACKAGE):
    """{dotted name: path} of every module."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree, known):
    """The modules of the package that a file imports, anywhere in it."""
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
    """The first circle of imports that is found; None if there is none."""
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
    """Imports of models, losses and data where any symmetric operator must do."""
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


def test_the_numerics_import_no_models():
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
def test_an_import_in_the_wrong_direction_is_found(module, line, check):
    known = modules()
    broken = dict(graph())
    broken[module] = broken[module] | set(imported(ast.parse(line), known))
    assert check(broken)


def test_no_folder_is_crowded():
    folders = {path.parent for path in modules().values()}
    crowded = [
        f"{folder.relative_to(ROOT)}: {count} files"
        for folder in sorted(folders)
        if (count := len([path for path in folder.glob("*.py") if path.name != "__init__.py"])) > MAX_FILES_IN_A_FOLDER
    ]
    assert crowded == []


@pytest.mark.parametrize("folder", ["hvpspec", "tests", "scripts"])
def test_no_file_is_long(folder):
    long = [
        f"{path.relative_to(ROOT)}: {count} lines"
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (count := len(path.read_text().splitlines())) > MAX_LINES_OF_A_FILE
    ]
    assert long == []


def test_no_function_is_long():
    long = [
        f"{name}.{node.name}: {count} lines"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (count := body_lines(node)) > MAX_LINES_OF_A_BODY
    ]
    assert long == []


def test_the_map_names_every_folder_in_the_order_of_the_floors():
    text = (PACKAGE / "README.md").read_text()
    table = text[text.index("| folder |") :].split("\n\n")[0]
    rows = re.findall(r"^\| `([\w/]+)` \|", table, re.MULTILINE)
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in modules().values()} - {"."}
    assert len(rows) == len(set(rows))
    assert set(rows) == folders
    assert [row for row in rows if "/" not in row] == list(FLOORS[1:])


@pytest.mark.parametrize("page", ["hvpspec/README.md", ".github/CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    names = set(re.findall(r"`([\w./-]+/[\w.-]*|[\w-]+\.(?:py|md|txt|toml))(?::\w+)?`", text))
    assert names
    for name in names:
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name
    for name, word in re.findall(r"`([\w/]+\.py):(\w+)`", text):
        assert re.search(rf"^(def |class )?{word}\b", (PACKAGE / name).read_text(), re.MULTILINE), f"{name}:{word}"
