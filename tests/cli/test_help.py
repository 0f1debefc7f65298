"""--help, --version, and the examples that --help gives."""

import glob
import json
import shlex
import subprocess
import sys

import jsonschema
import pytest
from cli_files import USUAL

import hvpspec
from hvpspec import cli
from hvpspec.report.documents import schema

COMMANDS = [command.__name__ for command in cli.COMMANDS]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_exit_statuses(command, capsys):
    assert cli.run([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: hvpspec {command} " in shown
    assert "--json" in shown
    assert "--quiet" in shown
    for status in ("0 done", "2 bad input", "130 interrupted", "1 any other error"):
        assert status in shown
    assert cli.run(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert cli.EXIT in shown
    (example,) = (" ".join(example.split()) for example in cli.examples() if f"hvpspec {command} " in example)
    assert example in shown


@pytest.mark.parametrize("example", cli.examples(), ids=COMMANDS)
def test_the_examples_work_and_what_they_write_validates(stage, example, monkeypatch, capsys):
    monkeypatch.chdir(stage)
    words = [sorted(glob.glob(word)) if "*" in word else [word] for word in shlex.split(example)[1:]]
    assert cli.run([word for group in words for word in group]) == 0, capsys.readouterr().err
    written = list(stage.rglob("*.json"))
    for path in written:
        document = json.loads(path.read_text())
        jsonschema.validate(document, schema(document["schema"].split("/")[1]))
    assert written


def test_version_and_commands(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"hvpspec {hvpspec.__version__}\n"
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "spectrum" in shown
    assert "demo" in shown


HEAVY = ("torch", "numpy", "scipy", "matplotlib", "pydantic")


@pytest.mark.parametrize("line", ["--help", "--version", "spectrum --help", "track --nonsense", "no-such-command"])
def test_help_does_not_wait_for_torch(line):
    """Nor for anything else that takes long to import."""
    code = "import sys\nfrom hvpspec.cli import run\nrun(sys.argv[1:])\n"
    code += f"print([name for name in {HEAVY} if name in sys.modules])\n"
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_spectrum_help_is_in_panels(capsys):
    assert cli.run(["spectrum", "--help"]) == 0
    shown = capsys.readouterr().out
    options = [line.split() for line in shown.splitlines() if line.startswith(("│", "╭"))]
    panel, panels = "", {}
    for words in options:
        if words[0].startswith("╭"):
            panel = " ".join(words[1:-1])
        elif names := [word for word in words[1:3] if word.startswith("-")]:
            panels[names[0]] = panel
    expected = {
        "--data": "Checkpoint and data", "--parameters": "Checkpoint and data", "--which": "Quantities",
        "--only": "Quantities", "--lr": "Quantities", "--rtol": "Accuracy and budget",
        "--max-hvps": "Accuracy and budget", "--engine": "Engine and memory", "--basis-on": "Engine and memory",
        "--out": "Output", "--explain": "Output", "--json": "Output",
    }  # fmt: skip
    assert {name: panels[name] for name in expected} == expected
    assert [name for name, where in panels.items() if where == "Options"] == ["--help"]


def test_options_that_a_command_refuses_are_not_in_its_help(capsys):
    assert cli.run(["track", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--rtol" in shown
    for name in ("--which", "--blocks", "--refine"):
        assert name not in shown


UNUSED = ("scipy.stats", "scipy.optimize", "sympy", "torch._dynamo", "matplotlib", "jinja2", "pandas")
"""What the table of a small model needs nothing of; each takes a tenth of a second or more to import."""


@pytest.mark.parametrize("line", ["spectrum -k 2 --rtol 0.3", "check"])
def test_the_table_waits_for_no_package_that_it_does_not_need(folder, tmp_path, line):
    code = f"""
import sys
from hvpspec import cli
from hvpspec.cli import console
real = console.Screen.line
def line(self, *given, **more):
    print("at", [name for name in {UNUSED} if name in sys.modules])
    return real(self, *given, **more)
console.Screen.line = line
sys.exit(cli.run(sys.argv[1:]))
"""
    words = [*line.split(), *USUAL, "--out", str(tmp_path)]
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    shown = done.stdout.splitlines()
    table = max((i for i, said in enumerate(shown) if said.startswith(("λ1", "one product"))), default=len(shown) - 1)
    found = [said for said in shown[:table] if said.startswith("at ")]
    assert found
    assert found[-1] == "at []"
