"""`hvpspec check` and `hvpspec compare`."""

import json
import shlex

import torch
from cli_files import USUAL
from torch import nn

from hvpspec import cli


def test_check_tells_findings_measurements_and_costs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.run(["check", *USUAL, "--expect-loss", "0.9", "--out", str(folder / "checked")]) in (0, 2)
    loss = json.loads((folder / "checked/check.json").read_text())["measured"]["loss"]
    capsys.readouterr()
    command = [*USUAL, "--out", str(folder / "checked"), "--expect-loss", f"{loss:.3f}"]
    assert cli.run(["check", *command]) == 0
    printed = capsys.readouterr().out
    for part in ("no problem was found", "symmetry", "finite differences", "the whole run: about"):
        assert part in printed
    document = json.loads((folder / "checked/check.json").read_text())
    assert document["ok"]
    assert document["findings"] == []
    # Three products together, one of them again, one for the norm's rank, and up to a twentieth of what the run takes.
    further = document["measured"]["hvps"] - 5
    assert document["measured"]["expected_hvps"] >= 40  # so that there are some
    assert 0 < further <= min(8, 0.05 * document["measured"]["expected_hvps"] + 1)
    assert document["provenance"]["command"][0] == "hvpspec"


def test_what_is_refused_stops_check_and_spectrum_with_exit_2(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for command, file in (("check", "check.json"), ("spectrum", "spectrum.json")):
        out = folder / f"refused-{command}"
        assert cli.run([command, *USUAL, "--expect-loss", "77.25", "--out", str(out)]) == 2
        printed = capsys.readouterr()
        assert "not 77.25" in (printed.out if command == "check" else printed.err)
        assert (out / file).exists() == (command == "check")


def test_what_is_said_of_the_file_is_found(folder, monkeypatch, capsys, tmp_path):
    """Half precision in the file, and code that was run, stand in check.json like what is found of the model."""
    monkeypatch.chdir(folder)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    torch.save({"model": model.half().state_dict(), "notes": shlex.shlex("")}, tmp_path / "m.pt")
    options = [str(tmp_path / "m.pt"), *USUAL[1:], "--out", str(tmp_path)]
    assert cli.run(["check", *options, "--trust-pickle"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("lower precision than the model (float16 → float32)") == 1
    assert captured.err.startswith("hvpspec: warning: ")
    assert "any code in it was run" in captured.err
    assert "precision" not in captured.err
    found = json.loads((tmp_path / "check.json").read_text())["findings"]
    assert [(finding["kind"], finding["severity"]) for finding in found] == [("pickle", "note"), ("precision", "note")]


def test_compare_says_what_differs(stage, monkeypatch, capsys):
    monkeypatch.chdir(stage)
    assert cli.run(["compare", "before", "after"]) == 0
    shown = capsys.readouterr()
    assert "* significant: 0 of " in shown.out
    assert shown.err == ""
    assert "\x1b" not in shown.out  # plain where it is piped
    assert max(len(line) for line in shown.out.splitlines() if "   " in line) <= 80
    assert cli.run(["demo", "-k", "2", "--rtol", "0.2", "--parameters", "4.*", "--out", "part"]) == 0
    capsys.readouterr()
    assert cli.run(["compare", "before", "part"]) == 0
    shown = capsys.readouterr()
    starred = {line.split("  ")[0] for line in shown.out.splitlines() if line.rstrip().endswith("  *")}
    assert {"λ1 from the top", "λ2 from the top", "trace", "Frobenius norm"} <= starred
    assert "part has 330 parameters, before 3,466" in " ".join(shown.err.split())
    assert cli.run(["compare", "before", "part", "--explain"]) == 0
    assert "trace: Sum of all eigenvalues." in capsys.readouterr().out
    assert "Sum of all eigenvalues" not in shown.out
    assert cli.run(["compare", "before"]) == 2
    assert "two spectrum.json files or more" in capsys.readouterr().err
    assert cli.run(["compare", "before", "nowhere"]) == 2
    assert cli.run(["compare", "before", "after", "--output", "model.pt"]) == 2
    assert "--out model.pt: cannot write there" in capsys.readouterr().err


def test_check_estimates_what_the_batches_take(folder, monkeypatch):
    monkeypatch.chdir(folder)
    command = ["check", *USUAL, "--out", str(folder / "batches")]
    assert cli.run(command) == 0
    alone = json.loads((folder / "batches/check.json").read_text())
    assert cli.run([*command, "--per-batch", "--batch-hvps", "36"]) == 0
    found = json.loads((folder / "batches/check.json").read_text())
    assert "per_batch" not in alone
    assert found["per_batch"] == {"batches": 3, "of": 3, "expected_hvps": 24, "most_hvps": 36}
    assert found["measured"]["expected_hvps"] == alone["measured"]["expected_hvps"]
    assert cli.run(["spectrum", *USUAL, "--per-batch", "--rtol", "0.5", "--out", str(folder / "batches")]) == 0
    made = json.loads((folder / "batches/spectrum.json").read_text())["per_batch"]["hvps"]
    assert 12 <= made <= 36  # half to one and a half times what was expected
