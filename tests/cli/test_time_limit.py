"""--time-limit: whatever the time ends, the command ends well with what is known by then, and says what is not."""

import json
import re
import signal
import time

import numpy as np
import pytest
from cli_files import TRAIN, call
from track_files import NAMES, SHORT, rows, without_seconds
from track_files import USUAL as SERIES

from hvpspec.report.documents import read_spectrum
from hvpspec.system.time_limit import OutOfTime, interruptible, time_limit

SLOW = """
def seconds(model, batch):
    time.monotonic.now += 1  # the tests' clock: a second is a batch's loss
    return loss(model, batch)
"""
TICK = "    time.monotonic.now += 1\n    return nn.functional.cross"
USUAL = ("model.pt", "--model", "slow.py:build", "--data", "slow.py:batches", "--loss", "slow.py:seconds")
TICKING = ("--engine", "autograd", "--memory-limit", "1")  # nothing is kept: every product evaluates the loss again
RUN = ("spectrum", *USUAL, "-k", "3", "--dtype", "float64", *TICKING)
FEW = ("--no-preflight", "--out", "few")


@pytest.fixture
def place(folder, tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text(TRAIN + SLOW)
    (tmp_path / "model.pt").write_bytes((folder / "model.pt").read_bytes())
    monkeypatch.setattr("hvpspec.report.write_report.drawn", lambda shown: None)
    monkeypatch.setattr("hvpspec.report.write_report.to_bytes", lambda figure, kind: b"drawn")
    monkeypatch.setattr("hvpspec.report.html.panels", lambda spectrum: [])
    return tmp_path


@pytest.fixture
def alarms():
    """The signal as a process has it, and not as pytest-timeout does."""
    theirs, timer = signal.signal(signal.SIGALRM, signal.SIG_DFL), signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    signal.signal(signal.SIGALRM, theirs)
    signal.setitimer(signal.ITIMER_REAL, *timer)


def test_in_the_preflight(place, clock):
    """Loss, size and what was checked are written, and that there is no figure; hvpspec verify accepts that."""
    done = call(place, *RUN, "--time-limit", "20s")
    assert done.returncode == 0, done.stderr
    assert "loss on the data: 1.00978" in done.stdout
    assert "not reached" in done.stdout
    assert "took the third of the time limit" in done.stdout
    found = json.loads((place / "spectrum.json").read_text())
    assert (found["complete"], found["out_of_time"], found["parameters"]) == (True, True, 83)
    assert found["loss"] == pytest.approx(1.00978, abs=1e-5)
    assert found["preflight"]["findings"]
    assert "out of time" in done.stdout


def test_a_preflight_that_would_take_too_long_is_made_on_fewer_batches(place, clock):
    done = call(place, *RUN, "--time-limit", "150s")
    assert done.returncode == 0, done.stderr
    assert "would take more than a third of the time limit → they are made on the first" in " ".join(
        done.stdout.split()
    )
    found = json.loads((place / "spectrum.json").read_text())
    assert found["hvps"] > 0
    assert found["preflight"]["measured"]["seconds"] > 0
    assert found["provenance"]["options"]["time_limit"] == 150
    assert clock.now <= 150


@pytest.mark.parametrize(("limit", "known"), [(40, "eigenvalues"), (110, "trace")])
def test_in_lanczos_and_in_probes(place, clock, dense, limit, known):
    done = call(place, *RUN, *FEW, "--time-limit", f"{limit}s")
    assert done.returncode == 0, done.stderr
    assert clock.now <= limit
    found = read_spectrum(place / "few/spectrum.json")
    assert found.complete
    assert found.out_of_time
    assert not found.converged
    values = np.linalg.eigvalsh(dense[0])
    for value, error in zip(found.eigenpairs.values, found.eigenpairs.error, strict=True):
        assert np.abs(values - value).min() <= error + 1e-12
    if known == "trace":
        assert abs(found.trace.value - values.sum()) <= 3 * found.trace.error
    assert "More time (--time-limit), or fewer of the batches (--batches), would" in done.stdout
    assert "the time limit, which was over after" in (place / "few/report.html").read_text()
    assert call(place, "verify", "few").returncode == 0


def test_the_same_command_goes_on_and_so_does_one_with_more_time(place, clock):
    """Its products are kept; neither needs --force."""
    first = call(place, *RUN, *FEW, "--time-limit", "60s")
    kept = int(re.search(r"(\d+) products are kept in few/hvpspec-journal", first.stderr)[1])
    begun = clock.now
    second = call(place, *RUN, *FEW, "--time-limit", "60s")
    assert second.returncode == 0, second.stderr
    assert clock.now - begun <= 60
    assert f"goes on with an interrupted run: {kept} products" in second.stderr
    more = read_spectrum(place / "few/spectrum.json")
    assert more.hvps > kept
    last = call(place, *RUN, *FEW, "--time-limit", "1h", "--rtol", "0.2", "--force")
    assert last.returncode == 0, last.stderr
    assert call(place, *RUN, *FEW, "--time-limit", "2h", "--rtol", "0.2").returncode == 0
    found = read_spectrum(place / "few/spectrum.json")
    assert found.converged
    assert not found.out_of_time
    assert not (place / "few/hvpspec-journal").exists()


def test_an_alarm_ends_what_would_go_on(place, alarms):
    """In truth, not by the tests' clock. Where not even the loss is known, nothing is written, and the limit is bad."""
    (place / "slow.py").write_text(TRAIN + SLOW.replace("time.monotonic.now += 1", "time.sleep(30)"))
    done = call(place, *RUN, "--time-limit", "1s")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(
        "hvpspec: --time-limit 1s was over before the loss on the data was known, and nothing"
    )
    assert not (place / "spectrum.json").exists()
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_an_alarm_waits_where_figures_would_be_torn(alarms):
    with time_limit(0.01, alarm=True):
        time.sleep(0.05)  # it rings here
        with pytest.raises(OutOfTime), interruptible():
            raise AssertionError("to be refused")
    with pytest.raises(OutOfTime), time_limit(60, alarm=True), time_limit(0.01, alarm=True), interruptible():
        time.sleep(30)
    with time_limit(0.2, alarm=True):
        with time_limit(0.01, alarm=True):
            time.sleep(0.02)
        with pytest.raises(OutOfTime), interruptible():  # the outer one is set again
            time.sleep(30)


def test_a_series_stops_and_goes_on(run_folder, clock):
    """The whole command has a limit; no row is half as good as the others."""
    text = (run_folder / "train.py").read_text().replace("import os", "import time, os")
    (run_folder / "train.py").write_text(text.replace("    return nn.functional.cross", TICK))
    command = ("track", *NAMES[:3], *SERIES, *SHORT, *TICKING)
    free = call(run_folder, *command, "--out", "free")
    assert free.returncode == 0, free.stderr
    needed = clock.now
    done = call(run_folder, *command, "--out", "limited", "--time-limit", str(0.7 * needed))
    assert done.returncode == 0, done.stderr
    assert "the time is up: 1 of 3 checkpoints are done, and the same command continues from there" in done.stderr
    assert len(rows(run_folder / "limited")) == 1
    done = call(run_folder, *command, "--out", "limited")
    assert done.returncode == 0, done.stderr
    assert "goes on with an interrupted run" in done.stderr
    assert without_seconds(rows(run_folder / "limited")) == without_seconds(rows(run_folder / "free"))


@pytest.mark.parametrize("limit", ["0", "-3s", "soon", "nan", "5 apples"])
def test_limits_that_are_none(place, limit):
    done = call(place, *RUN, f"--time-limit={limit}")
    assert done.returncode == 2
    assert re.match(r'hvpspec: --time-limit must be a number of seconds > 0 or a text such as "30s"', done.stderr)


def test_check_has_none(place):
    done = call(place, "check", *USUAL, "--time-limit", "30s")
    assert done.returncode == 2
    assert "check has no --time-limit; give it to hvpspec spectrum" in done.stderr
