"""The README's examples run, and print what it says they print."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_dense import rosenbrock_errors

from hvpspec import cli

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONSOLE = [line for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


def test_the_library_examples_run_one_after_the_other():
    space = {}
    for block in PYTHON:
        if not block.startswith("# train.py"):
            exec(block, space)
    assert len(space["top"].values) == 3
    assert abs(space["trace"].value - 16.011) <= 3
    assert set(space["layers"]) == {f"{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")}
    np.testing.assert_allclose(np.sort(space["values"])[::-1], space["top"].values[:2])


def test_the_command_line_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (source,) = (block for block in PYTHON if block.startswith("# train.py"))
    (tmp_path / "train.py").write_text(source)
    space = {}
    exec(source, space)
    torch.save(space["build"]().state_dict(), tmp_path / "model.pt")
    (command,) = (line for line in CONSOLE if line.startswith("hvpspec spectrum"))
    assert cli.run(command.split()[1:]) == 0
    printed = capsys.readouterr().out
    assert "loss on the data" in printed
    assert (tmp_path / "spectrum.json").exists()


def test_the_demo_prints_what_is_shown(tmp_path, capsys):
    shown = re.search(r"<!-- demo -->\n```\n(.*?)```", README, re.DOTALL).group(1).splitlines()
    assert cli.run(["demo", "--out", str(tmp_path)]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    for expected, line in zip(shown, printed, strict=False):
        if re.match(r"λ|trace|Frobenius", expected):  # rounding errors differ from machine to machine
            name = re.match(r"(Frobenius norm|\S+)", expected).group()
            assert line.startswith(name)
            assert float(line[len(name) :].split()[0]) == pytest.approx(
                float(expected[len(name) :].split()[0]), rel=1e-5
            )
        else:
            assert line == expected


def test_the_figures_on_finite_differences():
    condition, ours, theirs = rosenbrock_errors()
    assert f"{condition:.1e}" == "1.4e+13"
    assert ours < 0.0014  # shown as 0.0007
    assert min(theirs.values()) > 0.06  # 0.12
    assert theirs[1e-4] == pytest.approx(2100, rel=0.1)


@pytest.mark.parametrize("link", re.findall(r"\]\((results/[^)]+)\)", README))
def test_results_are_there_and_name_their_command(link):
    text = (Path(__file__).parent.parent / link).read_text()
    script = re.search(r"`python (scripts/\w+\.py)", text).group(1)
    assert (Path(__file__).parent.parent / script).exists()


def test_options_in_the_readme_exist():
    help_text = subprocess.run(
        [sys.executable, "-m", "hvpspec", "spectrum", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in set(re.findall(r"`(--[a-z-]+)", README)):
        assert option in help_text, option
