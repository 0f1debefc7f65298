"""Every script imports, and says with --help what it does."""

import importlib
import runpy
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
PEERS = {"curvlinops", "hessian_eigenthings", "pyhessian"}  # in the extra `bench`, or installed by hand


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_imports_and_has_a_help_text(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    try:
        if '__name__ == "__main__"' not in path.read_text():
            assert importlib.import_module(path.stem).__doc__
            return
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
    except ModuleNotFoundError as error:
        if error.name not in PEERS:
            raise
        pytest.skip(f"{error.name} is not installed")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage:")
    assert path.read_text().split('"""')[1].split()[0] in printed


@pytest.mark.parametrize("name", ["setup", "test", "demo", "chromium", "html-validate", "check-package"])
def test_shell_scripts_say_what_they_do(name):
    first, second = (SCRIPTS / name).read_text().splitlines()[:2]
    assert first == "#!/usr/bin/env bash"
    assert second.startswith("# ")
    assert (SCRIPTS / name).stat().st_mode & 0o100


def test_the_ceiling_is_tried_on_a_share_of_all_ranks_and_multiplicities(capsys):
    script = importlib.import_module("calibrate_adversarial")
    rows = [script.check_ceiling(4, 1, share) for share in (1.0, 0.5)]
    assert [(row.cells, row.runs) for row in rows] == [(11, 22), (6, 12)]  # in float64 and float32
    assert all(row.mean <= row.most <= 16 and row.open_ends == 0 for row in rows)
    script.write_ceiling(rows[:1], Namespace(seeds=1, share=1.0, printed=True))
    printed = capsys.readouterr().out
    assert "22 runs on 11 ranks and multiplicities of 11." in printed
    with pytest.raises(AssertionError):
        script.write_ceiling([replace(rows[0], most=17)], Namespace(seeds=1, share=1.0, printed=True))
