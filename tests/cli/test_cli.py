"""The command line as a user meets it: in a process of its own, with files of its own."""

import contextlib
import glob
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn

import hvpspec
from hvpspec import cli
from hvpspec.checkpoint.formats.files import sha256
from hvpspec.report.documents import read_spectrum, schema

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

class Changing:
    def __iter__(self):
        order = torch.randperm(50)[:40]
        (x, y) = (torch.cat(parts) for parts in zip(*batches()))
        return iter([(x[order], y[order])])

def half():
    return build().bfloat16()

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
    assert max(len(line) for line in lines if "   " in line) <= 80  # the tables


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
        (
            {"cross_entropy": "crossentropy"},
            "choose one of cross_entropy, mse, bce_with_logits, causal_lm, model, cosine_similarity, or",
        ),
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
        (["--only", "trace", "--refine"], "add --only density"),
        (["--blocks", "nothing*"], "no parameter belongs to a block 'nothing*'. Near it:"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--only", "trace", "--refine"], "add --only density"), (["--blocks", "nothing*"], "belongs to a block")],
)
def test_options_that_cannot_be_met_are_refused_before_anything_is_measured(
    folder, options, message, monkeypatch, capsys
):
    def product(*_):
        raise AssertionError("too late")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(hvpspec.HessianOperator, "loss", product)
    for command in ("spectrum", "check"):
        assert cli.run([command, "--out", ".", *USUAL, *options]) == 2
        assert message in capsys.readouterr().err
    track = ["track", "model.pt", "--out", ".", *USUAL[1:], *(options[-1:] if "--refine" in options else options)]
    assert cli.run(track) == 2
    assert "track takes no --refine and no --blocks" in capsys.readouterr().err


def test_blocks_and_refinement_are_planned_shown_and_their_shortfalls_said(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    usual = [
        "spectrum",
        *USUAL,
        "-k",
        "2",
        "--dtype",
        "float64",
        "--damping",
        "0.05",
        "--out",
        "parts",
        "--no-preflight",
    ]
    assert cli.run([*usual, "--rtol", "0.1", "--blocks", "*", "--refine", "--refine-hvps", "3", "--out", "parts"]) == 0
    shown = capsys.readouterr().out
    assert "plan: 2 eigenvalues, trace, Frobenius norm, density, 2 blocks, the eigenvalue nearest to -0.05" in shown
    assert "--refine-hvps 3)" in shown
    assert "conditioning of H " in shown
    assert "conditioning of H + 0.05 I " in shown
    assert "learning rate: 2/(λ_max + δ)" in shown
    assert re.search(r"The eigenvalue nearest to zero (did not converge|was not reached)", shown)
    assert not any(line != line.rstrip() for line in shown.splitlines())
    assert cli.run([*usual, "--rtol", "0.5", "--blocks", "*", "--max-hvps", "4", "--out", "parts"]) == 0
    shown = capsys.readouterr().out
    assert "λ_max of the blocks was not reached. More products (--max-hvps) would find it." in shown
    assert "for these λ_max alone" not in shown


def test_sentences_wrap_on_a_terminal_and_are_a_line_each_for_scripts(folder):
    arguments = ("spectrum", *USUAL, "--max-hvps", "24", "--dtype", "float64", "--out", "wrapped", "--no-preflight")
    piped = run(folder, *arguments).stdout
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
    assert "Missing option '--data'" in capsys.readouterr().err
    assert cli.run(["spektrum"]) == 2


def test_debug_shows_the_traceback(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.run(["spectrum", *USUAL[:-1], "train.py:broken", "--debug"]) == 2
    stderr = capsys.readouterr().err
    assert "Traceback" in stderr
    assert 'raise KeyError("no such thing")' in stderr


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


COMMANDS = [command.__name__ for command in cli.COMMANDS]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_exit_statuses(command, capsys):
    assert cli.run([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: hvpspec {command} " in shown
    assert "--json" in shown
    assert "--quiet" in shown
    for status in ("0 done", "2 bad input", "130 interrupted", "1 anything unforeseen"):
        assert status in shown
    assert cli.run(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert cli.EXIT in shown
    (example,) = (" ".join(example.split()) for example in cli.examples() if f"hvpspec {command} " in example)
    assert example in shown


@pytest.fixture(scope="module")
def stage(folder, tmp_path_factory):
    """A folder with everything that the examples name."""
    stage = tmp_path_factory.mktemp("stage")
    for name in ("train.py", "model.pt"):
        (stage / name).write_bytes((folder / name).read_bytes())
    (stage / "run").mkdir()
    for step in (1, 2):
        shutil.copy(stage / "model.pt", stage / f"run/ckpt-{step}.pt")
    for name, seed in (("before", "0"), ("after", "1")):
        (stage / name).mkdir()
        command = ["hvpspec", "demo", "-k", "2", "--rtol", "0.2", "--seed", seed, "--out", name]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(stage)
            patch.setattr(sys, "argv", command)
            assert cli.run() == 0
    return stage


@pytest.mark.parametrize("example", cli.examples(), ids=COMMANDS)
def test_the_examples_work_and_what_they_write_validates(stage, example, monkeypatch, capsys):
    monkeypatch.chdir(stage)
    words = [sorted(glob.glob(word)) if "*" in word else [word] for word in shlex.split(example)[1:]]
    assert cli.run([word for group in words for word in group]) == 0, capsys.readouterr().err
    written = list(stage.rglob("*.json"))
    for path in written:
        document = json.loads(path.read_text())
        jsonschema.validate(document, schema(document["schema"].split("/")[1]))
    assert written


def test_pictures_and_page_are_written_beside(stage):
    folder = stage / "before"
    assert {"spectrum.json", "spectrum.svg", "spectrum.png", "report.html"} == {path.name for path in folder.iterdir()}
    assert (folder / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "spectrum.svg").read_text()
    assert "hvpspec demo -k 2 --rtol 0.2 --seed 0 --out before" in (folder / "report.html").read_text()


def test_pictures_of_an_earlier_run_do_not_stay(stage, monkeypatch, capsys):
    monkeypatch.chdir(stage)
    usual = ["demo", "--rtol", "0.2", "-k", "2", "--out", "earlier"]
    assert cli.run(usual) == 0
    assert (stage / "earlier/spectrum.png").exists()
    assert cli.run([*usual, "--only", "trace"]) == 0
    assert not (stage / "earlier/spectrum.png").exists()
    assert (stage / "earlier/report.html").exists()


def test_figures_are_kept_when_the_page_cannot_be_made(stage, monkeypatch, capsys):
    monkeypatch.chdir(stage)
    monkeypatch.setattr("hvpspec.report.write_report.report_html", lambda document: 1 / 0)
    assert cli.run(["demo", "--rtol", "0.2", "-k", "2", "--out", "kept"]) == 1
    assert read_spectrum(stage / "kept/spectrum.json").complete


def test_json_alone_goes_to_stdout(folder, monkeypatch, capsys):
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


def test_quiet_prints_errors_alone(folder, monkeypatch, capsys):
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


def test_compare_says_what_differs(stage, monkeypatch, capsys):
    monkeypatch.chdir(stage)
    assert cli.run(["compare", "before", "after"]) == 0
    shown = capsys.readouterr()
    assert "* significant: 0 of " in shown.out
    assert shown.err == ""
    assert "\x1b" not in shown.out  # plain where it is piped
    assert max(len(line) for line in shown.out.splitlines() if "   " in line) <= 80
    assert cli.run(["demo", "-k", "2", "--rtol", "0.2", "--parameters", "4.*", "--out", "part"]) == 0
    capsys.readouterr()
    assert cli.run(["compare", "before", "part"]) == 0
    shown = capsys.readouterr()
    starred = {line.split("  ")[0] for line in shown.out.splitlines() if line.rstrip().endswith("  *")}
    assert {"λ1 from the top", "λ2 from the top", "trace", "Frobenius norm"} <= starred
    assert "part has 330 parameters, before 3,466" in " ".join(shown.err.split())
    assert cli.run(["compare", "before"]) == 2
    assert "two spectrum.json files or more" in capsys.readouterr().err
    assert cli.run(["compare", "before", "nowhere"]) == 2
    assert cli.run(["compare", "before", "after", "--output", "model.pt"]) == 2
    assert "--out model.pt: cannot write there" in capsys.readouterr().err


def arguments(*more):
    return [*USUAL, *more]


def test_check_tells_findings_measurements_and_costs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.run(["check", *arguments("--expect-loss", "0.9", "--out", str(folder / "checked"))]) in (0, 2)
    loss = json.loads((folder / "checked/check.json").read_text())["measured"]["loss"]
    capsys.readouterr()
    command = [*arguments("--out", str(folder / "checked")), "--expect-loss", f"{loss:.3f}"]
    assert cli.run(["check", *command]) == 0
    printed = capsys.readouterr().out
    for part in ("no problem was found", "symmetry", "finite differences", "the whole run: about"):
        assert part in printed
    document = json.loads((folder / "checked/check.json").read_text())
    assert document["ok"]
    assert document["findings"] == []
    assert document["measured"]["hvps"] == 4
    assert document["provenance"]["command"][0] == "hvpspec"


def test_what_is_refused_stops_check_and_spectrum_with_exit_2(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for command, file in (("check", "check.json"), ("spectrum", "spectrum.json")):
        out = folder / f"refused-{command}"
        assert cli.run([command, *arguments("--expect-loss", "77.25", "--out", str(out))]) == 2
        told = capsys.readouterr()
        assert "not 77.25" in (told.out if command == "check" else told.err)
        assert (out / file).exists() == (command == "check")


def test_shuffled_data_are_refused_or_frozen(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    options = arguments("--data", "train.py:Changing", "--out", str(folder / "frozen"))
    assert cli.run(["spectrum", *options]) == 2
    assert "--freeze-data" in capsys.readouterr().err
    assert cli.run(["spectrum", *options, "--freeze-data", "-k", "2", "--rtol", "0.5"]) == 0
    written = json.loads((folder / "frozen/spectrum.json").read_text())
    assert written["preflight"]["findings"] == []


def test_notes_are_printed_and_written(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    options = arguments("--model", "train.py:half", "--out", str(folder / "half"))
    assert cli.run(["spectrum", *options, "-k", "2", "--rtol", "0.5"]) == 0
    captured = capsys.readouterr()
    assert "note     model.pt holds float32 parameters and the model is built in bfloat16 → the mod" in captured.out
    assert captured.err == ""
    written = json.loads((folder / "half/spectrum.json").read_text())
    assert [finding["kind"] for finding in written["preflight"]["findings"]] == ["precision"]
    assert "built in bfloat16" in (folder / "half/report.html").read_text()
    assert cli.run(["spectrum", *options, "-k", "2", "--rtol", "0.5", "--no-preflight"]) == 0
    written = json.loads((folder / "half/spectrum.json").read_text())
    assert written["preflight"]["measured"]["hvps"] == 0


def test_what_is_said_of_the_file_is_found(folder, monkeypatch, capsys, tmp_path):
    """Half precision in the file, and code that was run, stand in check.json like what is found of the model."""
    monkeypatch.chdir(folder)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    torch.save({"model": model.half().state_dict(), "notes": shlex.shlex("")}, tmp_path / "m.pt")
    options = [str(tmp_path / "m.pt"), *USUAL[1:], "--out", str(tmp_path)]
    assert cli.run(["check", *options, "--trust-pickle"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("less precision than the model has (float16 → float32)") == 1
    assert captured.err.startswith("hvpspec: warning: ")
    assert "any code in it was run" in captured.err
    assert "precision" not in captured.err
    found = json.loads((tmp_path / "check.json").read_text())["findings"]
    assert [(finding["kind"], finding["severity"]) for finding in found] == [("pickle", "note"), ("precision", "note")]


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
        "        if name.partition('.')[0] in ('typer', 'rich', 'safetensors', 'matplotlib', 'jinja2'):\n"
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
