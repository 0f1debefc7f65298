"""Where results come from: paths relative to the current folder, or none, and a command that makes them again."""

import json
import shlex

import pytest
from cli_files import call
from track_files import NAMES
from track_files import USUAL as SERIES

from hvpspec.cli.provenance import shown

SHORT = ("--only", "trace", "--rtol", "0.5", "--no-preflight", "-q")


@pytest.mark.parametrize(
    ("path", "relative", "name"),
    [
        ("{here}/a/model.pt", "a/model.pt", "model.pt"),
        ("{here}/train.py:build", "train.py:build", "train.py:build"),
        ("a/../b.py:f", "a/../b.py:f", "b.py:f"),
        ("/elsewhere/model.pt", "/elsewhere/model.pt", "model.pt"),
        ("../model.pt", "../model.pt", "model.pt"),
        ("package.module:f", "package.module:f", "package.module:f"),
        ("{here}beside/model.pt", "{here}beside/model.pt", "model.pt"),
    ],
)
def test_paths_are_relative_where_they_can_be(path, relative, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, relative = (each.format(here=tmp_path) for each in (path, relative))
    assert shown(path) == relative
    assert shown(path, folders=False) == name


def test_no_folder_of_this_machine_is_in_the_files(folder, tmp_path):
    out = tmp_path / "secret"
    source = ("--model", f"{folder}/train.py:build", "--data", f"{folder}/train.py:batches", "--loss", "cross_entropy")
    command = ("spectrum", str(folder / "model.pt"), *source, f"--out={out}", *SHORT)
    assert call(folder, *command).returncode == 0
    provenance = json.loads((out / "spectrum.json").read_text())["provenance"]
    assert provenance["checkpoint"]["path"] == "model.pt"
    assert (provenance["model"], provenance["data"]["source"]) == ("train.py:build", "train.py:batches")
    assert provenance["command"][2:4] == ["model.pt", "--model"]
    assert call(tmp_path, *command, "--no-paths").returncode == 0
    for path in out.iterdir():
        content = path.read_bytes()
        for part in (*folder.parts[1:], *out.parts[1:-1]):
            assert part.encode() + b"/" not in content, (path.name, part)
    provenance = json.loads((out / "spectrum.json").read_text())["provenance"]
    assert provenance["checkpoint"]["path"] == "model.pt"
    assert "--out=secret" in provenance["command"]
    assert str(folder) not in json.dumps(provenance)


def test_a_series_without_paths(run_folder, tmp_path):
    out = tmp_path / "secret"
    source = ("--model", f"{run_folder}/train.py:build", "--data", f"{run_folder}/train.py:batches", *SERIES[4:])
    command = ("track", str(run_folder / NAMES[0]), str(run_folder / NAMES[1]), *source, f"--out={out}", "-k", "1")
    for _ in range(2):  # the second one finds all done
        done = call(run_folder, *command, "--no-paths")
        assert done.returncode == 0, done.stderr
        for path in out.iterdir():
            content = path.read_bytes()
            for part in (*run_folder.parts[1:], *out.parts[1:-1]):
                assert part.encode() + b"/" not in content, (path.name, part)
    found = json.loads((out / "track.json").read_text())
    assert [row["checkpoint"] for row in found["checkpoints"]] == NAMES[:2]
    assert found["settings"]["model"] == "train.py:build"
    assert found["command"][2] == NAMES[0]


def test_the_command_makes_it_again(folder, tmp_path):
    """Word for word, whatever is in it."""
    source = ("--model", "train.py:build", "--data", "train.py:batches", "--loss", "cross_entropy")
    done = call(folder, "spectrum", "model.pt", *source, "--parameters", "0.*", "--seed", "3", *SHORT, "--out", "a b'c")
    assert done.returncode == 0, done.stderr
    first = json.loads((folder / "a b'c/spectrum.json").read_text())
    line = shlex.join(first["provenance"]["command"])
    assert call(folder, *shlex.split(line)[1:]).returncode == 0
    again = json.loads((folder / "a b'c/spectrum.json").read_text())
    assert again["figures_sha256"] == first["figures_sha256"]
    assert again["trace"] == first["trace"]
