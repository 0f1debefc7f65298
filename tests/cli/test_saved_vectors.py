"""`--diagonal`, `--save-diagonal` and `--save-eigenvectors`: what they write, and what they do not overwrite."""

import json

import numpy as np
import pytest
import torch
from cli_files import USUAL
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hvpspec import cli
from hvpspec.estimators.passes.shared_pass import SharedPass

SHORT = [*USUAL, "-k", "2", "--rtol", "0.2", "--dtype", "float64", "--engine", "autograd"]
D, V = "vectors/diagonal.safetensors", "vectors/eigenvectors.safetensors"
NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")


@pytest.fixture
def place(folder, tmp_path, monkeypatch):
    for name in ("train.py", "model.pt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    for module in ("write_report", "html"):  # pictures take most of the time, and are tested elsewhere
        monkeypatch.setattr(f"hvpspec.report.{module}.panels", lambda found: [])
    return tmp_path


def spectrum(*options, out="out"):
    return cli.run(["spectrum", *SHORT, "--out", out, *options])


def flat(tensors):
    return torch.cat([tensors[name].reshape(-1) for name in NAMES]).numpy()


def test_they_hold_what_the_explicit_hessian_says(place, dense, capsys):
    explicit, _ = dense
    assert spectrum("--save-diagonal", D, "--save-eigenvectors", V, "--diagonal-rtol", "0.2") == 0
    shown = capsys.readouterr().out
    document = json.loads((place / "out/spectrum.json").read_text())
    found = document["diagonal"]
    assert found["converged"]
    assert "plan: 2 eigenvalues, trace, Frobenius norm, density, diagonal" in shown
    assert "--diagonal-hvps 200" in shown
    assert f"also written: report.html, {D}, {V}" in shown
    assert document["provenance"]["options"]["diagonal_rtol"] == 0.2
    values, exact = flat(load_file(D)), np.diag(explicit)
    assert np.linalg.norm(values - exact) <= found["error"] * np.linalg.norm(values) <= 0.2 * np.linalg.norm(values)
    start = 0
    for name, size, part in zip(NAMES, (48, 8, 24, 3), found["means"], strict=True):
        assert (part["name"], part["parameters"]) == (name, size)
        assert abs(part["mean"]["value"] - exact[start : start + size].mean()) <= part["mean"]["error"]
        assert name in shown
        start += size
    for number, pair in enumerate(document["eigenvalues"]):
        v = flat({name: tensor[number] for name, tensor in load_file(V).items()})
        assert np.linalg.norm(explicit @ v - pair["value"] * v) <= pair["residual"] * 1.01 + 1e-12
    with safe_open(V, "pt") as file:
        about = file.metadata()
    assert json.loads(about["eigenvalues"]) == [pair["value"] for pair in document["eigenvalues"]]
    assert about["checkpoint_sha256"] == document["provenance"]["checkpoint"]["sha256"]


def test_products_of_the_diagonal_have_a_budget_of_their_own(place):
    assert spectrum() == 0
    alone = json.loads((place / "out/spectrum.json").read_text())["hvps"]
    assert spectrum("--diagonal", "--diagonal-hvps", "5", "--diagonal-rtol", "1e-6", out="more") == 0
    document = json.loads((place / "more/spectrum.json").read_text())
    assert document["hvps"] == alone + 5
    assert document["diagonal"]["own_hvps"] == 5
    assert not document["diagonal"]["converged"]
    assert "more products (--diagonal-hvps) would narrow it" in (place / "more/report.html").read_text()


def test_blocks_and_parts_of_the_parameters(place):
    assert spectrum("--diagonal", "--blocks", "*", "--parameters", "0", "--save-diagonal", D) == 0
    means = json.loads((place / "out/spectrum.json").read_text())["diagonal"]["means"]
    assert [part["name"] for part in means] == ["0"]
    assert set(load_file(D)) == {"0.weight", "0.bias"}


def test_each_matrix_has_its_file(place):
    assert spectrum("--matrix", "ggn,residual", "--only", "eigenvalues", "--save-eigenvectors", V) == 0
    assert sorted(path.name for path in (place / "vectors").iterdir()) == [
        "eigenvectors-ggn.safetensors", "eigenvectors-residual.safetensors",
    ]  # fmt: skip


def test_a_preconditioned_matrix_says_in_which_coordinates(place):
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "adam.pt")
    command = ["spectrum", "adam.pt", *SHORT[1:], "--precondition", "adam", "--only", "eigenvalues"]
    assert cli.run([*command, "--save-eigenvectors", V]) == 0
    with safe_open(V, "pt") as file:
        about = file.metadata()
    assert about["matrix"] == "preconditioned Hessian"
    assert about["coordinates"].startswith("those of D^(-1/2) H D^(-1/2)")


def test_only_what_the_same_run_made_is_replaced(place, capsys):
    saving = ("--save-diagonal", D)
    assert spectrum(*saving) == 0
    before = (place / D).read_bytes()
    assert spectrum(*saving) == 0
    assert (place / D).read_bytes() == before
    capsys.readouterr()
    assert spectrum(*saving, "--seed", "1", out="other") == 2
    assert f"--save-diagonal {D} is the result of other inputs (--seed: 0 then, 1 now)" in capsys.readouterr().err
    assert (place / D).read_bytes() == before
    assert spectrum(*saving, "--seed", "1", "--force", out="other") == 0
    assert (place / D).read_bytes() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save-diagonal", "d.pt"], "--save-diagonal d.pt: the name of the file must end in .safetensors."),
        (["--save-diagonal", "d.safetensors", "--save-eigenvectors", "./d.safetensors"], "name the same file"),
        (["--save-eigenvectors", "v.safetensors", "--only", "trace"], "needs the eigenvalues: add --only eigenvalues"),
        (["--save-diagonal", "train.py/d.safetensors"], "--save-diagonal train.py: cannot write there"),
        (["--save-diagonal", "taken.safetensors"], "taken.safetensors is a folder there"),
        (["--save-diagonal", "weights.safetensors", "--force"], "exists, and was not written by hvpspec; choose anot"),
        (["--diagonal-hvps", "0"], "--diagonal-hvps must be a whole number"),
        (["--diagonal-rtol", "-1"], "--diagonal-rtol must be a number ≥ 0"),
    ],
)
def test_bad_paths_are_refused_before_any_product(place, capsys, options, message):
    (place / "taken.safetensors").mkdir()
    save_file({"0.weight": torch.zeros(8, 6)}, "weights.safetensors")
    before = (place / "weights.safetensors").read_bytes()
    assert spectrum(*options) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (place / "out/spectrum.json").exists()
    assert (place / "weights.safetensors").read_bytes() == before


def test_what_was_interrupted_is_saved_and_goes_on_to_the_same_bytes(place, monkeypatch, capsys):
    saving = ("--save-diagonal", D, "--save-eigenvectors", V, "--diagonal-rtol", "1e-6", "--diagonal-hvps", "30")
    assert spectrum(*saving) == 0
    whole = [(place / name).read_bytes() for name in (D, V)]
    hvps = json.loads((place / "out/spectrum.json").read_text())["hvps"]
    multiply = SharedPass._multiply

    def stopped(self, X):
        if self.hvps > hvps - 8:
            raise KeyboardInterrupt
        return multiply(self, X)

    monkeypatch.setattr(SharedPass, "_multiply", stopped)
    assert spectrum(*saving, "--force", out="again") == 130
    part = load_file(D)
    assert flat(part).shape == (83,)
    with safe_open(D, "pt") as file:
        assert file.metadata()["complete"] == "false"
    assert (place / V).read_bytes() != whole[1]  # it says that the run was not complete
    monkeypatch.setattr(SharedPass, "_multiply", multiply)
    assert spectrum(*saving, out="again") == 0
    assert "goes on with an interrupted run" in capsys.readouterr().err
    assert [(place / name).read_bytes() for name in (D, V)] == whole


def test_what_was_not_known_by_then_is_said(place, monkeypatch, capsys):
    multiply = SharedPass._multiply

    def stopped(self, X):
        if self.hvps > 3:
            raise KeyboardInterrupt
        return multiply(self, X)

    monkeypatch.setattr(SharedPass, "_multiply", stopped)
    assert spectrum("--save-eigenvectors", V) == 130
    assert f"--save-eigenvectors {V}: not written, as it was not known by then." in capsys.readouterr().err
    assert not (place / V).exists()


def test_track_has_no_diagonal(place, capsys):
    assert cli.run(["track", "model.pt", *USUAL[1:], "--diagonal"]) == 2
    assert "track has no --diagonal" in capsys.readouterr().err
