"""`hvpspec track`: what it finds, the order of the checkpoints, and how an interrupted series continues."""

import csv
import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from track_files import NAMES, RATE, SHORT, USUAL, rows, without_seconds

from hvpspec import cli
from hvpspec.report.documents import schema
from hvpspec.runs.checkpoint_order import step_of


def test_a_series_against_explicit_hessians(training_run, exact, monkeypatch, capsys, rendered):
    folder, before = training_run, None
    monkeypatch.chdir(folder)
    shuffled = [NAMES[i] for i in (5, 1, 0, 3, 2, 4)]
    assert cli.run(["track", *shuffled, *USUAL, "-k", "3", "--lr", str(RATE), "--measure-savings", "--out", "a"]) == 0
    printed = capsys.readouterr().out
    assert "warm starts saved" in printed
    found = rows(folder / "a")
    assert [entry["step"] for entry in found] == [0, 2, 4, 6, 8, 10]
    for entry in found:
        values, vectors, loss = exact[entry["checkpoint"]]
        assert abs(entry["lambda_max"] - values[-1]) <= entry["lambda_max_error"] + 1e-12
        assert entry["lambda_min_lower"] <= values[0] <= entry["lambda_min"] + 1e-12
        assert values[-1] <= entry["lambda_max_upper"]
        assert abs(entry["trace"] - values.sum()) <= entry["trace_error"]
        norm = np.sqrt((values**2).sum())
        assert abs(entry["frobenius_norm"] - norm) <= entry["frobenius_norm_error"]
        assert entry["edge"] == 2 / RATE
        assert entry["loss"] == pytest.approx(loss, rel=1e-9)
        top = vectors[:, np.argsort(-np.abs(values))[:3]]
        if before is None:
            assert entry["overlap"] is None
            assert entry["cold_hvps"] == entry["hvps"]
        else:
            assert entry["overlap"] == pytest.approx(((before.T @ top) ** 2).sum() / 3, abs=1e-3)
        before = top
    with (folder / "a/track.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(entry["lambda_max"]) for entry in table] == [entry["lambda_max"] for entry in found]
    assert table[0]["overlap"] == ""
    for name in ("track.svg", "track.png"):
        assert (folder / "a" / name).stat().st_size > 1000


def test_interrupted_it_goes_on_to_the_same_figures(training_run, monkeypatch, capsys):
    folder = training_run
    weights = torch.load(folder / NAMES[3])
    command = ["track", *NAMES, *USUAL, "-k", "3", "--out", "b"]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("STOP_AT", repr(float(weights["0.weight"].double().sum())))
    assert cli.run(command) == 130
    assert "3 of 6 checkpoints are done" in capsys.readouterr().err
    assert len(rows(folder / "b")) == 3
    monkeypatch.delenv("STOP_AT")
    assert cli.run(command) == 0
    assert "3 of them done before" in capsys.readouterr().out
    assert cli.run([*command[:-1], "c"]) == 0
    resumed, whole = without_seconds(rows(folder / "b")), without_seconds(rows(folder / "c"))
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == (pytest.approx(value, rel=1e-6, abs=1e-9) if isinstance(value, float) else value), name
    assert cli.run(command) == 0  # nothing left to do
    assert without_seconds(rows(folder / "b")) == resumed


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
def test_every_engine_sees_each_checkpoint(run_folder, exact, engine):
    """What an engine keeps of one checkpoint must not outlive it."""
    assert cli.run(["track", *NAMES[:3], *USUAL, "-k", "2", "--engine", engine, "--out", "x"]) == 0
    for entry in rows(run_folder / "x"):
        values = exact[entry["checkpoint"]][0]
        assert entry["lambda_max"] == pytest.approx(values[-1], rel=1e-5)
        assert abs(entry["lambda_min"] - values[0]) <= entry["lambda_min_error"] + 1e-12
        assert abs(entry["trace"] - values.sum()) <= entry["trace_error"]


def test_savings_are_estimated_and_where_the_rows_come_from_is_written(run_folder, capsys):
    command = ["track", *USUAL, "-k", "2", "--rtol", "0.3", "--out", "x"]
    assert cli.run([*command, *NAMES[:2]]) == 0
    assert cli.run([*command, *NAMES[:3], "--no-preflight"]) == 0
    printed = capsys.readouterr()
    assert "(an estimate; --measure-savings measures it)" in printed.out
    assert "expected: about" in printed.err
    document = json.loads((run_folder / "x/track.json").read_text())
    jsonschema.Draft202012Validator(schema("track")).validate(document)
    first, *others = document["checkpoints"]
    assert first["hvps_saved_estimate"] is None
    assert 0 < first["eigenvalue_hvps"] < first["hvps"]
    for entry in others:
        assert entry["hvps_saved_estimate"] == first["eigenvalue_hvps"] - entry["eigenvalue_hvps"]
        assert entry["hvps_saved"] is None
    earlier, later = document["runs"]
    assert (earlier["done_before"], later["done_before"]) == (0, 2)
    assert earlier["preflight"]["measured"]["symmetry"] is not None
    assert later["preflight"]["measured"]["symmetry"] is None
    assert {"hvpspec", "torch", "numpy"} <= set(earlier["versions"])
    assert (earlier["dtype"], earlier["device"]) == ("float64", "cpu")


def test_folders_of_directories(run_folder, capsys):
    """Those of Hugging Face's trainer, with its other files, and those of torch.distributed.checkpoint."""
    transformers = pytest.importorskip("transformers")
    import torch.distributed.checkpoint as dcp

    config = transformers.BertConfig(
        vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=5,
        max_position_embeddings=8, num_labels=3,
    )  # fmt: skip
    for step in (100, 20):
        transformers.BertForSequenceClassification(config).save_pretrained(run_folder / f"run/checkpoint-{step}")
    torch.save({}, run_folder / "run/training_args.bin")
    (run_folder / "text.py").write_text(
        "import torch\n"
        "def batches():\n"
        "    return [{'input_ids': torch.arange(1, 7).view(2, 3), 'labels': torch.tensor([0, 2])}]\n"
        "def loss(model, batch):\n"
        "    return model(**batch).loss, 2\n"
    )
    text = ["--data", "text.py:batches", "--loss", "text.py:loss"]
    assert cli.run(["track", "run", *text, *SHORT, "--out", "x"]) == 0
    assert [entry["step"] for entry in rows(run_folder / "x")] == [20, 100]
    figures = [entry["lambda_max"] for entry in rows(run_folder / "x")]
    assert figures[0] != figures[1]

    for name in NAMES[:2]:
        dcp.save(torch.load(name), checkpoint_id=f"shards/{Path(name).stem}", no_dist=True)
    assert cli.run(["track", "shards", *USUAL, *SHORT, "--out", "y"]) == 0
    assert cli.run(["track", *NAMES[:2], *USUAL, *SHORT, "--out", "z"]) == 0
    found = [[entry["lambda_max"] for entry in rows(run_folder / name)] for name in ("y", "z")]
    assert found[0] == pytest.approx(found[1])
    capsys.readouterr()
    (run_folder / "none").mkdir()
    assert cli.run(["track", "none", *USUAL, "--out", "w"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "hvpspec: none: there is no checkpoint in this folder; nothing was started.\n"


def test_folders_and_patterns(run_folder, capsys):
    (run_folder / "all").mkdir()
    for name in NAMES[:2]:
        shutil.copy(name, run_folder / "all")
    (run_folder / "all/notes.txt").write_text("no checkpoint")
    options = [*USUAL, "-k", "1", "--only", "eigenvalues"]
    assert cli.run(["track", "all", *options, "--out", "x"]) == 0
    assert cli.run(["track", "ckpt-[02].pt", *options, "--out", "y"]) == 0
    assert [entry["step"] for entry in rows(run_folder / "x")] == [0, 2]
    figures = [[entry["lambda_max"] for entry in rows(run_folder / name)] for name in ("x", "y")]
    assert figures[0] == pytest.approx(figures[1])
    assert cli.run(["track", "none-*.pt", *options, "--out", "z"]) == 2
    assert "none-*.pt: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("ckpt-500.pt", 500), ("epoch=3-step=500.ckpt", 500), ("epoch=3-step=500-v1.ckpt", 500),
        ("step10-loss-0.35.pt", 10), ("ckpt.7.pth.tar", 7), ("model.step12.safetensors", 12), ("checkpoint-40", 40),
        ("loss-0.35.pt", None), ("last.pt", None),
    ],
)  # fmt: skip
def test_the_step_in_a_name(name, step):
    assert step_of(Path(name)) == step


def test_the_step_in_a_file(run_folder):
    torch.save({"model": torch.load(NAMES[1]), "global_step": 77}, "last.pt")
    assert cli.run(["track", "last.pt", *USUAL, "-k", "1", "--only", "eigenvalues", "--lr", "0.5", "--out", "x"]) == 0
    (entry,) = rows(run_folder / "x")
    assert entry["step"] == 77
    assert entry["lambda_max_over_edge"] == pytest.approx(entry["lambda_max"] * 0.5 / 2)
    assert entry["hvps_saved"] is None


def test_a_budget_too_small_for_any_pair(run_folder, exact, capsys):
    """What little is known is written with errors that hold."""
    for budget in ("1", "4"):
        assert cli.run(["track", *NAMES[:3], *USUAL, "-k", "5", "--max-hvps", budget, "--out", budget]) == 0
        assert "3 of 3 checkpoints did not reach the tolerance" in capsys.readouterr().out
        for entry in rows(run_folder / budget):
            values = exact[entry["checkpoint"]][0]
            assert entry["converged"] is False
            for name, value in (("lambda_max", values[-1]), ("lambda_min", values[0])):
                error = entry[f"{name}_error"]
                assert error is None or abs(entry[name] - value) <= error
