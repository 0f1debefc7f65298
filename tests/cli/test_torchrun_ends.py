"""What ends a rank under torchrun, and how the same command goes on: on as many ranks, and as one process."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from cli_files import TRAIN, call

from hvpspec.report.documents import read_spectrum

LIMIT = 400  # seconds
MOST_SECONDS_TO_END = 60  # from the death of a rank

# ENDING is "how number rank": at that pass over the data of that rank, something happens.
DATA = """
import errno, os, signal
from pathlib import Path

how, at, at_rank = os.environ.get("ENDING", "not 0 0").split()
passes = 0

def full(handle):
    raise OSError(errno.ENOSPC, "No space left on device")

class Data:
    def __iter__(self):
        global passes
        passes += 1
        if passes == int(at) and os.environ.get("RANK") == at_rank:
            Path(how).touch()
            if how == "interrupted":
                os.kill(os.getppid(), signal.SIGINT)
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "full":
                import hvpspec.atomic_files
                hvpspec.atomic_files.os.fsync = full
        return iter(batches())
"""
ENTRY = """
import os, sys
from pathlib import Path

import hvpspec.report.html, hvpspec.report.write_report as pictures
from hvpspec.__main__ import main

pictures.drawn, pictures.to_bytes = lambda shown: None, lambda figure, kind: b"drawn"
hvpspec.report.html.panels = lambda spectrum: []
status = None
try:
    main()
except SystemExit as end:
    status = end.code
    raise
finally:
    Path(f"status-{os.environ['RANK']}").write_text(str(status))
"""
NAMES = ("--model", "ending.py:build", "--data", "ending.py:Data", "--loss", "cross_entropy", "--dtype", "float64")
ASKED = ("spectrum", "model.pt", *NAMES, "--engine", "autograd", "--memory-limit", "1", "--no-preflight", "-k", "3",
         "--rtol", "1e-9", "--out", "out")  # fmt: skip


def started(place, ending):
    """The command on two ranks: its exit status, what it printed, and the exit statuses of the ranks."""
    for name in ("status-0", "status-1"):
        (place / name).unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
               "--rdzv-endpoint=localhost:0", "entry.py", *ASKED]  # fmt: skip
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONUNBUFFERED": "1", "ENDING": ending
    }  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=place, env=environment, timeout=LIMIT, check=False
    )
    statuses = [int(path.read_text()) if path.exists() else None for path in (place / "status-0", place / "status-1")]
    return done, statuses


@pytest.fixture(scope="module")
def place(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("ends")
    (place / "model.pt").write_bytes((folder / "model.pt").read_bytes())
    (place / "ending.py").write_text(TRAIN + DATA)
    (place / "entry.py").write_text(ENTRY)
    return place


def kept(text, place):
    """How many products the run says that it has kept, once."""
    (found,) = re.findall(rf"(\d+) products are kept in {place}out/hvpspec-journal: the same command goes on", text)
    return int(found)


def gone_on(text):
    (found,) = re.findall(r"goes on with an interrupted run(?: of 2 ranks)?: (\d+) products in", text)
    return int(found)


def test_whatever_ends_it_the_same_command_goes_on(place, dense):
    """Ctrl-C; then the first rank is killed; then its disk is full at the end; then one process takes it all over."""
    out = place / "out"
    done, statuses = started(place, "interrupted 40 0")
    assert done.returncode != 0
    assert statuses == [130, 130], done.stderr
    first = read_spectrum(out / "spectrum.json")
    assert first.stopped == "interrupted"
    assert done.stdout.count("interrupted: the figures are those known by then") == 1
    products = kept(done.stderr, "")
    assert products >= first.hvps > 0

    done, statuses = started(place, "killed 30 0")
    assert gone_on(done.stderr) == products
    assert statuses[0] is None
    assert statuses[1] == 1
    killed = os.stat(place / "killed").st_mtime
    assert os.stat(place / "status-1").st_mtime < killed + MOST_SECONDS_TO_END
    second = read_spectrum(out / "spectrum.json")
    assert second.hvps > first.hvps
    assert second.stopped.startswith("ended by an error: LostRank: rank 0 has ended or does not answer any more")
    assert done.stderr.count("hvpspec: LostRank: rank 0 has ended or does not answer any more") == 1
    assert "λ1" in done.stdout
    products = kept(done.stderr, f"{place}/")
    values = np.linalg.eigvalsh(dense[0])
    for value, error in zip(second.eigenpairs.values, second.eigenpairs.error, strict=True):
        assert np.abs(values - value).min() <= error + 1e-12

    done, statuses = started(place, "full 12 0")
    assert products - 1 <= gone_on(done.stderr) <= products  # the rank that was killed may lack the last one
    assert statuses == [1, 1]
    said = [line for line in done.stderr.splitlines() if line.startswith("hvpspec: ")]
    assert len(said) == 1, said
    assert re.match(r"hvpspec: spectrum.json, .*: not written \(No space left on device\)", said[0])
    assert "λ1" in done.stdout
    assert not list(out.glob("*.tmp"))

    again = call(place, *ASKED)
    assert again.returncode == 0, again.stderr
    assert gone_on(again.stderr) > products
    made = gone_on(again.stderr)
    assert f"{made} of {made} products of 2 ranks were taken over" in again.stderr
    found = read_spectrum(out / "spectrum.json")
    assert found.complete
    np.testing.assert_allclose(found.trace.value, np.trace(dense[0]), rtol=1e-9)
    assert not (out / "hvpspec-journal").exists()
