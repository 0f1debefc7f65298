"""The README's examples run, and print what it says they print."""

import re
from pathlib import Path

import numpy as np
import picture
import pytest
import torch
from matplotlib.image import imread
from operators.test_dense import rosenbrock_errors

from hvpspec import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONSOLE = [line for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


def test_the_library_examples_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # they save what they find
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
    (command,) = (line for line in CONSOLE if line.startswith("hvpspec spectrum model.pt"))
    assert cli.run(command.split()[1:]) == 0
    printed = capsys.readouterr().out
    assert "loss on the data" in printed
    assert (tmp_path / "spectrum.json").exists()


def test_the_demo_prints_what_is_shown(tmp_path, capsys):
    """Word by word: sentences that a terminal wraps are one line where they are piped."""
    shown = _words(re.search(r"<!-- demo -->\n```\n(.*?)```", README, re.DOTALL).group(1))
    assert cli.run(["demo", "--out", str(tmp_path)]) == 0
    printed = _words(capsys.readouterr().out)[: len(shown)]
    for i, (word, other) in enumerate(zip(printed, shown, strict=True)):
        if (number := _number(other)) is None:
            assert word == other, shown[max(i - 5, 0) : i + 5]
        else:  # rounding errors differ from machine to machine; tiny errors are nothing but those
            assert _number(word) == pytest.approx(number, rel=2e-3, abs=1e-9), shown[max(i - 5, 0) : i + 5]


def _words(text):
    return _without_costs(text).split()


def _number(word):
    try:
        return float(word.strip("[],%").replace(",", ""))
    except ValueError:
        return None


def _without_costs(line):
    return re.sub(r"(about|up to [\d,]+ HVPs,) \d+ (s|min)( \([\d.]+ s each\))?, [\d.]+ [MG]iB", "", line)


def test_the_figures_on_finite_differences():
    condition, ours, theirs = rosenbrock_errors()
    assert f"{condition:.1e}" == "1.4e+13"
    assert ours < 0.0014  # shown as 0.0007
    assert min(theirs.values()) > 0.06  # 0.12
    assert theirs[1e-4] == pytest.approx(2100, rel=0.1)


@pytest.mark.parametrize("link", re.findall(r"\]\((results/[^)]+\.md)\)", README))
def test_results_are_there_and_name_their_command(link):
    text = (Path(__file__).parent.parent / link).read_text()
    script = re.search(r"`python (scripts/\w+(?:\.py)?)", text).group(1)
    assert (Path(__file__).parent.parent / script).exists()


def test_the_comparison_with_other_packages_is_the_measured_one():
    sections = (ROOT / "results/peers.md").read_text().split("\n## ")
    (digits,) = (section for section in sections if section.startswith("Digits"))
    measured = [line for line in digits.splitlines() if line.startswith("|")]
    assert len(measured) == 6
    assert "\n".join(measured) in README


def test_the_cost_of_a_product_is_the_measured_one():
    least, most = map(float, re.search(r"on two CPU cores (\S+) to (\S+) gradients per\s+product", README).groups())
    sections = re.split(r"^## ", (ROOT / "results/oracle.md").read_text(), flags=re.MULTILINE)[1:5]
    costs = [float(re.search(r"^\| hvpspec, compiled \| (\S+) \|", part, re.MULTILINE).group(1)) for part in sections]
    assert (least, most) == (round(min(costs), 1), round(max(costs), 1))


def test_the_picture_is_there_and_its_script_makes_one(tmp_path, monkeypatch):
    (path,) = re.findall(r"!\[[^\]]{50,}\]\((results/demo\.png)\)", README)  # with a text for those who do not see it
    shown = imread(ROOT / path)
    assert "`python scripts/picture.py`" in README
    monkeypatch.setattr(picture, "TARGET", tmp_path / "demo.png")
    picture.main()
    made = imread(tmp_path / "demo.png")
    assert made.shape == shown.shape
    assert np.abs(made - shown).mean() < 0.02  # of one; fonts and rounding differ a little from machine to machine


def test_commands_in_the_readme_exist():
    names = {line.split()[1] for line in CONSOLE if line.startswith("hvpspec ")}
    assert {"spectrum", "compare"} <= names <= {command.__name__ for command in cli.COMMANDS}


def test_options_in_the_readme_exist(capsys):
    for command in cli.COMMANDS:
        assert cli.run([command.__name__, "--help"]) == 0
    help_text = capsys.readouterr().out
    for option in set(re.findall(r"`(--[a-z-]+)", README)):
        assert option in help_text, option
