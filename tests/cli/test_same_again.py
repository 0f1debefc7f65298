"""Two runs of one command on one machine: identical but for times, whatever the clock says of the engines."""

import json

import pytest
from cli_files import USUAL, call, without_times

from hvpspec.oracle import choose
from hvpspec.oracle.prices import Prices
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
    forms = json.loads(remembered.read_text())["forms"]
    assert [form["form"] for form in forms][:2] == [None, "eager"]
    # What does not fit any more, or is damaged, is not followed.
    remembered.write_text(json.dumps({"forms": [{**forms[-1], "together": "many"}]}))
    assert found(folder, "again")["provenance"]["engine"] == "autograd"
    remembered.write_text(json.dumps({"forms": [{**forms[-1], "from": 0, "form": "cudagraph"}]}))
    assert found(folder, "again")["provenance"]["engine"] == "autograd"
