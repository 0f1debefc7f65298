"""`--block-density` and `--per-batch` on the command line: figures, files, what is kept, and how a run goes on."""

import json

import jsonschema
import numpy as np
import pytest
import torch
from cli_files import TRAIN, USUAL, call, without_times
from torch import nn

import hvpspec
from hvpspec.oracle.choose import Chooser
from hvpspec.report.documents import load_spectrum, schema

OPTIONS = ("-k", "2", "--rtol", "0.3", "--dtype", "float64", "--no-preflight", "--engine", "autograd")
BOTH = ("spectrum", *USUAL, *OPTIONS, "--blocks", "*", "--block-density", "--per-batch")


@pytest.fixture(scope="session")
def folder(folder, tmp_path_factory):
    """One for these tests alone, whose results have names that others may use as well."""
    own = tmp_path_factory.mktemp("parts")
    for name in ("train.py", "model.pt"):
        (own / name).write_bytes((folder / name).read_bytes())
    return own


@pytest.fixture(scope="module")
def done(folder):
    found = call(folder, *BOTH, "--out", "both")
    assert found.returncode == 0, found.stderr
    return found, json.loads((folder / "both/spectrum.json").read_text())


@pytest.fixture(scope="module")
def tops(folder):
    """λ_max of each batch's explicit Hessian, by double autograd."""
    space = {}
    exec(TRAIN, space)
    model = space["build"]()
    hvpspec.load_checkpoint(folder / "model.pt", model)
    model.double()
    names = [name for name, _ in model.named_parameters()]
    found = []
    for x, y in space["batches"]():

        def fn(*values, x=x, y=y):
            swapped = dict(zip(names, values, strict=True))
            return nn.functional.cross_entropy(torch.func.functional_call(model, swapped, (x.double(),)), y)

        found.append(np.linalg.eigvalsh(hvpspec.hessian(fn, list(model.parameters())).numpy())[-1])
    return found


@pytest.fixture
def stopping(monkeypatch):
    """Makes the next commands end by Ctrl-C at a product, whether of all data or of one batch."""
    multiply = Chooser.__call__

    def at(product):
        made = 0

        def counting(chooser, columns, on_batch=None):
            nonlocal made
            made += columns.shape[1]
            if made > product:
                raise KeyboardInterrupt
            return multiply(chooser, columns, on_batch)

        monkeypatch.setattr(Chooser, "__call__", counting)

    return at


def test_figures_files_and_report(folder, dense, done, tops):
    printed, document = done
    jsonschema.validate(document, schema())
    D, _ = dense
    for batch, top in zip(document["per_batch"]["batches"], tops, strict=True):
        assert batch["largest"]["lower"] - 1e-9 <= top <= batch["largest"]["upper"] + 1e-9
        assert batch["smallest"] is None
    assert [batch["weight"] for batch in document["per_batch"]["batches"]] == [20, 20, 10]
    assert document["per_batch"]["whole"]["largest"]["value"] == pytest.approx(np.linalg.eigvalsh(D)[-1])
    for block, rows in zip(document["blocks"]["blocks"], (slice(0, 56), slice(56, 83)), strict=True):
        values = np.linalg.eigvalsh(D[rows, rows])
        assert block["smallest"]["lower"] - 1e-9 <= values[0] <= block["smallest"]["upper"] + 1e-9
        assert block["density"]["n"] == len(values)
    assert "2 blocks, λ of 3 batches, each by itself" in printed.stdout
    assert "λ_max of a batch: mean" in printed.stdout
    assert "3 batches, each with its own matrix" in printed.stdout
    options = document["provenance"]["options"]
    assert (options["per_batch"], options["block_density"], options["block_hvps"]) == (True, True, 500)
    page = (folder / "both/report.html").read_text()
    assert "λ_max of each mini-batch" in page
    assert "Eigenvalues of groups of parameters" in page
    assert 'id="batches"' in page
    assert load_spectrum(folder / "both").per_batch.to_dict() == document["per_batch"]


def test_what_reads_results_takes_them_and_older_ones(folder, done, tmp_path):
    assert call(folder, "spectrum", *USUAL, *OPTIONS, "--out", "plain").returncode == 0
    plain = json.loads((folder / "plain/spectrum.json").read_text())
    assert "per_batch" not in plain
    assert not {"per_batch", "batch_hvps", "block_density"} & plain["provenance"]["options"].keys()
    assert call(folder, "compare", "plain", "both", "--out", str(tmp_path)).returncode == 0
    checked = call(folder, "verify", "both/spectrum.json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    document = json.loads((folder / "both/spectrum.json").read_text())
    document["per_batch"]["batches"][0]["largest"]["value"] += 1e-3
    (tmp_path / "spectrum.json").write_text(json.dumps(document))
    assert "altered" in call(folder, "verify", str(tmp_path / "spectrum.json")).stdout


def test_both_ends_and_a_budget(folder):
    found = call(
        folder, "spectrum", *USUAL, *OPTIONS, "--which", "BE", "--per-batch", "--batch-hvps", "9", "--out", "ends"
    )
    assert found.returncode == 0, found.stderr
    batches = load_spectrum(folder / "ends").per_batch
    assert batches.hvps == 9
    assert batches.ends == ("largest", "smallest")
    assert "more products (--batch-hvps) would narrow them" in found.stdout
    assert "λ_min of a batch: mean" in found.stdout


def test_interrupted_in_the_batches_what_is_known_is_saved_and_the_run_goes_on(folder, done, stopping, monkeypatch):
    _, whole = done
    made = whole["hvps"] + whole["per_batch"]["hvps"]
    stopping(made - 2)  # in the last batch
    cut = call(folder, *BOTH, "--out", "cut")
    assert cut.returncode == 130
    known = json.loads((folder / "cut/spectrum.json").read_text())
    jsonschema.validate(known, schema())
    assert not known["complete"]
    assert known["per_batch"]["batches"] == whole["per_batch"]["batches"][:2]
    assert without_times(known["blocks"]) == without_times(whole["blocks"])
    assert "λ_max of a batch: mean" in cut.stdout
    monkeypatch.undo()
    again = call(folder, *BOTH, "--out", "cut")
    assert again.returncode == 0, again.stderr
    assert "goes on with an interrupted run" in again.stderr
    after = json.loads((folder / "cut/spectrum.json").read_text())
    for name in ("eigenvalues", "trace", "blocks", "per_batch", "density", "hvps"):
        assert after[name] == whole[name]
    assert not (folder / "cut/hvpspec-journal").exists()


def test_interrupted_in_a_block_those_before_it_are_saved(folder, done, stopping):
    _, whole = done
    stopping(whole["hvps"] - 3)
    assert call(folder, *BOTH, "--no-journal", "--out", "block").returncode == 130
    known = json.loads((folder / "block/spectrum.json").read_text())
    first, last = known["blocks"]["blocks"]
    assert first == whole["blocks"]["blocks"][0]
    assert last["largest"] is not None
    assert "per_batch" not in known


def test_data_of_one_batch(folder, tmp_path):
    (tmp_path / "one.py").write_text(TRAIN + "\ndef one():\n    return batches()[:1]\n")
    (tmp_path / "model.pt").write_bytes((folder / "model.pt").read_bytes())
    arguments = [word.replace("train.py:batches", "one.py:one").replace("train.py", "one.py") for word in USUAL]
    found = call(tmp_path, "spectrum", *arguments, *OPTIONS, "--per-batch")
    assert found.returncode == 0, found.stderr
    assert "The data are one batch, whose matrix is the whole one." in found.stdout
    assert "λ_max of each mini-batch" not in (tmp_path / "report.html").read_text()
