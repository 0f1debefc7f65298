"""A checkpoint that is replaced while a run goes on, as trainers do: the SHA-256 is of what was measured."""

import json

import pytest
import torch
from cli_files import USUAL, call
from track_files import NAMES, SHORT, rows
from track_files import USUAL as SERIES

from hvpspec import cli
from hvpspec.checkpoint.formats.files import sha256
from hvpspec.cli import prepare

REPLACING = """
from train import *
from train import batches as _batches

def batches():
    content = torch.load("model.pt")
    torch.save({"model": {name: value + 1 for name, value in content["model"].items()}}, "model.new")
    __import__("os").replace("model.new", "model.pt")
    return _batches()
"""


@pytest.mark.parametrize("command", ["spectrum", "check"])
def test_after_it_was_read(folder, command):
    before = (folder / "model.pt").read_bytes()
    old = sha256(folder / "model.pt")
    (folder / "replacing.py").write_text(REPLACING)
    options = ("-k", "1", "--only", "eigenvalues", "--out", f"replaced-{command}")
    usual = [argument.replace("train.py:batches", "replacing.py:batches") for argument in USUAL]
    try:
        done = call(folder, command, *usual, *options)
        assert done.returncode == 0, done.stderr
        assert sha256(folder / "model.pt") != old
    finally:
        (folder / "model.pt").write_bytes(before)
    document = json.loads((folder / f"replaced-{command}/{command}.json").read_text())
    assert document["provenance"]["checkpoint"]["sha256"] == old


def test_while_it_is_read(folder, monkeypatch):
    path = folder / "model.pt"
    before, load = path.read_bytes(), prepare.load_checkpoint

    def slow(*arguments, **options):
        model = load(*arguments, **options)
        path.write_bytes(before[:-1] + b"!")
        return model

    monkeypatch.setattr(prepare, "load_checkpoint", slow)
    try:
        done = call(folder, "spectrum", *USUAL, "-k", "1", "--out", "while")
    finally:
        path.write_bytes(before)
    assert done.returncode != 0
    assert "model.pt has changed while it was read" in done.stderr
    assert not (folder / "while/spectrum.json").exists()


def test_a_series(run_folder, monkeypatch, capsys):
    """The second checkpoint is replaced as soon as it is read."""
    old, path, read = [sha256(run_folder / name) for name in NAMES[:2]], run_folder / NAMES[1], prepare.read

    def and_replace(checkpoint, *arguments, **options):
        found = read(checkpoint, *arguments, **options)
        if checkpoint.name == NAMES[1]:
            torch.save({name: value + 1 for name, value in torch.load(path).items()}, path)
        return found

    monkeypatch.setattr("hvpspec.cli.series.read", and_replace)
    command = ["track", *NAMES[:2], *SERIES, *SHORT, "--out", "replaced"]
    assert cli.run(command) == 0
    assert [row["sha256"] for row in rows(run_folder / "replaced")] == old
    assert sha256(path) != old[1]
    capsys.readouterr()
    assert cli.run(command) != 0  # the rows are of another file than the one that is there now
    assert f"{NAMES[1]} has changed since" in capsys.readouterr().err
