"""The command line as a user meets it: in a process of its own, with files of its own."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

import hvpspec
from hvpspec import cli
from hvpspec.checkpoint.read import sha256
from hvpspec.report.json import read_spectrum

TRAIN = """
import time
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

def batches():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator)
    return list(zip(x.split(20), (x[:, :3].argmax(1)).split(20)))

def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)

calls = 0

def slow(model, batch):
    global calls
    calls += 1
    time.sleep(0.02)
    return loss(model, batch)

def detached(model, batch):
    return loss(model, batch).detach()

def broken(model, batch):
    raise KeyError("no such thing")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "train.py").write_text(TRAIN)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, folder / "model.pt")
    torch.save({"0.weight": torch.zeros(8, 6)}, folder / "half.pt")
    return folder


USUAL = ("model.pt", "--model", "train.py:build", "--data", "train.py:batches", "--loss", "cross_entropy")


def run(folder, *arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "hvpspec", *arguments],
        cwd=folder, capture_output=True, text=True, env=environment, timeout=300, check=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dense(folder):
    """The explicit Hessian at the checkpoint, in float64, from the whole data's loss in one piece."""
    space = {}
    exec(TRAIN, space)
    model = space["build"]()
    hvpspec.load_checkpoint(folder / "model.pt", model)
    model.double()
    x, y = (torch.cat(parts) for parts in zip(*space["batches"](), strict=True))
    names = [name for name, _ in model.named_parameters()]

    def fn(*values):
        swapped = dict(zip(names, values, strict=True))
        return nn.functional.cross_entropy(torch.func.functional_call(model, swapped, (x.double(),)), y)

    return hvpspec.hessian(fn, list(model.parameters())).numpy(), float(fn(*model.parameters()))


def test_spectrum_prints_and_writes_what_the_explicit_hessian_says(folder, dense):
    D, loss = dense
    done = run(folder, "spectrum", *USUAL, "-k", "5", "--dtype", "float64", "--out", "run/one")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar: not a terminal
    document = json.loads((folder / "run/one/spectrum.json").read_text())
    values = np.linalg.eigvalsh(D)
    values = values[np.argsort(-np.abs(values))][:5]
    assert document["schema"] == "hvpspec/spectrum/1"
    assert document["complete"] is document["converged"] is True
    assert document["parameters"] == len(D)
    assert document["loss"] == pytest.approx(loss, rel=1e-12)
    assert len(document["eigenvalues"]) == 5
    for found, value in zip(document["eigenvalues"], values, strict=True):
        assert abs(found["value"] - value) <= found["error"] + 1e-14
        assert found["residual"] <= 1e-3 * abs(value)
    for name, value in (("trace", np.trace(D)), ("frobenius_norm", np.linalg.norm(D))):
        figure = document[name]
        assert abs(figure["value"] - value) <= figure["error"] <= 0.01 * abs(value)
        assert figure["confidence"] == 0.95
        assert figure["converged"] is True

    lines = done.stdout.splitlines()
    assert re.match(rf"model.pt · {len(D)} parameters · float64 on cpu", lines[0])
    assert lines[1].startswith(f"loss on the data: {loss:.6g} (cross_entropy, 3 batches, total weight 50)")
    assert f"{document['eigenvalues'][0]['value']:.4f}"[:6] in done.stdout
    assert f"{document['hvps']} HVPs in" in done.stdout
    assert "written to run/one/spectrum.json" in done.stdout
    assert max(map(len, lines)) <= 80


def test_provenance_says_where_the_figures_come_from(folder):
    done = run(folder, "spectrum", *USUAL, "-k", "1", "--seed", "3", "--max-hvps", "20", "--out", "provenance")
    assert done.returncode == 0, done.stderr
    provenance = json.loads((folder / "provenance/spectrum.json").read_text())["provenance"]
    assert provenance["checkpoint"]["sha256"] == sha256(folder / "model.pt")
    assert provenance["data"] == {"source": "train.py:batches", "batches": 3, "weight": 50.0}
    assert provenance["loss"] == "cross_entropy"
    assert provenance["seed"] == 3
    assert provenance["dtype"] == "float32"
    assert provenance["engine"] in ("autograd", "linearized")  # auto: what repays on this machine
    assert provenance["attention_backend"] == "math"
    assert provenance["versions"]["torch"] == torch.__version__
    assert provenance["seconds"] > 0
    assert provenance["options"]["max_hvps"] == 20
    assert provenance["command"][:3] == ["hvpspec", "spectrum", "model.pt"]


def test_a_spent_budget_is_said(folder):
    done = run(folder, "spectrum", *USUAL, "--max-hvps", "24", "--out", "budget")
    assert done.returncode == 0, done.stderr
    document = json.loads((folder / "budget/spectrum.json").read_text())
    assert document["hvps"] == 24
    assert document["complete"] is True
    assert document["converged"] is document["trace"]["converged"] is False
    assert "tolerance not reached" in done.stdout
    assert "not to the ±1.00% asked for. More products (--max-hvps) would narrow it." in done.stdout


def test_parameters_loss_functions_and_seeds(folder, dense):
    D, _ = dense
    options = ("--parameters", "0.*", "--dtype", "float64", "-k", "2", "--out", "block")
    arguments = [*USUAL[:-1], "train.py:loss", *options]
    assert run(folder, "spectrum", *arguments).returncode == 0
    found = read_spectrum(folder / "block/spectrum.json")
    block = D[:56, :56]
    assert found.parameters == 56
    assert abs(found.trace.value - np.trace(block)) <= found.trace.error
    assert abs(found.eigenpairs.values[0] - np.linalg.norm(block, 2)) <= found.eigenpairs.error[0]
    both = run(folder, "spectrum", *arguments[:-6], "--parameters", "0.*", "--parameters", "2.bias", "--out", "both")
    assert both.returncode == 0
    assert read_spectrum(folder / "both/spectrum.json").parameters == 59


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.pt": "nowhere.pt"}, "nowhere.pt: no such file."),
        ({"model.pt": "train.py"}, "not a checkpoint"),
        ({"model.pt": "half.pt"}, "missing: 0.bias, 2.weight, 2.bias"),
        ({"train.py:build": "train.py:biuld"}, "did you mean build?"),
        ({"train.py:build": "train.py"}, "write it as file.py:function"),
        ({"train.py:batches": "train.py:calls"}, "data must be a re-iterable of batches"),
        ({"cross_entropy": "crossentropy"}, "choose one of cross_entropy, mse, bce_with_logits, causal_lm"),
        ({"cross_entropy": "mse"}, "outputs have shape (20, 3) and targets (20,)"),
        ({"cross_entropy": "train.py:detached"}, "look for torch.no_grad() or .detach()"),
        ({"cross_entropy": "train.py:broken"}, "batch 0: the loss raised KeyError"),
        (["--dtype", "float16"], "dtype must be float32 or float64; got float16."),
        (["--rtol", "-1"], "rtol must be a number ≥ 0"),
        (["--confidence", "95"], "confidence must lie between 0 and 1"),
        (["-k", "0"], "-k must be a whole number ≥ 1"),
        (["--max-hvps", "0"], "max_hvps must be a whole number ≥ 1"),
        (["--seed", "-1"], "seed must be"),
        (["--parameters", "nothing.*"], "no parameter matches 'nothing.*'"),
        (["--out", "model.pt"], "--out model.pt: cannot write there"),
        (["--device", "cuda:77"], "device 'cuda:77' cannot be used here"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--key", "ema"], "has no key 'ema'"),
        (["--rtol", "much"], "Invalid value for '--rtol'"),
        (["--nonsense"], "No such option: --nonsense"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(folder, change, message, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    arguments = [change.get(a, a) for a in USUAL] if isinstance(change, dict) else [*USUAL, *change]
    before = files(folder)
    status = cli.run(["spectrum", "--out", ".", *arguments])
    stderr = capsys.readouterr().err
    assert status == 2, stderr
    assert message in stderr
    assert stderr.startswith("hvpspec: ")
    assert stderr.count("\n") == 1
    assert "Traceback" not in stderr
    assert files(folder) == before


def files(folder):
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


def test_bad_input_in_a_process_of_its_own(folder):
    done = run(folder, "spectrum", "nowhere.pt", *USUAL[1:])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "hvpspec: nowhere.pt: no such file.\n"


def test_an_unforeseen_error_is_one_line_and_exit_1(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(hvpspec, "spectrum", lambda *args, **options: 1 / 0)
    assert cli.run(["spectrum", *USUAL]) == 1
    assert capsys.readouterr().err == "hvpspec: ZeroDivisionError: division by zero (--debug shows where)\n"


def test_missing_options_are_named(folder, capsys):
    assert cli.run(["spectrum", "model.pt"]) == 2
    assert "Missing option '--model'" in capsys.readouterr().err
    assert cli.run(["spektrum"]) == 2


def test_debug_shows_the_traceback(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.run(["spectrum", *USUAL[:-1], "train.py:broken", "--debug"]) == 2
    stderr = capsys.readouterr().err
    assert "Traceback" in stderr
    assert 'raise KeyError("no such thing")' in stderr


def interactive(folder, *arguments, interrupt_at=None, seconds=120):
    """Runs with a terminal for stderr; Ctrl-C once `interrupt_at` is seen there. Exit status, stdout, stderr."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "140"}
    process = subprocess.Popen(
        [sys.executable, "-m", "hvpspec", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment,
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
    arguments = ("spectrum", *USUAL[:-1], "train.py:slow", "-k", "2", "--rtol", "1e-9", "--out", "stopped")
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
    )  # fmt: skip
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "hvpspec: interrupted before the first figure was known; nothing was written.\n"
    assert not (folder / "never/spectrum.json").exists()


@pytest.mark.parametrize("command", ["spectrum", "demo"])
def test_help_has_an_example(command, capsys):
    assert cli.run([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: hvpspec {command} " in shown
    assert "--max-hvps" in shown


def test_version_and_commands(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"hvpspec {hvpspec.__version__}\n"
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "spectrum" in shown
    assert "demo" in shown


def test_without_the_extra_the_library_imports_and_the_command_says_what_to_install(tmp_path):
    block = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('typer', 'rich', 'safetensors', 'matplotlib'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import hvpspec, numpy\n"
        "assert hvpspec.trace(numpy.eye(3)).value == 3\n"
        "from hvpspec.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not installed; pip install 'hvpspec[cli]'." in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_terminal_without_unicode(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hvpspec", "demo", "--max-hvps", "10", "-k", "1", "--out", str(tmp_path)],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0
    assert b"?1 " in done.stdout


def test_demo(tmp_path):
    done = run(tmp_path, "demo", "--max-hvps", "60", "-k", "3", "--out", "d")
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "d/spectrum.json").read_text())
    assert document["parameters"] == 3466
    assert document["loss"] < 0.06
    assert document["hvps"] == 60
