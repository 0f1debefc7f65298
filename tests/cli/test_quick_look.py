"""--batches: a random sample of the data, which every file and message tells of."""

import json

import numpy as np
import pytest
import torch
from cli_files import call
from torch import nn
from zoo import Case, explicit_hessian

import hvpspec
from hvpspec.report.documents import read_record

MANY = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

def batches():
    x = torch.randn(205, 6, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split(10), x[:, :3].argmax(1).split(10)))
"""
RUN = ("spectrum", "model.pt", "--model", "many.py:build", "--data", "many.py:batches", "--loss", "cross_entropy")
RUN += ("--dtype", "float64", "-k", "2", "--rtol", "0.2", "--no-preflight")


@pytest.fixture(scope="module")
def place(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("many")
    (place / "many.py").write_text(MANY)
    (place / "model.pt").write_bytes((folder / "model.pt").read_bytes())
    assert call(place, *RUN, "--batches", "8", "--seed", "3", "--out", "few").returncode == 0
    return place


def test_the_figures_are_those_of_the_batches_drawn(place):
    space = {}
    exec(MANY, space)
    drawn = hvpspec.sample_batches(space["batches"](), 8, seed=3)
    x, y = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    model = hvpspec.load_checkpoint(place / "model.pt", space["build"]()).double()
    case = Case(model, "cross_entropy", [], lambda m: nn.functional.cross_entropy(m(x.double()), y))
    values = np.linalg.eigvalsh(explicit_hessian(case))
    found = read_record(place / "few/spectrum.json")
    assert abs(found.spectrum.eigenpairs.values[0] - values[-1]) <= found.spectrum.eigenpairs.error[0] + 1e-12
    assert found.loss == pytest.approx(float(case.whole(model).detach()), rel=1e-12)
    assert found.spectrum.eigenpairs.data_error is not None
    assert found.spectrum.eigenpairs.population is not None or found.spectrum.eigenpairs.population_reason


def test_terminal_page_and_json_say_so(place):
    done = call(place, *RUN, "--batches", "8", "--seed", "3", "--out", "few")
    assert done.returncode == 0, done.stderr
    assert "8 of 21 batches, drawn at random (seed 3)" in done.stdout
    assert "as figures of all 21, they have 0.79 times the error '± data (1 s.e.)'" in done.stdout
    page = (place / "few/report.html").read_text()
    assert "8 of 21 batches, drawn at random (seed 3)" in page
    assert "as figures of all 21" in page
    data = json.loads((place / "few/spectrum.json").read_text())["provenance"]["data"]
    assert {name: data[name] for name in ("batches", "drawn", "of", "seed")} == {
        "batches": 8, "drawn": 8, "of": 21, "seed": 3,
    }  # fmt: skip


def test_verify_draws_the_same(place):
    done = call(place, "verify", "few")
    assert done.returncode == 0, done.stderr
    assert "DIFFERS" not in done.stdout


def test_another_sample_or_all_the_data_is_another_run(place):
    for other in ((), ("--batches", "9"), ("--batches", "8", "--seed", "4")):
        asked = other if "--seed" in other else (*other, "--seed", "3")
        done = call(place, *RUN, *asked, "--out", "few")
        assert done.returncode == 2
        assert "is the result of other inputs" in done.stderr


def test_compare_says_that_the_samples_differ(place):
    assert call(place, *RUN, "--out", "all").returncode == 0
    assert call(place, *RUN, "--batches", "8", "--seed", "4", "--out", "other").returncode == 0
    for run, said in (("all", "choice of batches: all, not 8 of 21"), ("other", "seed 4), not 8 of 21")):
        done = call(place, "compare", "few", run)
        assert done.returncode == 0
        assert said in " ".join((done.stdout + done.stderr).split())


def test_more_than_there_are_is_all_with_a_sentence(place):
    done = call(place, *RUN, "--batches", "60", "--out", "sixty")
    assert done.returncode == 0
    assert "--batches 60: the data have 21, and all are used." in done.stderr
    assert "drawn" not in json.loads((place / "sixty/spectrum.json").read_text())["provenance"]["data"]


def test_check_and_frozen_data(place):
    done = call(place, "check", *RUN[1:8], "--batches", "2", "--freeze-data", "--dtype", "float64", "--out", "checked")
    assert done.returncode == 0, done.stderr
    assert "2 of 21 batches, drawn at random (seed 0)" in done.stdout
    assert json.loads((place / "checked/check.json").read_text())["provenance"]["data"]["drawn"] == 2
