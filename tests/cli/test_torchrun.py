"""The command line under torchrun: one voice, the same figures, and an end on all ranks."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.cli_files import call

LIMIT = 240  # seconds


def torchrun(*arguments, size=2, **options):
    """Starts a command on several ranks of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}", "--rdzv-backend=c10d",
               "--rdzv-endpoint=localhost:0", "-m", "hvpspec", *map(str, arguments)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def test_the_demo(tmp_path):
    out, err = torchrun("demo", "--out", tmp_path / "two").communicate(timeout=LIMIT)
    assert call(tmp_path, "demo", "--out", "one", "--no-gradient").returncode == 0
    found, expected = (json.loads((tmp_path / name / "spectrum.json").read_text()) for name in ("two", "one"))
    for name in ("trace", "frobenius_norm"):
        assert found[name]["value"] == pytest.approx(expected[name]["value"], rel=1e-10), err
    values = [[entry["value"] for entry in each["eigenvalues"]] for each in (found, expected)]
    np.testing.assert_allclose(*values, rtol=1e-10)
    assert found["hvps"] == expected["hvps"]
    assert out.count("trace") == expected_count(out)
    assert "written to" in out
    ranks = found["provenance"]["ranks"]
    assert (ranks["count"], ranks["backend"], ranks["hosts"], len(ranks["devices"])) == (2, "gloo", 1, 2)


def expected_count(out):
    """That of a report that is printed once."""
    return len([line for line in out.splitlines() if "trace" in line and "plan" not in line]) + out.count("plan: ")


def test_a_command_for_one_process(tmp_path):
    process = torchrun("track", tmp_path, "--model", "m.py:f")
    err = process.communicate(timeout=LIMIT)[1]
    assert process.returncode != 0
    assert err.count("hvpspec track runs as one process; start it without torchrun.") == 1


def test_sigterm_saves_what_is_known(tmp_path):
    process = torchrun("demo", "--out", tmp_path, "--rtol", "1e-9", "--max-hvps", "100000", "--basis-memory", "2MiB")
    while not process.stdout.readline().startswith("expected: "):
        assert process.poll() is None
    time.sleep(5)
    process.send_signal(signal.SIGTERM)
    _out, err = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    found = json.loads((tmp_path / "spectrum.json").read_text())
    assert found["stopped"] == "stopped by SIGTERM", err
    assert found["hvps"] > 0
