"""Two runs of one command on one machine: identical but for times, whatever the clock says of the engines."""

import json

import pytest
import torch
from cli_files import USUAL, call, without_times

import hvpspec
from hvpspec.oracle import choose
from hvpspec.oracle.choice import changes, forms
from hvpspec.oracle.choice.prices import Prices
from hvpspec.oracle.recorded.linearized import Linearized
from hvpspec.runs.remembered import CACHE_VARIABLE

ASK = ("spectrum", *USUAL, "-k", "2", "--rtol", "0.3", "--out")


@pytest.fixture
def clocks(monkeypatch):
    """Sets how long a product seems to take, by the plain engine and by a recorded one."""

    def say(plain, recorded):
        now = [0.0]

        def time_when_done(device):
            now[0] += plain
            return now[0]

        monkeypatch.setattr(choose, "time_when_done", time_when_done)
        monkeypatch.setattr(changes, "costs_on", lambda device: None)
        monkeypatch.setattr(choose.Chooser, "_measure", lambda self: recorded)
        monkeypatch.setattr(choose.Chooser, "_prices", lambda self: Prices(plain, plain / 10, 0.0, 300, None))

    return say


def found(folder, out):
    assert (ended := call(folder, *ASK, out)).returncode == 0, ended.stderr
    return without_times(json.loads((folder / out / "spectrum.json").read_text()))


def test_the_same_command_chooses_the_same_engine(folder, tmp_path, clocks, monkeypatch):
    recording, plain = (1e5, 0.0), (1e-6, 1e9)
    clocks(*plain)
    other = found(folder, "again")
    assert other["provenance"]["engine"] == "autograd"

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    clocks(*recording)
    first = found(folder, "again")
    assert first["provenance"]["engine_plan"].startswith("linearized, eager")
    clocks(*plain)
    assert found(folder, "again") == first

    (remembered,) = (tmp_path / "cache").iterdir()
    known = json.loads(remembered.read_text())["forms"]
    assert [form["form"] for form in known][:2] == [None, "eager"]
    # What does not fit any more, or is damaged, is not followed.
    remembered.write_text(json.dumps({"forms": [{**known[-1], "together": "many"}]}))
    assert found(folder, "again")["provenance"]["engine"] == "autograd"
    remembered.write_text(json.dumps({"forms": [{**known[-1], "from": 0, "form": "cudagraph"}]}))
    assert found(folder, "again")["provenance"]["engine"] == "autograd"


def test_an_engine_that_lacks_memory_now_is_not_tried_again_and_again(monkeypatch):
    """What an earlier run has chosen is followed where it works, and no longer where it does not."""
    model = torch.nn.Linear(3, 2).double()
    data = [(torch.randn(5, 3).double(), torch.randint(0, 2, (5,)))]
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="auto")
    form = {"from": 0, "form": "eager", "together": 1, "whole": False, "level": 0, "plan": "linearized, eager"}
    tries = []

    def lacking(*_, **__):
        tries.append(1)
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Linearized, "resume", lacking)
    v = torch.randn(H.shape[0], dtype=torch.float64)
    expected = H @ v
    H.follow([form])
    for _ in range(3):
        assert torch.equal(H @ v, expected)
    assert len(tries) == 1


def test_an_engine_that_fails_is_not_made_again(monkeypatch):
    model = torch.nn.Linear(3, 2).double()
    data = [(torch.randn(5, 3).double(), torch.randint(0, 2, (5,)))]
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="auto")
    form = {"from": 0, "form": "eager", "together": 1, "whole": False, "level": None, "plan": "linearized, eager"}
    v = torch.randn(H.shape[0], dtype=torch.float64)
    expected = H @ v
    made, real = [], forms.engine_in
    monkeypatch.setattr(forms, "engine_in", lambda *of: made.append(1) or real(*of))
    H.follow([form])
    assert torch.allclose(H @ v, expected, rtol=1e-12)

    def failing(*_):
        raise RuntimeError("it fails now")

    monkeypatch.setattr(Linearized, "__call__", failing)
    for _ in range(3):
        assert torch.allclose(H @ v, expected, rtol=1e-12)
    assert len(made) == 1
