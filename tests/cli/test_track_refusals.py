"""`hvpspec track`: what can go wrong on the way, and what is not the same series."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import unrendered
from track_files import NAMES, SHORT, USUAL, rows, without_seconds

from hvpspec import cli


def test_what_is_not_the_same_series_is_refused(training_run, monkeypatch, capsys):
    folder = training_run
    monkeypatch.chdir(folder)
    base = [*USUAL, "-k", "2", "--out", "d"]
    assert cli.run(["track", *NAMES[:2], *base]) == 0
    before = (folder / "d/track.json").read_bytes()

    def refused(arguments, message):
        capsys.readouterr()
        assert cli.run(["track", *arguments]) == 2
        assert message in capsys.readouterr().err
        assert (folder / "d/track.json").read_bytes() == before

    refused([*NAMES[:2], *base, "--rtol", "0.3"], "other options (rtol)")
    refused([NAMES[0], *base], "more checkpoints than are given")
    refused([NAMES[0], NAMES[2], *base], "has ckpt-2.pt in place of ckpt-4.pt")
    refused([*NAMES[:3], *base, "--lr", "-1"], "--lr must be a finite number > 0")
    refused([*NAMES[:2], "gone-99.pt", *base], "gone-99.pt")
    refused([*NAMES[:2], *base, "--only", "trace", "--out", "e"], "--only eigenvalues")
    content = (folder / NAMES[1]).read_bytes()
    torch.save({"0.weight": torch.zeros(8, 5)}, folder / NAMES[1])
    refused([*NAMES[:2], *base], "has changed since")
    (folder / NAMES[1]).write_bytes(content)
    assert cli.run(["track", *NAMES[:3], *base]) == 0  # a run that went on
    assert [entry["step"] for entry in rows(folder / "d")] == [0, 2, 4]


def test_one_that_does_not_load_keeps_what_was_done(run_folder, capsys):
    torch.save({"0.weight": torch.zeros(8, 5)}, run_folder / NAMES[3])
    command = ["track", *NAMES, *USUAL, "-k", "2", "--out", "x"]
    assert cli.run(command) == 2
    stderr = capsys.readouterr().err
    *before, error = stderr.splitlines()
    # How many are done is an error's line, on a terminal or not and even with --quiet; what is wrong comes last.
    assert [line for line in before if not line.startswith("expected")] == ["hvpspec: 3 of 6 checkpoints are done."]
    assert error.startswith(f"hvpspec: {NAMES[3]} does not fit the model")
    assert [entry["step"] for entry in rows(run_folder / "x")] == [0, 2, 4]
    assert len((run_folder / "x/track.csv").read_text().splitlines()) == 4


def test_a_missing_one_is_said_before_any_work(run_folder, capsys):
    assert cli.run(["track", *NAMES, "gone-99.pt", *USUAL, "--out", "x"]) == 2
    assert capsys.readouterr().err == "hvpspec: gone-99.pt: no such file; nothing was started.\n"
    assert cli.run(["track", *NAMES, NAMES[0], *USUAL, "--out", "x"]) == 2
    assert "given more than once" in capsys.readouterr().err
    assert not (run_folder / "x").exists()


FOUR_CHECKPOINTS = ["track", *NAMES[:4], *USUAL, "-k", "2", "--rtol", "0.3"]


@pytest.fixture(scope="module")
def uninterrupted(training_run):
    """The folder of a series that was not interrupted."""
    with contextlib.chdir(training_run):
        assert cli.run([*FOUR_CHECKPOINTS, "--out", "uninterrupted"]) == 0
    return training_run / "uninterrupted"


@pytest.mark.parametrize("at", ["track.json", "track.csv"])
def test_killed_between_two_files_it_goes_on_to_the_same_figures(run_folder, uninterrupted, at):
    """Killed, without any clean-up, as the third checkpoint's file is to take its place."""
    kill = (
        "import os, sys\n"
        "replace, seen = os.replace, []\n"
        "def dying(a, b):\n"
        f"    seen.append(1) if os.path.basename(b).startswith({at!r}) else None\n"
        "    os._exit(9) if len(seen) == 3 else replace(a, b)\n"
        "os.replace = dying\n"
        f"sys.path.insert(0, {str(Path(unrendered.__file__).parent)!r})\n"
        "import unrendered\n"
        "unrendered.unrendered().start()\n"
        "from hvpspec import cli\n"
        "sys.exit(cli.run(sys.argv[1:]))\n"
    )
    command = [*FOUR_CHECKPOINTS, "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", kill, *command, "x"], env=environment, capture_output=True, check=False, timeout=300
    )
    assert killed.returncode == 9
    assert len(rows(run_folder / "x")) == (2 if at == "track.json" else 3)
    assert cli.run([*command, "x"]) == 0
    resumed, whole = without_seconds(rows(run_folder / "x")), without_seconds(rows(uninterrupted))
    for ours, theirs in zip(resumed, whole, strict=True):
        for name, value in theirs.items():
            assert ours[name] == (pytest.approx(value, rel=1e-6, abs=1e-9) if isinstance(value, float) else value), name
    kept = {path.name for path in uninterrupted.iterdir()}
    assert kept == {"track.csv", "track.json", "track.png", "track.svg", "track-vectors-4.npy"}
    assert kept <= {path.name for path in (run_folder / "x").iterdir()}
    assert len((run_folder / "x/track.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize("spoilt", ["swapped", "truncated", "gone"])
def test_vectors_that_are_not_the_last_ones_are_refused(run_folder, spoilt, capsys):
    command = ["track", *USUAL, "-k", "2", "--out", "x"]
    assert cli.run([*command, *NAMES[:2]]) == 0
    kept = run_folder / "x/track-vectors-2.npy"
    if spoilt == "swapped":
        np.save(kept, np.load(kept)[:, ::-1])
    elif spoilt == "truncated":
        kept.write_bytes(kept.read_bytes()[:200])
    else:
        kept.unlink()
    capsys.readouterr()
    assert cli.run([*command, *NAMES[:3]]) == 2
    assert "is missing or has changed" in capsys.readouterr().err


def test_what_may_change_on_the_way_and_what_may_not(run_folder, monkeypatch, capsys):
    """The learning rate, the savings and an expected loss may; the data may not, which the last row's loss tells."""
    command = ["track", *USUAL, *SHORT, "--out", "x"]
    assert cli.run([*command, *NAMES[:2]]) == 0
    before = rows(run_folder / "x")
    assert before[0]["edge"] is None
    assert cli.run([*command, *NAMES[:2], "--lr", "0.5", "--measure-savings"]) == 0  # nothing else is to be done
    found = rows(run_folder / "x")
    assert [entry["edge"] for entry in found] == [4, 4]
    assert found[1]["lambda_max_over_edge"] == pytest.approx(found[1]["lambda_max"] / 4)
    assert found[0]["cold_hvps"] == found[0]["hvps"]
    assert found[1]["hvps_saved"] == found[1]["cold_hvps"] - found[1]["hvps"]
    changed = {"edge", "lambda_max_over_edge", "cold_hvps", "hvps_saved"}
    assert [{k: v for k, v in row.items() if k not in changed} for row in found] == [
        {k: v for k, v in row.items() if k not in changed} for row in before
    ]
    table = (run_folder / "x/track.csv").read_text().splitlines()
    assert table[1].split(",")[table[0].split(",").index("edge")] == "4.0"

    then, loss = (run_folder / "x/track.json").read_bytes(), found[0]["loss"]
    capsys.readouterr()
    assert cli.run([*command, *NAMES[:3], "--expect-loss", "0.1"]) == 2
    assert f"the loss at ckpt-0.pt, the first checkpoint, was {loss:.6g}, not 0.1" in capsys.readouterr().err
    monkeypatch.setenv("DATA", "2")
    assert cli.run([*command, *NAMES[:3]]) == 2
    printed = capsys.readouterr()
    assert "the loss at ckpt-2.pt is" in printed.err
    assert "data, loss or model have changed; choose another --out" in printed.err
    assert printed.out == ""
    assert (run_folder / "x/track.json").read_bytes() == then
    monkeypatch.delenv("DATA")
    assert cli.run([*command, *NAMES[:3], "--expect-loss", f"{loss:.4f}"]) == 0
    assert [entry["edge"] for entry in rows(run_folder / "x")] == [None] * 3


def test_options_are_refused_before_anything_is_printed(run_folder, capsys):
    for more in (
        ["--refine"],
        ["--refine-hvps", "9"],
        ["--per-batch"],
        ["--batch-hvps", "9"],
        ["--block-density"],
        ["--blocks", "*"],
        ["--which", "LA"],
        ["--only", "trace"],
        ["--lr", "-1"],
    ):
        assert cli.run(["track", *NAMES, *USUAL, *more, "--out", "x"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
    assert not (run_folder / "x").exists()
