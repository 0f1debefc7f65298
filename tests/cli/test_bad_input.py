"""What cannot be used is refused in one clear sentence, before anything is measured or written."""

import subprocess
import sys

import pytest
from cli_files import USUAL, run

import hvpspec
from hvpspec import cli


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
        (["--dtype", "float16"], "Invalid value for '--dtype': 'float16' is not one of 'float32', 'float64'."),
        (["--rtol", "-1"], "--rtol must be a number ≥ 0; got -1.0."),
        (["--confidence", "95"], "--confidence must lie between 0 and 1"),
        (["-k", "0"], "-k must be a whole number ≥ 1"),
        (["--max-hvps", "0"], "--max-hvps must be a whole number ≥ 1"),
        (["--seed", "-1"], "--seed must be"),
        (["--parameters", "nothing.*"], "no parameter matches 'nothing.*'"),
        (["--out", "model.pt"], "--out model.pt: cannot write there"),
        (["--device", "cuda:77"], "device 'cuda:77' cannot be used here"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--key", "ema"], "has no key 'ema'"),
        (["--only", "trace", "--refine"], "--refine sharpens the conditioning, which needs the density"),
        (["--only", "curvature"], "'curvature' is not one of 'eigenvalues', 'trace', 'frobenius_norm', 'density'."),
        (["--which", "largest"], "'largest' is not one of 'LM', 'LA', 'SA', 'BE'."),
        (["--engine", "fast"], "Invalid value for '--engine': 'fast' is not one of 'auto', "),
        (["--basis-on", "tape"], "'tape' is not one of 'device', 'cpu', 'disk'."),
        (["--basis-memory", "much"], "--basis-memory must be a number of bytes"),
        (["--memory-limit", "0"], "--memory-limit must be a number of bytes"),
        (["--lr", "0"], "--lr must be a finite number > 0; got 0."),
        (["--lr", "0.1", "--momentum", "1"], "--momentum must be a number ≥ 0 and < 1; got 1."),
        (["--momentum", "0.9"], "--momentum needs a learning rate as well: add --lr."),
        (["--expect-loss", "low"], "--expect-loss low: give the loss as a number"),
        (["--blocks", "nothing*"], "no parameter matches the block 'nothing*'. Similar names:"),
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
    [
        (["--only", "trace", "--refine"], "which needs the density: add it to the quantities asked for (--only)."),
        (["--blocks", "nothing*"], "matches the block"),
    ],
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
    track = ["track", "model.pt", "--out", ".", *USUAL[1:], *options]
    assert cli.run(track) == 2
    refused = next(option for option in options if option in ("--refine", "--blocks"))
    assert f"track has no {refused}; run hvpspec spectrum on the checkpoint of interest." in capsys.readouterr().err


def test_bad_input_in_a_process_of_its_own(folder):
    done = run(folder, "spectrum", "nowhere.pt", *USUAL[1:])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "hvpspec: nowhere.pt: no such file.\n"


def test_an_unexpected_error_is_one_line_and_exit_1(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("hvpspec.cli.measure.spectrum", lambda *args, **options: 1 / 0)
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
