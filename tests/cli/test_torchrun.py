"""The command line under torchrun: one voice, the same figures, and an end on all ranks."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from hvpspec import cli, load_eigenvectors
from tests import unrendered
from tests.cli_files import call
from tests.track_files import NAMES, USUAL, rows, without_seconds

LIMIT = 240  # seconds


def torchrun(*arguments, size=2, program=("-m", "hvpspec"), **options):
    """Starts a command on several ranks of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}", "--rdzv-backend=c10d",
               "--rdzv-endpoint=localhost:0", *program, *map(str, arguments)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


DEMO = ("demo", "-k", "3", "--rtol", "0.1", "--per-batch")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of the demo on two ranks and on one process, and what the first of them said."""
    folder = tmp_path_factory.mktemp("demo")
    saving = ("--save-eigenvectors", folder / "vectors")
    ranks = torchrun(*DEMO, *saving, "--out", folder / "two", program=[unrendered.__file__], cwd=folder)
    out, err = ranks.communicate(timeout=LIMIT)
    assert call(folder, *DEMO, "--out", "one").returncode == 0
    return folder, out, err


def test_the_demo(demo):
    folder, out, err = demo
    found, expected = (json.loads((folder / name / "spectrum.json").read_text()) for name in ("two", "one"))
    for name in ("trace", "frobenius_norm"):
        assert found[name]["value"] == pytest.approx(expected[name]["value"], rel=1e-10), err
    values = [[entry["value"] for entry in each["eigenvalues"]] for each in (found, expected)]
    np.testing.assert_allclose(*values, rtol=1e-10)
    assert found["hvps"] == expected["hvps"]
    assert out.count("trace") == expected_count(out)
    assert "written to" in out
    ranks = found["provenance"]["ranks"]
    assert (ranks["count"], ranks["backend"], ranks["hosts"], len(ranks["devices"])) == (2, "gloo", 1, 2)
    assert found["preflight"]["measured"]["ranks"] == 2
    assert "MiB per rank" in out
    for name in ("norm", "curvature", "share", "noise_scale"):
        assert found["gradient"][name]["value"] == pytest.approx(expected["gradient"][name]["value"], rel=1e-10)
    each = [[batch["largest"]["value"] for batch in one["per_batch"]["batches"]] for one in (found, expected)]
    np.testing.assert_allclose(*each, rtol=1e-10)


def test_one_process_verifies_and_reads_what_ranks_have_made(demo):
    folder, out, _ = demo
    done = call(folder, "verify", "two")
    assert (done.returncode, done.stdout.count("agrees "), done.stderr) == (0, 6, "")
    assert "vectors" in out.splitlines()[-1]
    found, pairs = json.loads((folder / "two/spectrum.json").read_text()), load_eigenvectors(folder / "vectors")
    assert pairs.values.tolist() == [entry["value"] for entry in found["eigenvalues"]]
    np.testing.assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(3), atol=1e-10)


def test_ranks_verify_what_one_process_has_made(demo):
    process = torchrun("verify", "one", "--json", cwd=demo[0])
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert [check["what"] for check in json.loads(out)["checks"]] == [
        "file",
        "figures",
        "checkpoint",
        "loss",
        "products",
        "gradient",
    ]


def test_a_series_goes_on_with_another_number_of_ranks(training_run, monkeypatch):
    """One process begins it, two ranks go on, and one process ends it."""
    monkeypatch.chdir(training_run)
    command = ("track", *USUAL, "-k", "2", "--rtol", "0.1")
    for names, out in ((NAMES[:4], "alone"), (NAMES[:1], "shared")):
        assert cli.run([*command, *names, "--out", out]) == 0
    process = torchrun(*command, *NAMES[:3], "--out", "shared", program=[unrendered.__file__])
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert out.count(NAMES[2]) == 1
    assert cli.run([*command, *NAMES[:4], "--out", "shared"]) == 0
    found, expected = (without_seconds(rows(training_run / name)) for name in ("shared", "alone"))
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if "error" not in name and "bound" not in name and isinstance(value, float):
                assert one[name] == pytest.approx(value, rel=1e-9), name
        assert one["hvps"] == other["hvps"]


def expected_count(out):
    """That of a report that is printed once."""
    return len([line for line in out.splitlines() if "trace" in line and "plan" not in line]) + out.count("plan: ")


def test_sigterm_saves_what_is_known(tmp_path):
    long = ("--rtol", "1e-9", "--max-hvps", "100000", "--basis-memory", "2MiB")
    process = torchrun("demo", "--out", tmp_path, *long, "--engine", "autograd")  # to record takes longer than we wait
    while not process.stdout.readline().startswith("expected: "):
        assert process.poll() is None
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    _out, err = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    found = json.loads((tmp_path / "spectrum.json").read_text())
    assert found["stopped"] == "stopped by SIGTERM", err
    assert found["hvps"] > 0
