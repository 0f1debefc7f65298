"""A run that ends before its end goes on when the same command is given again; others are kept out of its folder."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cli_files import USUAL, call, without_times
from track_files import NAMES
from track_files import USUAL as SERIES

from hvpspec import cli
from hvpspec.krylov.log import log_file
from hvpspec.krylov.log.journal import Journal
from hvpspec.oracle.choose import Chooser
from hvpspec.system.folder_lock import FolderLock

DEMO = ("demo", "-k", "3", "--rtol", "0.05")
RUN = ("spectrum", *USUAL, "-k", "3", "--rtol", "0.2", "--dtype", "float64")


@pytest.fixture
def place(folder, tmp_path):
    """The user's files, to be changed."""
    for name in ("train.py", "model.pt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return tmp_path


@pytest.fixture
def stopping(monkeypatch):
    """Makes the next commands end by Ctrl-C, or by an error, at a product."""
    multiply = Chooser.__call__

    def at(product, error=KeyboardInterrupt):
        made = 0

        def counting(chooser, columns, on_batch=None):
            nonlocal made
            made += columns.shape[1]
            if made > product:
                raise error
            return multiply(chooser, columns, on_batch)

        monkeypatch.setattr(Chooser, "__call__", counting)

    return at


def document(folder, name="spectrum.json"):
    return without_times(json.loads((folder / name).read_text()))


def checks(found):
    """Products that the preflight made, before those that a journal keeps."""
    return found["preflight"]["measured"]["hvps"]


def figures(found):
    """Without the command, which may name another folder, and where the files were."""
    return {name: value for name, value in found.items() if name != "provenance"}


def killed(tmp_path, kills, seed, *command, seconds=600):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), str(kills), str(seed), *command],
        cwd=tmp_path, capture_output=True, text=True, timeout=seconds, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_at_random_moments_it_gives_the_same_figures(tmp_path):
    found = killed(tmp_path, 3, 1, *DEMO)
    assert found["wrong"] == []
    assert found["kills"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_random_moments_often(tmp_path, seed):
    options = [[], ["--blocks", "*", "--max-hvps", "120"], ["--refine", "--refine-hvps", "60"]][seed % 3]
    found = killed(tmp_path, 12, seed, *DEMO, *options)
    assert found["wrong"] == []
    assert found["kills"] == 12
    assert found["useful"] > 4


LARGER = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(200, 600), nn.Tanh(), nn.Linear(600, 600), nn.Tanh(), nn.Linear(600, 10))

def batches():
    x = torch.randn(256, 200, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split(64), (x[:, :10].argmax(1)).split(64)))
"""


@pytest.mark.slow
def test_killed_at_random_moments_with_more_parameters(tmp_path):
    (tmp_path / "larger.py").write_text(LARGER)
    space = {}
    exec(LARGER, space)
    torch.save(space["build"]().state_dict(), tmp_path / "model.pt")
    source = ["--model", "larger.py:build", "--data", "larger.py:batches", "--loss", "cross_entropy"]
    # A fixed engine: "auto" decides by time, and what a killed process has not recorded may be decided otherwise.
    options = ["--engine", "autograd", "-k", "3", "--rtol", "0.2", "--max-hvps", "30"]
    found = killed(tmp_path, 5, 0, "spectrum", "model.pt", *source, *options)
    assert found["wrong"] == []
    assert found["useful"] > 2


@pytest.mark.slow
@pytest.mark.parametrize("limit", range(9, 17))
def test_killed_in_every_write_of_a_run_of_the_demo(tmp_path, monkeypatch, limit):
    """Each process is killed in a write of a later record than the one before: a record takes at most 8. Half of that
    write gets to the file, and nothing is tidied up."""

    class Killed(BaseException):
        pass

    assert call(tmp_path, *DEMO, "--out", "whole").returncode == 0
    whole, cut, writes, runs = log_file.write, log_file.LogFile.cut, 0, 0

    def dying(file, buffer):
        nonlocal writes
        writes += 1
        if writes < limit:
            return whole(file, buffer)
        whole(file, bytes(buffer)[: len(buffer) // 2])
        monkeypatch.setattr(log_file.LogFile, "cut", lambda log: None)
        raise Killed

    monkeypatch.setattr(log_file, "write", dying)
    while True:
        runs, writes = runs + 1, 0
        try:
            assert call(tmp_path, *DEMO, "--out", "out").returncode == 0
            break
        except Killed:
            monkeypatch.setattr(log_file.LogFile, "cut", cut)
    assert runs > 6
    assert figures(document(tmp_path / "out")) == figures(document(tmp_path / "whole"))


def test_two_runs_give_the_same_files_but_for_times(tmp_path, rendered):
    command = [*DEMO, "--blocks", "*", "--out", "out"]
    files = []
    for _ in range(2):
        assert call(tmp_path, *command).returncode == 0
        pictures = [(tmp_path / "out" / name).read_bytes() for name in ("spectrum.svg", "spectrum.png")]
        files.append((document(tmp_path / "out"), *pictures))
    assert files[0] == files[1]


def test_interrupted_it_goes_on_and_says_so(place, stopping):
    whole = call(place, *RUN, "--out", "whole")
    assert whole.stderr == ""
    assert {path.name for path in (place / "whole").iterdir()} == {
        "spectrum.json", "spectrum.svg", "spectrum.png", "report.html",
    }  # fmt: skip
    expected = document(place / "whole")
    stopping(checks(expected) + 11)
    done = call(place, *RUN, "--out", "run")
    assert done.returncode == 130
    assert "products are kept in run/hvpspec-journal: the same command goes on from there." in done.stderr
    assert document(place / "run")["complete"] is False
    stopping(expected["hvps"] - 8)  # what is left, but not all
    done = call(place, *RUN, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "goes on with an interrupted run: " in done.stderr
    assert figures(document(place / "run")) == figures(expected)
    assert not (place / "run/hvpspec-journal").exists()


def test_the_seconds_are_those_of_all_processes(place, stopping, monkeypatch):
    append = Journal._append

    def slowly(journal, *arguments):
        journal._began = time.perf_counter() - 1000
        append(journal, *arguments)

    with monkeypatch.context() as slow:
        slow.setattr(Journal, "_append", slowly)
        stopping(15)
        assert call(place, *RUN, "--out", "run").returncode == 130
    stopping(1000)
    assert call(place, *RUN, "--out", "run").returncode == 0
    found = json.loads((place / "run/spectrum.json").read_text())
    assert 1000 < found["provenance"]["seconds"] < 1100
    assert found["seconds"] < 100


def test_an_error_on_the_way_costs_no_product(place, stopping):
    assert call(place, *RUN, "--out", "whole").returncode == 0
    whole = document(place / "whole")
    stopping(checks(whole) + 11, OSError("the data are gone"))
    assert call(place, *RUN, "--out", "run").returncode == 1
    stopping(whole["hvps"] - 8)
    assert call(place, *RUN, "--out", "run").returncode == 0
    assert figures(document(place / "run")) == figures(whole)


def test_restart_starts_over(place, stopping):
    stopping(15)
    assert call(place, *RUN, "--out", "run").returncode == 130
    stopping(15)
    assert call(place, *RUN, "--out", "run", "--restart").returncode == 130  # as many products as before
    stopping(1000)
    assert call(place, *RUN, "--out", "run").returncode == 0


def test_an_interrupted_run_with_other_inputs_is_refused_with_what_differs(place, stopping):
    stopping(15)
    assert call(place, *RUN, "--out", "run").returncode == 130
    (place / "run/spectrum.json").unlink()
    stopping(1000)
    weights = torch.load(place / "model.pt")
    weights["model"]["module.2.bias"] += 1e-7
    torch.save(weights, place / "other.pt")
    (place / "data.py").write_text((place / "train.py").read_text().replace("randn(50", "randn(51"))
    for changed, said in (
        (("spectrum", *USUAL, "-k", "4", "--rtol", "0.2", "--dtype", "float64"), "(-k: 3 then, 4 now)"),
        ((*RUN, "--seed", "1"), "(--seed: 0 then, 1 now)"),
        ((*RUN, "--engine", "autograd"), "(engine: auto then, autograd now)"),
        (("spectrum", "other.pt", *RUN[2:]), "checkpoint (SHA-256), values of the model"),
        ((*RUN, "--data", "data.py:batches"), "--data: train.py:batches then, data.py:batches now"),
    ):
        done = call(place, *changed, "--out", "run")
        assert done.returncode == 2
        assert said.replace("engine", "--engine") in done.stderr
        assert "start over with --restart, or choose another --out." in done.stderr
    assert call(place, *RUN, "--seed", "1", "--out", "run", "--force").returncode == 0
    assert not (place / "run/hvpspec-journal").exists()


def test_a_result_of_other_inputs_is_not_overwritten(place):
    assert call(place, *RUN, "--out", "run").returncode == 0
    before = (place / "run/spectrum.json").read_bytes()
    for changed, said in (
        (("-k", "2"), "(-k: 3 then, 2 now)"),
        (("--only", "trace"), "(--only)"),
        (("--dtype", "float32"), "(--dtype: float64 then, float32 now)"),
        (("--loss", "train.py:loss"), "(--loss: cross_entropy then, train.py:loss now)"),
        (("--parameters", "0"), "(--parameters: none then, [0] now)"),
    ):
        done = call(place, *RUN, *changed, "--out", "run")
        assert done.returncode == 2
        assert f"spectrum.json is the result of other inputs {said}; choose another --out" in done.stderr
        assert (place / "run/spectrum.json").read_bytes() == before
        assert not (place / "run/hvpspec-journal").exists()
    assert call(place, *RUN, "--out", "run", "--lr", "0.1", "--no-preflight").returncode == 0  # the same inputs
    weights = torch.load(place / "model.pt")
    weights["model"]["module.2.bias"] += 1
    torch.save(weights, place / "model.pt")
    done = call(place, *RUN, "--out", "run")
    assert "is the result of other inputs (checkpoint (SHA-256))" in done.stderr
    assert call(place, *RUN, "--out", "run", "--force").returncode == 0
    for content in ("{}", "nonsense", '{"provenance": {"options": 3}}', "[" * 100_000):
        (place / "run/spectrum.json").write_text(content)
        done = call(place, *RUN, "--out", "run")
        assert done.returncode == 2
        assert "is no result of hvpspec that can be read; choose another --out, or overwrite it" in done.stderr


def test_a_large_journal_is_planned_and_one_that_does_not_fit_is_not_kept(place, monkeypatch, stopping):
    monkeypatch.setattr("hvpspec.cli.measure._MUCH_DISK", 1)
    done = call(place, *RUN, "--out", "run")
    assert "journal: about " in done.stdout
    assert "KiB in run/hvpspec-journal, until the run has ended well" in done.stdout
    monkeypatch.setattr("hvpspec.krylov.log.journal.shutil.disk_usage", lambda folder: SimpleNamespace(free=20_000))
    stopping(30)
    done = call(place, *RUN, "--out", "run", "--restart")
    assert done.returncode == 130
    assert "warning: no journal is kept in run/hvpspec-journal: it would take about" in done.stderr
    assert "journal: about" not in done.stdout
    assert not (place / "run/hvpspec-journal").exists()


def test_no_journal(place, stopping):
    stopping(15)
    done = call(place, *RUN, "--out", "run", "--no-journal")
    assert done.returncode == 130
    assert "kept" not in done.stderr
    assert [path.name for path in (place / "run").iterdir() if "journal" in path.name] == []


def test_what_is_refused_leaves_no_journal(place):
    assert call(place, *RUN, "--loss", "train.py:detached", "--out", "run").returncode == 2
    assert list((place / "run").iterdir()) == []


@pytest.mark.parametrize("command", ["spectrum", "track"])
def test_one_run_at_a_time_in_a_folder(place, command):
    (place / "run").mkdir()
    with FolderLock(place / "run"):
        done = call(place, command, *RUN[1:], "--only", "eigenvalues", "--out", "run")
        assert done.returncode == 2
        assert done.stderr == (
            "hvpspec: --out run: another run is writing there; wait for it, or choose another folder.\n"
        )
    assert call(place, command, *RUN[1:], "--only", "eigenvalues", "--out", "run").returncode == 0


def test_a_series_goes_on_inside_a_checkpoint(run_folder, monkeypatch, stopping, capsys):
    command = ["track", *NAMES[:3], *SERIES, "-k", "2", "--measure-savings"]
    assert cli.run([*command, "--out", "whole"]) == 0
    whole = document(run_folder / "whole", "track.json")
    rows, checked = whole["checkpoints"], checks(whole["runs"][0])
    stopping(checked + rows[0]["hvps"] + rows[1]["hvps"] + rows[1]["cold_hvps"] - 5)
    assert cli.run([*command, "--out", "run"]) == 130
    assert "1 of 3 checkpoints are done" in capsys.readouterr().err
    assert (run_folder / "run/hvpspec-journal-1/rank-0.log").exists()
    stopping(checked + 12 + rows[2]["hvps"] + rows[2]["cold_hvps"])
    assert cli.run([*command, "--out", "run"]) == 0
    assert document(run_folder / "run", "track.json")["checkpoints"] == rows
    assert not list((run_folder / "run").glob("*journal*"))


def test_savings_of_checkpoints_that_are_done_go_on_as_well(run_folder, monkeypatch, stopping, capsys):
    command = ["track", *NAMES[:3], *SERIES, "-k", "2", "--no-preflight"]
    assert cli.run([*command, "--measure-savings", "--out", "whole"]) == 0
    rows = document(run_folder / "whole", "track.json")["checkpoints"]
    assert cli.run([*command, "--out", "run"]) == 0
    stopping(rows[1]["cold_hvps"] + 40)
    assert cli.run([*command, "--measure-savings", "--out", "run"]) == 130
    assert (run_folder / "run/hvpspec-journal-2/rank-0.log").exists()
    stopping(rows[2]["cold_hvps"] - 20)
    assert cli.run([*command, "--measure-savings", "--out", "run"]) == 0
    found = document(run_folder / "run", "track.json")["checkpoints"]
    assert [row["cold_hvps"] for row in found] == [row["cold_hvps"] for row in rows]
    assert not list((run_folder / "run").glob("*journal*"))


def test_a_series_starts_over_where_it_is_told_to(run_folder, capsys):
    command = ["track", *NAMES[:2], *SERIES, "-k", "1", "--only", "eigenvalues", "--no-preflight", "--out", "run"]
    assert cli.run(command) == 0
    assert cli.run([*command, "--seed", "1"]) == 2
    assert "with other options (seed); choose another --out, or replace that file with --force" in (
        capsys.readouterr().err
    )
    assert cli.run([*command, "--seed", "1", "--restart"]) == 2  # the result remains another one's
    assert cli.run([*command, "--seed", "1", "--force"]) == 0
    runs = json.loads((run_folder / "run/track.json").read_text())["runs"]
    assert [run["done_before"] for run in runs] == [0]
    assert cli.run([*command, "--seed", "1", "--restart"]) == 0
    runs = json.loads((run_folder / "run/track.json").read_text())["runs"]
    assert [run["done_before"] for run in runs] == [0]
