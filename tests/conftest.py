"""Shared by all tests: threads, the order, a clock, and the folders that the tests' own helpers are imported from."""

import os
import sys
import time
from pathlib import Path

# One thread for each process, here and in the command lines that tests start: the problems are small, and threads of
# several busy processes wait for one another most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HVPSPEC_CACHE"] = ""  # what one test has chosen decides nothing in another

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "scripts"))
sys.path.insert(0, str(HERE))

import zoo  # noqa: E402, F401  tests/zoo.py, before a script puts its own folder first, where one has that name too

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not {"slow", "real"} & set(item.keywords))  # first what takes long: cores end together
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def lacking(what):
    """Skips a test whose tool is not there; where CI is set that is a failure, as nobody would see it skipped."""
    if os.environ.get("CI"):
        pytest.fail(f"CI is set, and {what}")
    pytest.skip(what)


@pytest.fixture(autouse=True)
def _seed():
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)  # a hundred times as fast: it asks no other device


class Clock:
    """Stands for time.monotonic, and moves only where a test moves it."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock
