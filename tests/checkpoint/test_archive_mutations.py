"""Archives in which two readers could see different files, by the thousand: see archive_mutations.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint.archive_mutations import SENTINEL


@pytest.mark.parametrize(
    "count", [pytest.param(100, id="short"), pytest.param(1000, marks=pytest.mark.slow, id="long")]
)
def test_what_is_loaded_is_what_was_inspected(tmp_path, count):
    """And nothing on disk changes. The short form has 250 mutants, the long one 2,500."""
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("archive_mutations.py"), str(count)],
        cwd=tmp_path / "work", capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{(tmp_path / 'current').read_text()}: {done.returncode} {done.stderr[-3000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert sum(sum(outcomes.values()) for outcomes in found.values()) == 2.5 * count
    for kind in ("script", "saved", "dcp"):
        assert min(found[kind].values()) > 0.1 * sum(found[kind].values()), kind
    assert (tmp_path / "work/sentinel").read_text() == SENTINEL
