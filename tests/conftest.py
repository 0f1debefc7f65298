"""Shared by all tests: threads, and the folder that the tests' own helpers are imported from."""

import os
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "scripts"))

torch.set_num_threads(1)  # the problems are small: threads would only wait for one another


def pytest_collection_modifyitems(items):
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
    torch.manual_seed(0)
