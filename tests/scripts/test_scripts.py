"""Every script imports, and says with --help what it does."""

import importlib
import runpy
import sys
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
