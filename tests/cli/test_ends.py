"""Whatever ends a run, what is known is saved, and what is said is true: signals, errors in the middle, full disks."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import unrendered
from cli_files import TRAIN, call

from hvpspec import atomic_files
from hvpspec.cli import measure
from hvpspec.report.documents import read_record, read_spectrum
from hvpspec.system import stops

FAULTY = """
import os, signal
passes = 0

class Data:
    def __iter__(self):
        global passes
        passes += 1
        for number, (x, y) in enumerate(batches()):
            if {at} <= passes < {at} + {lasting} and number == 1:
                {action}
            yield x, y

def quiet():
    act()
    return build()

def act():
    {action}
"""
MIDDLE = 40  # a pass over the data after the first figures and before the last
ASKED = ("--dtype", "float64", "--engine", "autograd", "--no-preflight", "-k", "3", "--rtol", "1e-9", "--no-journal")


def arguments(folder, action, at=MIDDLE, out="out", lasting=1):
    """Of a run with the engine that reads the data for every product; `action` happens in the given pass."""
    (folder / "faulty.py").write_text(TRAIN + FAULTY.format(at=at, lasting=lasting, action=action))
    names = ("--model", "faulty.py:build", "--data", "faulty.py:Data", "--loss", "cross_entropy")
    return ("spectrum", "model.pt", *names, *ASKED, "--out", out)


@pytest.fixture
def own(folder, tmp_path):
    """A folder with the checkpoint, for one test."""
    (tmp_path / "model.pt").write_bytes((folder / "model.pt").read_bytes())
    return tmp_path


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Pictures without a drawing, which takes most of the time of a short run."""
    monkeypatch.setattr("hvpspec.report.write_report.drawn", lambda shown: None)
    monkeypatch.setattr("hvpspec.report.write_report.to_bytes", lambda figure, kind: b"drawn")
    monkeypatch.setattr("hvpspec.report.html.panels", lambda spectrum: [])


def check_saved(folder, dense, printed):
    """The figures that were known: marked incomplete, right within their errors, and printed; nothing half-written."""
    found = read_spectrum(folder / "spectrum.json")
    assert found.complete is found.converged is False
    assert 0 < found.hvps < len(dense)
    values = np.linalg.eigvalsh(dense)
    for value, error in zip(found.eigenpairs.values, found.eigenpairs.error, strict=True):
        assert np.abs(values - value).min() <= error + 1e-12
    assert {path.name for path in folder.iterdir()} >= {"spectrum.json", "report.html"}
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]
    assert "λ1" in printed
    assert "written to out/spectrum.json" in printed
    return found


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "stopped by SIGTERM"), ("SIGHUP", 129, "stopped by SIGHUP")],
)
def test_a_signal_saves_what_is_known(own, dense, name, status, words):
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    done = call(own, *arguments(own, f"os.kill(os.getpid(), signal.{name})"))
    assert done.returncode == status
    found = check_saved(own / "out", dense[0], done.stdout)
    assert found.stopped == words
    assert f"{words}: the figures are those known by then" in done.stdout
    assert f"This run was {words}" in (own / "out/report.html").read_text()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    signal.signal(signal.SIGHUP, hangup)


ERRORS = [
    (
        "raise RuntimeError('no luck')",
        2,
        r"batch 1: the data raised RuntimeError: no luck \(.*, in .*\); every product",
    ),
    ("open('gone.pt')", 2, "batch 1: the data raised FileNotFoundError: .*gone.pt' .*; .*--freeze-data"),
    ("raise OSError(5, 'Input/output error')", 2, "batch 1: the data raised OSError: .*Input/output error"),
    ("raise MemoryError", 1, "out of memory .*smaller batches"),
    ('raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory")', 1, "out of memory .*--basis-on"),
    ("raise KeyError('x')", 2, "batch 1: the data raised KeyError: 'x'"),
    ("next(iter(()))", 2, "batch 1: the data raised RuntimeError: generator raised StopIteration"),
    ("raise SystemExit(0)", 2, "batch 1: the data raised SystemExit: 0"),
    ("(f := lambda: f())()", 2, "batch 1: the data raised RecursionError: maximum recursion depth"),
    ("x = x * float('nan')", 2, "batch 1: the loss is nan"),
    ("x = x * 2", 2, "two passes over the data give different losses"),
    ("x = x * 2", 2, "the operator is not symmetric"),
    ("return", 2, "data changed between two passes"),
    ("raise torch.OutOfMemoryError('CUDA out of memory')", 1, "out of memory"),
]


@pytest.mark.parametrize(("action", "status", "said"), ERRORS, ids=[said for _, _, said in ERRORS])
def test_an_error_in_the_middle_saves_what_is_known(own, dense, action, status, said):
    # Passes. What is wrong for one pass is no end: the product is made again, and so it is with less memory.
    lasting = 9 if re.search("memory|symmetric", said) else 2 if re.search("nan|two passes over", said) else 1
    done = call(own, *arguments(own, action, lasting=lasting))
    assert done.returncode == status
    assert re.search(f"^hvpspec: {said}", done.stderr, re.MULTILINE), done.stderr
    assert len(done.stderr.splitlines()) == 1
    found = check_saved(own / "out", dense[0], done.stdout)
    assert found.stopped.startswith("ended by an error: ")
    assert "ended by an error: the figures are those known by then" in done.stdout


def test_after_an_error_in_the_middle_the_same_command_goes_on(own):
    """Figures and products are kept: the former in files, the latter in the journal."""
    asked = [option for option in arguments(own, "raise OSError(5, 'Input/output error')") if option != "--no-journal"]
    done = call(own, *asked)
    assert done.returncode == 2
    assert re.search(
        r"^\d+ products are kept in out/hvpspec-journal: the same command goes on", done.stderr, re.MULTILINE
    )
    assert read_spectrum(own / "out/spectrum.json").hvps > 0
    done = call(own, *asked)  # the fault was that of one pass
    assert done.returncode == 0, done.stderr
    assert "goes on with an interrupted run" in done.stderr
    assert read_spectrum(own / "out/spectrum.json").complete
    assert not (own / "out/hvpspec-journal").exists()


def test_memory_that_is_short_for_a_moment_is_no_end(own):
    done = call(own, *arguments(own, "raise MemoryError"), "--max-hvps", "50")
    assert done.returncode == 0
    assert read_spectrum(own / "out/spectrum.json").complete


@pytest.mark.parametrize(
    ("before", "said"),
    [(False, "nothing was written."), (True, "nothing was written (out/spectrum.json is of an earlier run).")],
)
def test_before_the_first_figure_it_is_said_what_is_on_disk(own, before, said):
    asked = arguments(own, "os.kill(os.getpid(), signal.SIGTERM)", at=1)
    if before:
        (own / "out").mkdir()
        (own / "out/spectrum.json").write_text("{}")
    done = call(own, *asked)
    assert done.returncode == 143
    assert done.stderr == f"hvpspec: stopped by SIGTERM before the first figure was known; {said}\n"
    assert (own / "out/spectrum.json").exists() == before


def at_write(monkeypatch, number, act):
    """Calls `act` instead of the sync of the file number `number`, from 0, that is written."""
    real, count = os.fsync, iter(range(1000))
    monkeypatch.setattr(atomic_files.os, "fsync", lambda handle: act() if next(count) == number else real(handle))


@pytest.mark.parametrize("number", range(4))
def test_a_signal_while_files_are_written_leaves_them_whole(own, monkeypatch, number):
    """Those of a run that is complete: the figures are all there, and the status still says that it was stopped."""
    at_write(monkeypatch, number, lambda: os.kill(os.getpid(), signal.SIGTERM))
    done = call(own, *arguments(own, "pass"), "--max-hvps", "20")
    assert done.returncode == 143
    assert "stopped by SIGTERM after the last product: all figures are known; written: out/spectrum.json" in done.stderr
    assert read_spectrum(own / "out/spectrum.json").complete
    names = {"spectrum.json", "report.html", "spectrum.svg", "spectrum.png"}
    assert {path.name for path in (own / "out").iterdir()} == names
    assert "λ1" in done.stdout


def test_further_signals_do_not_disturb_the_saving(own, dense, monkeypatch):
    real = os.fsync

    def impatient(handle):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        real(handle)

    monkeypatch.setattr(atomic_files.os, "fsync", impatient)
    done = call(own, *arguments(own, "for _ in range(3): os.kill(os.getpid(), signal.SIGINT)"))
    assert done.returncode == 130
    check_saved(own / "out", dense[0], done.stdout)


def test_a_signal_that_somebody_swallows_is_raised_again(own, dense):
    swallowed = "exec('try: os.kill(os.getpid(), signal.SIGTERM)\\nexcept BaseException: pass')"
    done = call(own, *arguments(own, swallowed))
    assert done.returncode == 143
    check_saved(own / "out", dense[0], done.stdout)


def test_during_a_long_call_into_a_library_what_is_known_is_saved_at_once(own, dense, monkeypatch):
    """Python raises nothing before the call returns, and a batch system may kill the process before that."""
    monkeypatch.setattr(stops, "_SECONDS_UNHEARD", 0.1)
    send = "import threading, hashlib; threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()"
    written = []
    monkeypatch.setattr(measure, "write_json", lambda path, document: written.append(document))
    done = call(own, *arguments(own, f"{send}; hashlib.pbkdf2_hmac('sha256', b'x', b'y', 3_000_000)"))
    assert done.returncode == 143
    found = check_saved(own / "out", dense[0], done.stdout)
    assert done.stderr == "hvpspec: stopped by SIGTERM: what is known is saved; waiting for an operation to end.\n"
    (early,) = written
    assert early["stopped"] == "stopped by SIGTERM"
    assert early["hvps"] == found.hvps
    assert not [thread for thread in threading.enumerate() if thread.name == "hvpspec-signals"]


def test_a_child_that_is_forked_meanwhile_ends_as_usual(own):
    """The handlers are inherited: SIGTERM must end a worker of a pool, not make it save the run."""
    action = "import time; pid = os.fork(); pid == 0 and (time.sleep(9), os._exit(7)); time.sleep(0.2); "
    action += (
        "os.kill(pid, signal.SIGTERM); ends = open('ends', 'w'); ends.write(str(os.waitpid(pid, 0)[1])); ends.close()"
    )
    done = call(own, *arguments(own, action), "--max-hvps", "50")
    assert done.returncode == 0, done.stderr
    assert os.WTERMSIG(int((own / "ends").read_text())) == signal.SIGTERM


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("number", "lost"),
    [(0, "spectrum.json"), (1, "report.html"), (2, "spectrum.svg"), (3, "spectrum.png")],
)
def test_a_file_that_cannot_be_written(own, monkeypatch, number, lost):
    """The table is printed, even with --quiet where it is the only place; page and pictures of an older run go."""
    assert call(own, *arguments(own, "pass"), "--max-hvps", "16").returncode == 0
    at_write(monkeypatch, number, full)
    done = call(own, *arguments(own, "pass"), "--force", "--max-hvps", "20", *(["--quiet"] if number == 0 else []))
    assert done.returncode == 1
    assert done.stderr.startswith(f"hvpspec: {lost}: not written (No space left on device); of this run, out has ")
    assert len(done.stderr.splitlines()) == 1
    assert "λ1" in done.stdout
    names = {"spectrum.json", "report.html", "spectrum.svg", "spectrum.png"}
    assert {path.name for path in (own / "out").iterdir()} == (names if number == 0 else names - {lost})
    if number > 0:
        assert read_spectrum(own / "out/spectrum.json").hvps == 20


def test_a_full_disk_after_an_error_in_the_middle(own, monkeypatch):
    monkeypatch.setattr(atomic_files.os, "fsync", lambda handle: full())
    done = call(own, *arguments(own, "raise RuntimeError('no luck')"))
    assert done.returncode == 2
    said = done.stderr.splitlines()
    assert said[0].endswith("not written (No space left on device); of this run, out has nothing.")
    assert said[1].startswith("hvpspec: batch 1: the data raised RuntimeError: no luck")
    assert "λ1" in done.stdout
    assert list((own / "out").iterdir()) == []


def test_a_folder_that_vanishes_is_made_again(own):
    done = call(own, *arguments(own, "__import__('shutil').rmtree('out')"), "--max-hvps", "60")
    assert done.returncode == 0
    assert read_spectrum(own / "out/spectrum.json").complete


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda out: out.write_text("a file"), "--out out: cannot write there (File exists)"),
        (lambda out: (out / "spectrum.json").mkdir(parents=True), "--out out: spectrum.json is a folder there"),
        (lambda out: (out / "report.html").mkdir(parents=True), "--out out: report.html is a folder there"),
        (lambda out: (out / "spectrum.png").mkdir(parents=True), "--out out: spectrum.png is a folder there"),
        (lambda out: out.symlink_to("nowhere/at/all"), "--out out: cannot write there"),
    ],
)
def test_where_nothing_can_be_written_no_product_is_made(own, spoil, said):
    spoil(own / "out")
    done = call(own, *arguments(own, "raise AssertionError", at=1))
    assert done.returncode == 2
    assert done.stderr.startswith(f"hvpspec: {said}")


@pytest.mark.parametrize("failure", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_takes_no_files_is_refused_at_once(own, monkeypatch, failure):
    def refused(**where):
        raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(atomic_files.tempfile, "TemporaryFile", refused)
    done = call(own, *arguments(own, "raise AssertionError", at=1))
    assert done.returncode == 2
    assert f"--out out: cannot write there ({os.strerror(failure)})" in done.stderr


def test_paths_that_are_not_utf8(own):
    name = os.fsdecode(b"caf\xff")
    done = call(own, *arguments(own, "pass", out=name), "--max-hvps", "20")
    assert done.returncode == 0, done.stderr
    document = json.loads((own / name / "spectrum.json").read_text())
    assert name in document["provenance"]["command"]
    assert read_record(own / name / "spectrum.json").provenance.command[-3] == name
    assert r"caf\udcff" in (own / name / "report.html").read_text()


def test_track_on_a_full_disk_shows_the_row_and_counts_what_is_on_disk(training_run, tmp_path, monkeypatch):
    for name in ("train.py", "ckpt-0.pt", "ckpt-2.pt"):
        (tmp_path / name).write_bytes((training_run / name).read_bytes())
    monkeypatch.setattr("hvpspec.runs.series_store.to_bytes", lambda picture, kind: b"")
    names = ("--model", "train.py:build", "--data", "train.py:batches", "--loss", "cross_entropy", "--no-preflight")
    at_write(monkeypatch, 5, full)  # after eigenvectors, track.json, track.csv and two pictures of the first
    asked = (*names, "-k", "1", "--rtol", "0.5", "--out", "out", "--no-journal")
    done = call(tmp_path, "track", "ckpt-0.pt", "ckpt-2.pt", *asked)
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert "hvpspec: 1 of 2 checkpoints are done." in said
    assert re.search(r"^hvpspec: OSError: .*No space left on device: 'out/track-vectors-2.npy'", said[-1])
    assert "\nckpt-2.pt " in done.stdout
    assert len(json.loads((tmp_path / "out/track.json").read_text())["checkpoints"]) == 1
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".tmp"]


def test_track_says_what_is_done(training_run, tmp_path):
    for name in ("ckpt-0.pt", "ckpt-2.pt", "ckpt-4.pt"):
        (tmp_path / name).write_bytes((training_run / name).read_bytes())
    loss = "\ndone = 0\ndef stopping(model, batch):\n    global done\n    done += 1\n    if done == 230:\n"
    loss += "        import signal; os.kill(os.getpid(), signal.SIGTERM)\n    return loss(model, batch)\n"
    (tmp_path / "train.py").write_text((training_run / "train.py").read_text() + loss)
    names = ("--model", "train.py:build", "--data", "train.py:batches", "--loss", "train.py:stopping")
    asked = ("track", "ckpt-0.pt", "ckpt-2.pt", "ckpt-4.pt", *names, "-k", "1", "--engine", "autograd", "--rtol", "0.3")
    done = call(tmp_path, *asked, "--out", "out", "--no-preflight")
    assert done.returncode == 143
    rows = len(json.loads((tmp_path / "out/track.json").read_text())["checkpoints"])
    assert 0 < rows < 3
    said = f"stopped by SIGTERM; {rows} of 3 checkpoints are done, and the same command continues from there."
    assert said in done.stderr
    assert call(tmp_path, *asked, "--out", "out", "--no-preflight").returncode == 0
    assert len(json.loads((tmp_path / "out/track.json").read_text())["checkpoints"]) == 3


def in_shell(folder, line):
    """A shell's line with `hvpspec …` in it, or `unrendered …` for pictures that are not, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    for name, program in (("unrendered", unrendered.__file__), ("hvpspec", "-m hvpspec")):
        if line.find(name) >= 0:
            line = line.replace(name, f'"$PYTHON" {program} demo --max-hvps 12 -k 1 --no-preflight --out out')
            break
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, text=True, env=environment, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("unrendered | head -1; exit ${PIPESTATUS[0]}", 0, ""),  # a reader that has seen enough
        ("hvpspec >&- 2>&- <&-", 0, ""),
        ("unrendered > /dev/full", 1, "hvpspec: what is printed could not all be written to stdout (No space left on"),
        ("trap '' TERM; unrendered & sleep 1.5; kill -TERM $!; wait $!", 0, ""),  # ignored by the parent, as with nohup
    ],
)
def test_streams_that_fail_and_signals_that_are_ignored_do_not_end_a_run(tmp_path, line, status, said):
    done = in_shell(tmp_path, line)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)
    assert read_spectrum(tmp_path / "out/spectrum.json").complete


def test_a_signal_while_the_program_is_loaded(tmp_path):
    done = in_shell(tmp_path, "hvpspec & sleep 0.5; kill -TERM $!; wait $!")
    assert done.returncode == 143
    assert re.fullmatch(r"(hvpspec: stopped by SIGTERM.*\n)?", done.stderr)  # or before Python can say anything
    assert not (tmp_path / "out/spectrum.json").exists()
