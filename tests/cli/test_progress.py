"""How far a run is, in a line: products made and expected, seconds a product and the time of the end."""

import math
import re
import threading
from datetime import datetime

import pytest
from cli_files import TRAIN, call

from hvpspec.cli import console, progress
from hvpspec.cli.console import Screen
from hvpspec.results.spectrum import Progress, Spectrum
from hvpspec.system.time_limit import time_limit

USUAL = ("model.pt", "--model", "slow.py:build", "--data", "slow.py:batches", "--loss", "slow.py:seconds")


@pytest.fixture
def clock(clock, monkeypatch):
    monkeypatch.setattr(progress, "wall_clock", lambda: datetime(2026, 3, 1, 14, 0))
    return clock


def step(hvps, expected=None, stage="eigenvalues"):
    return Progress(stage, hvps, expected, Spectrum(9, None, None, None, hvps, 0.0, complete=False))


def follow(clock, *steps):
    """The outlook after steps at these times."""
    outlook = progress.Outlook()
    for when, one in steps:
        clock.now = when
        outlook.follow(one)
    return outlook


def test_products_seconds_and_end(clock):
    outlook = follow(clock, (0, step(0, 66)), (12, step(10, 66)))
    assert outlook.seconds_each == pytest.approx(1.2)
    assert outlook.left == pytest.approx(56 * 1.2)
    assert outlook.line(step(10, 66)) == "10 of about 66 HVPs, 1.2 s each, ends about 14:01 (eigenvalues)"


def test_it_is_corrected_as_the_run_goes_on(clock):
    """A first product that prepares something, and an outlook of more products."""
    outlook = follow(clock, (0, step(0, 66)), (60, step(1, 66)))
    assert outlook.end == "ends about 15:05"
    for made in range(2, 20):
        clock.now += 2
        outlook.follow(step(made, 120 if made > 10 else None))
    assert outlook.seconds_each == pytest.approx(2)
    assert outlook.count == "19/120"
    assert outlook.end == "ends about 14:03"


def test_another_day_and_what_is_not_known(clock):
    outlook = follow(clock, (0, step(0)), (3600, step(1)))
    assert (outlook.count, outlook.pace, outlook.end) == ("1", "3600 s each", "")
    outlook.follow(step(1, 40))
    assert outlook.end == "ends about 2026-03-03 05:00"
    assert math.isnan(follow(clock, (0, step(0, 8))).left)


def test_more_products_than_expected_are_no_share(clock):
    outlook = follow(clock, (0, step(0, 8)), (10, step(10)))
    assert (outlook.count, outlook.end) == ("10", "")


def test_a_time_limit_ends_it_before(clock):
    with time_limit(100):
        assert follow(clock, (0, step(0, 66)), (12, step(1, 66))).left == 88


def test_another_run_begins_again(clock):
    outlook = follow(clock, (0, step(0, 9)), (9, step(9, 9)), (10, step(0, 5)), (14, step(2, 5)))
    assert (outlook.count, outlook.seconds_each) == ("2/5", 2)


def test_a_line_a_minute_where_there_is_no_terminal(clock, capsys):
    screen = Screen()
    with screen.progress_bar() as show:
        for made in range(200):
            show(step(made, 200))
            clock.now += 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"{made} of about 200 HVPs" for made in (60, 120, 180)]
    assert lines[-1] == "180 of about 200 HVPs, 1 s each, ends about 14:00 (eigenvalues)"


def test_quiet_says_nothing(clock, capsys):
    with Screen(quiet=True).progress_bar() as show:
        for made in range(200):
            show(step(made, 200))
            clock.now += 1
    assert capsys.readouterr().err == ""


def test_the_command_says_so(folder, tmp_path, clock):
    """The user's loss moves the tests' clock by two seconds a batch, in each product: no graphs are kept."""
    ticking = "\ndef seconds(model, batch):\n    time.monotonic.now += 2\n    return loss(model, batch)\n"
    (tmp_path / "slow.py").write_text(TRAIN + ticking)
    (tmp_path / "model.pt").write_bytes((folder / "model.pt").read_bytes())
    asked = ("-k", "3", "--rtol", "0.2", "--engine", "autograd", "--dtype", "float64", "--no-preflight")
    asked += ("--memory-limit", "1")
    done = call(tmp_path, "spectrum", *USUAL, *asked)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "HVPs" in line]
    assert re.fullmatch(
        r"\d+ of about \d+ HVPs, [68](\.\d)? s each, ends about 14:\d\d \(eigenvalues, λ1 .*\)", lines[0]
    )
    assert len(lines) >= 3


def test_what_has_no_steps_says_for_how_long_it_has_gone_on(clock, capsys, monkeypatch):
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.01)
    screen, said = Screen(), threading.Event()
    monkeypatch.setattr(screen, "note", lambda text, note=screen.note: (note(text), said.set()))
    with screen.waiting("checking"):
        clock.now = 61
        assert said.wait(60)
    assert capsys.readouterr().err.splitlines()[0].startswith("checking: ")
    assert threading.active_count() == 1 or not [
        thread for thread in threading.enumerate() if thread.name == "hvpspec-waiting"
    ]


def test_what_is_over_soon_says_nothing(capsys):
    with Screen().waiting("checking"):
        pass
    assert capsys.readouterr().err == ""
