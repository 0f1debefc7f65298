"""`hvpspec spectrum` and `hvpspec demo`: what they print and write."""

import json
import re

import numpy as np
import pytest
import torch
from cli_files import USUAL, call, run

from hvpspec import cli
from hvpspec.checkpoint.formats.files import sha256
from hvpspec.report.documents import read_spectrum


def test_spectrum_prints_and_writes_what_the_explicit_hessian_says(folder, dense):
    D, loss = dense
    done = call(folder, "spectrum", *USUAL, "-k", "5", "--dtype", "float64", "--out", "run/one")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar: not a terminal
    document = json.loads((folder / "run/one/spectrum.json").read_text())
    values = np.linalg.eigvalsh(D)
    values = values[np.argsort(-np.abs(values))][:5]
    assert document["schema"] == "hvpspec/spectrum/1"
    assert document["complete"] is document["converged"] is True
    assert document["parameters"] == len(D)
    assert document["loss"] == pytest.approx(loss, rel=1e-12)
    assert len(document["eigenvalues"]) == 5
    for found, value in zip(document["eigenvalues"], values, strict=True):
        assert abs(found["value"] - value) <= found["error"] + 1e-14
        assert found["residual"] <= 1e-3 * abs(value)
    for name, value in (("trace", np.trace(D)), ("frobenius_norm", np.linalg.norm(D))):
        figure = document[name]
        assert abs(figure["value"] - value) <= figure["error"] <= 0.01 * abs(value)
        assert figure["confidence"] == 0.95
        assert figure["converged"] is True

    lines = done.stdout.splitlines()
    assert re.match(rf"model.pt · {len(D)} parameters · float64 on cpu", lines[0])
    assert lines[1].startswith(f"loss on the data: {loss:.6g} (cross_entropy, 3 batches, 50 samples)")
    assert f"{document['eigenvalues'][0]['value']:.4f}"[:6] in done.stdout
    assert f"{document['hvps']} HVPs in" in done.stdout
    assert "written to run/one/spectrum.json" in done.stdout
    assert max(len(line) for line in lines if "   " in line) <= 80  # the tables


def test_provenance_says_where_the_figures_come_from(folder):
    done = call(folder, "spectrum", *USUAL, "-k", "1", "--seed", "3", "--max-hvps", "20", "--out", "provenance")
    assert done.returncode == 0, done.stderr
    provenance = json.loads((folder / "provenance/spectrum.json").read_text())["provenance"]
    assert provenance["checkpoint"]["sha256"] == sha256(folder / "model.pt")
    assert provenance["data"] == {"source": "train.py:batches", "batches": 3, "weight": 50.0}
    assert provenance["loss"] == "cross_entropy"
    assert provenance["seed"] == 3
    assert provenance["dtype"] == "float32"
    assert provenance["engine"] in ("autograd", "linearized")  # auto: what repays on this machine
    assert provenance["attention_backend"] == "math"
    assert provenance["versions"]["torch"] == torch.__version__
    assert provenance["seconds"] > 0
    asked = {"parameters": None, "k": 1, "which": "LM", "rtol": 0.01, "tol": 1e-3, "confidence": 0.95, "seed": 3}
    asked |= {"max_hvps": 20, "only": ["eigenvalues", "trace", "frobenius_norm", "density"], "verify": False}
    asked |= {"damping": 0.0, "refine": False, "refine_hvps": 500, "blocks": None, "block_size": 1}
    assert provenance["options"] == asked
    assert provenance["command"][:3] == ["hvpspec", "spectrum", "model.pt"]


def test_a_spent_budget_is_said(folder):
    done = call(folder, "spectrum", *USUAL, "--max-hvps", "24", "--out", "budget")
    assert done.returncode == 0, done.stderr
    document = json.loads((folder / "budget/spectrum.json").read_text())
    assert document["hvps"] == 24
    assert document["complete"] is True
    assert document["converged"] is document["trace"]["converged"] is False
    assert "tolerance not reached" in done.stdout
    assert "not to the ±1.00% asked for. More products (--max-hvps) would narrow it." in done.stdout


def test_parameters_loss_functions_and_seeds(folder, dense):
    D, _ = dense
    options = ("--parameters", "0.*", "--dtype", "float64", "-k", "2", "--out", "first-layer")
    arguments = [*USUAL[:-1], "train.py:loss", *options]
    assert call(folder, "spectrum", *arguments).returncode == 0
    found = read_spectrum(folder / "first-layer/spectrum.json")
    block = D[:56, :56]
    assert found.parameters == 56
    assert abs(found.trace.value - np.trace(block)) <= found.trace.error
    assert abs(found.eigenpairs.values[0] - np.linalg.norm(block, 2)) <= found.eigenpairs.error[0]
    both = call(folder, "spectrum", *arguments[:-6], "--parameters", "0.*", "--parameters", "2.bias", "--out", "both")
    assert both.returncode == 0
    assert read_spectrum(folder / "both/spectrum.json").parameters == 59


def test_blocks_and_refinement_are_planned_shown_and_their_shortfalls_said(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    usual = ["spectrum", *USUAL, "-k", "2", "--dtype", "float64", "--damping", "0.05", "--no-preflight"]
    assert cli.run([*usual, "--rtol", "0.1", "--blocks", "*", "--refine", "--refine-hvps", "3", "--out", "parts"]) == 0
    shown = capsys.readouterr().out
    assert "plan: 2 eigenvalues, trace, Frobenius norm, density, 2 blocks, the eigenvalue nearest to -0.05" in shown
    assert "--refine-hvps 3)" in shown
    assert "conditioning of H " in shown
    assert "conditioning of H + 0.05 I " in shown
    assert "2/(λ_max + δ)" in shown
    assert re.search(r"The eigenvalue nearest to zero (did not converge|was not reached)", shown)
    assert not any(line != line.rstrip() for line in shown.splitlines())
    assert cli.run([*usual, "--rtol", "0.5", "--blocks", "*", "--max-hvps", "4", "--out", "few"]) == 0
    shown = capsys.readouterr().out
    assert "λ_max of the blocks was not reached. More products (--max-hvps) would find it." in shown
    assert "spent on λ_max of the blocks" not in shown


def test_notes_are_printed_and_written(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    options = [*USUAL, "--model", "train.py:half", "--out", str(folder / "half")]
    assert cli.run(["spectrum", *options, "-k", "2", "--rtol", "0.5"]) == 0
    captured = capsys.readouterr()
    assert "note     model.pt holds float32 parameters and the model is built in bfloat16 → the mod" in captured.out
    assert captured.err == ""
    written = json.loads((folder / "half/spectrum.json").read_text())
    assert [finding["kind"] for finding in written["preflight"]["findings"]] == ["precision"]
    assert "built in bfloat16" in (folder / "half/report.html").read_text()
    assert cli.run(["spectrum", *options, "-k", "2", "--rtol", "0.5", "--no-preflight"]) == 0
    written = json.loads((folder / "half/spectrum.json").read_text())
    assert written["preflight"]["measured"]["hvps"] == 0


def test_shuffled_data_are_refused_or_frozen(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    options = [*USUAL, "--data", "train.py:Changing", "--out", str(folder / "frozen")]
    assert cli.run(["spectrum", *options]) == 2
    assert "--freeze-data" in capsys.readouterr().err
    assert cli.run(["spectrum", *options, "--freeze-data", "-k", "2", "--rtol", "0.5"]) == 0
    written = json.loads((folder / "frozen/spectrum.json").read_text())
    assert written["preflight"]["findings"] == []


def test_pictures_and_page_are_written_as_well(stage):
    folder = stage / "before"
    assert {"spectrum.json", "spectrum.svg", "spectrum.png", "report.html"} == {path.name for path in folder.iterdir()}
    assert (folder / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "spectrum.svg").read_text()
    assert "hvpspec demo -k 2 --rtol 0.2 --seed 0 --out before" in (folder / "report.html").read_text()


def test_pictures_of_an_earlier_run_do_not_stay(stage, monkeypatch, capsys):
    monkeypatch.chdir(stage)
    usual = ["demo", "--rtol", "0.2", "-k", "2", "--out", "earlier"]
    assert cli.run(usual) == 0
    assert (stage / "earlier/spectrum.png").exists()
    assert cli.run([*usual, "--only", "trace", "--force"]) == 0
    assert not (stage / "earlier/spectrum.png").exists()
    assert (stage / "earlier/report.html").exists()


def test_figures_are_kept_when_the_page_cannot_be_made(stage, monkeypatch, capsys):
    monkeypatch.chdir(stage)
    monkeypatch.setattr("hvpspec.report.write_report.report_html", lambda document: 1 / 0)
    assert cli.run(["demo", "--rtol", "0.2", "-k", "2", "--out", "kept"]) == 1
    assert read_spectrum(stage / "kept/spectrum.json").complete


def test_demo(tmp_path):
    done = run(tmp_path, "demo", "--max-hvps", "60", "-k", "3", "--out", "d")
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "d/spectrum.json").read_text())
    assert document["parameters"] == 3466
    assert document["loss"] < 0.06
    assert document["hvps"] == 60
