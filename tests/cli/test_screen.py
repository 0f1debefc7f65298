"""What goes where: terminals, pipes, --json and --quiet, colours, and Ctrl-C."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

from cli_files import TRAIN, USUAL, call

from hvpspec import cli
from hvpspec.report.documents import read_spectrum


def test_sentences_wrap_on_a_terminal_and_are_a_line_each_for_scripts(folder):
    arguments = ("spectrum", *USUAL, "--max-hvps", "24", "--dtype", "float64", "--out", "wrapped", "--no-preflight")
    piped = call(folder, *arguments).stdout
    assert "asked for. More products (--max-hvps) would narrow it.\n" in piped
    assert max(map(len, piped.splitlines())) > 80
    lines = on_a_terminal(folder, 60, *arguments).replace("\r", "").split("\n")
    lines = lines[next(i for i, line in enumerate(lines) if line.startswith("figure ")) :]
    assert max(map(len, lines)) <= 60
    assert "More products (--max-hvps) would narrow it." in " ".join(" ".join(lines).split())
    assert "…" not in "".join(line for line in lines if " … " not in line)


def on_a_terminal(folder, width, *arguments):
    """What stdout shows there, without colours."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": str(width)}
    process = subprocess.Popen(
        [sys.executable, "-m", "hvpspec", *arguments],
        cwd=folder, stdout=theirs, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(ours, 65536):
            seen += piece
    os.close(ours)
    assert process.wait(timeout=120) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())


def _mind_ctrl_c():
    """Tests that run in the background ignore it, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interactive(folder, *arguments, interrupt_at=None, seconds=120):
    """Runs with a terminal for stderr; Ctrl-C once `interrupt_at` is seen there. Exit status, stdout, stderr."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "140"}
    process = subprocess.Popen(
        [sys.executable, "-m", "hvpspec", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment,
        preexec_fn=_mind_ctrl_c,
    )  # fmt: skip
    os.close(theirs)
    seen, interrupted, end = "", False, time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                seen += os.read(ours, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                break
        if interrupt_at and not interrupted and re.search(interrupt_at, seen):
            process.send_signal(signal.SIGINT)
            interrupted = True
    stdout, _ = process.communicate(timeout=seconds)
    os.close(ours)
    return process.returncode, stdout, seen


def test_progress_bar_and_ctrl_c(folder):
    """On a terminal: products done, the current estimate, time left. Ctrl-C prints and saves what is known."""
    # autograd: the function that sleeps is called for every product, so that each stage lasts longer than a refresh.
    arguments = ("spectrum", *USUAL[:-1], "train.py:slow", "-k", "2", "--rtol", "1e-9", "--engine", "autograd")
    arguments += ("--out", "stopped")
    status, stdout, stderr = interactive(folder, *arguments, interrupt_at=r"trace \S+ ± \S+")
    assert status == 130
    assert re.search(r"eigenvalues.*HVPs.*λ1 \S+ ± \S+", stderr)
    assert re.search(r"trace and norm.*\d+/\d+ HVPs", stderr)
    assert "left" in stderr
    assert "Traceback" not in stderr + stdout
    found = read_spectrum(folder / "stopped/spectrum.json")
    assert not found.complete
    assert len(found.eigenpairs.values) == 2
    assert found.trace is not None
    assert "interrupted" in stdout
    assert "λ2" in stdout
    assert "written to stopped/spectrum.json" in stdout


def test_ctrl_c_before_anything_is_known(folder):
    (folder / "sleepy.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "hvpspec", "spectrum", *USUAL[:2], "sleepy.py:f", *USUAL[3:], "--out", "never"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=_mind_ctrl_c,
    )  # fmt: skip
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "hvpspec: interrupted before the first figure was known; nothing was written.\n"
    assert not (folder / "never/spectrum.json").exists()


def test_only_json_goes_to_stdout(folder, monkeypatch, capsys):
    """Even where the user's own files print."""
    monkeypatch.chdir(folder)
    (folder / "loud.py").write_text(TRAIN + "print('loading')\n")
    arguments = ["model.pt", "--model", "loud.py:build", "--data", "loud.py:batches", "--loss", "cross_entropy"]
    assert cli.run(["spectrum", *arguments, "-k", "1", "--rtol", "0.2", "--json", "--out", "scripted"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == json.loads((folder / "scripted/spectrum.json").read_text())
    assert shown.err.split() == ["loading"] * shown.err.count("loading") != []
    assert cli.run(["compare", "scripted", "scripted", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "hvpspec/compare/1"


def test_quiet_prints_only_errors(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.run(["spectrum", *USUAL, "-k", "1", "--rtol", "0.2", "--quiet", "--out", "quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert (folder / "quiet/spectrum.json").exists()
    assert cli.run(["spectrum", "nowhere.pt", *USUAL[1:], "--quiet"]) == 2
    assert capsys.readouterr() == ("", "hvpspec: nowhere.pt: no such file.\n")


def test_quiet_and_json_end_with_their_command(stage, monkeypatch, capsys):
    monkeypatch.chdir(stage)
    assert cli.run(["compare", "before", "after", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert cli.run(["compare", "before", "after"]) == 0
    assert "Frobenius norm" in capsys.readouterr().out


def test_colours_are_for_terminals_that_want_them(tmp_path):
    def shown(**more):
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        done = subprocess.run(
            [sys.executable, "-m", "hvpspec", "--help"],
            capture_output=True, text=True, env={**kept, "TERM": "xterm-256color", **more}, check=True,
        )  # fmt: skip
        return re.findall(r"\x1b\[[0-9;]*3[0-7]m", done.stdout)

    assert shown(FORCE_COLOR="1")
    assert not shown(FORCE_COLOR="1", NO_COLOR="1")


def test_a_terminal_without_unicode(tmp_path):
    command = ["demo", "--max-hvps", "10", "-k", "1", "--no-preflight", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "hvpspec", *command],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0
    assert b"?1 " in done.stdout
