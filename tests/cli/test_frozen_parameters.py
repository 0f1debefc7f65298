"""Frozen parameters are left out of the Hessian, and every report says how many."""

import json

import pytest
import torch
from cli_files import USUAL, call
from torch import nn

TRAIN = """
from train import *
from train import build as _build

def head():
    model = _build()
    model[0].requires_grad_(False)
    return model

def frozen():
    return _build().requires_grad_(False)

def script():
    model = torch.jit.load("script.pt")
    for parameter in model.parameters():
        parameter.requires_grad_()
    return model
"""


@pytest.fixture(scope="module")
def freezing(folder):
    (folder / "freezing.py").write_text(TRAIN)
    return folder


def usual(model):
    return [argument.replace("train.py:build", f"freezing.py:{model}") for argument in USUAL]


# 6 → 8 → 3: 56 parameters in the first layer, 27 in the last one.
@pytest.mark.parametrize("command", ["spectrum", "check"])
def test_how_many_are_left_out(freezing, command):
    done = call(freezing, command, *usual("head"), "-k", "1", "--only", "eigenvalues", "--out", f"frozen-{command}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model.pt · 27 of 83 parameters · ")
    said = "56 of 83 parameters are frozen, as requires_grad is False: 0.weight, 0.bias → left out"
    assert said in " ".join(done.stdout.split())
    document = json.loads((freezing / f"frozen-{command}/{command}.json").read_text())
    assert document["provenance"]["parameters"] == {"total": 83, "chosen": 27, "frozen": 56}
    findings = document["findings"] if command == "check" else document["preflight"]["findings"]
    assert [one["severity"] for one in findings if one["kind"] == "frozen"] == ["note"]
    if command == "spectrum":
        assert document["parameters"] == 27
        page = (freezing / "frozen-spectrum/report.html").read_text()
        assert "27 of 83 parameters · 56 frozen are left out, as requires_grad is False" in page


def test_those_that_were_not_chosen_are_not_frozen(freezing):
    done = call(freezing, "check", *USUAL, "--parameters", "2", "--out", "chosen")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model.pt · 27 of 83 parameters · ")
    assert "frozen" not in done.stdout
    document = json.loads((freezing / "chosen/check.json").read_text())
    assert document["provenance"]["parameters"] == {"total": 83, "chosen": 27, "frozen": 0}


def test_all_frozen(freezing):
    done = call(freezing, "check", *usual("frozen"), "--out", "all")
    assert done.returncode == 2
    assert "call requires_grad_() on those to differentiate with respect to" in done.stderr


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_all_frozen_in_a_program(freezing):
    """TorchScript keeps requires_grad; such files are often written for inference."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    torch.jit.script(model.requires_grad_(False)).save(freezing / "script.pt")
    options = ("--data", "train.py:batches", "--loss", "cross_entropy", "--out", "script")
    done = call(freezing, "check", "script.pt", *options)
    assert done.returncode == 2
    assert "script.pt: all 4 parameter tensors of its model are frozen" in done.stderr
    assert "calls requires_grad_() on its parameters" in done.stderr
    done = call(freezing, "check", "script.pt", "--model", "freezing.py:script", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("script.pt · 83 parameters · ")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_partly_frozen_in_a_program(freezing):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    torch.jit.script(model).save(freezing / "partly.pt")
    options = ("--data", "train.py:batches", "--loss", "cross_entropy", "--out", "partly")
    done = call(freezing, "check", "partly.pt", *options)
    assert done.returncode == 0, done.stderr
    assert "partly.pt · 27 of 83 parameters" in done.stdout
    assert "56 of 83 parameters are frozen" in done.stdout
