"""What cannot be used is refused in one clear sentence, before anything is measured or written.

What is refused and in which words is in bad_input_table.py and damaged_entries.py.
"""

import json
import pickle
import shlex
import subprocess
import sys
import zipfile

import pytest
import torch
from cli import bad_input_table as table
from cli.damaged_entries import ENTRIES
from cli_files import USUAL, call, run
from report import examples
from results.damage import put
from safetensors.torch import save_file

import hvpspec
from hvpspec import cli

GROUPS = ("OPTIONS", "SPECS", "MODELS", "DATA", "LOSSES", "CHECKPOINTS", "PATHS", "COMMANDS")
SOURCE = ("--model", "bad.py:build", "--data", "bad.py:batches", "--loss", "cross_entropy")
ROWS = [(words, message) for group in GROUPS for words, message in getattr(table, group).items()]


def test_the_table_is_long():
    assert len(ROWS) + len(ENTRIES) >= 150


@pytest.fixture(scope="module")
def bad(folder, tmp_path_factory):
    """A folder with everything that the table names."""
    bad = tmp_path_factory.mktemp("bad")
    state = torch.load(folder / "model.pt", weights_only=True)["model"]
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    torch.save(state, bad / "model.pt")
    content = (bad / "model.pt").read_bytes()
    files = {
        "bad.py": table.CODE.encode(), "syntax.py": b"def f(:\n", "lacking.py": b"import not_installed_anywhere",
        "raising.py": b"1 / 0", "exiting.py": b"raise SystemExit(7)", "binary.py": bytes(range(256)), "void.pt": b"",
        "page.pt": b"<!DOCTYPE html><html>404</html>", "noise.pt": bytes(range(1, 200)), "cut.pt": content[:300],
        "plain.pkl": pickle.dumps({"a": 1}), "index.json": b'{"weight_map": {"0.weight": "../../etc/passwd"}}',
    }  # fmt: skip
    for name, text in files.items():
        (bad / name).write_bytes(text)
    broken = {
        "half.pt": {"0.weight": state["0.weight"]},
        "shape.pt": {**state, "0.weight": torch.zeros(8, 7)},
        "numbers.pt": [1, 2, 3],
        "object.pt": {"model": state, "made": subprocess.Popen},
        "integers.pt": {name: tensor.to(torch.int8) for name, tensor in state.items()},
        "nan.pt": {**state, "0.bias": torch.full((8,), torch.nan)},
        "ambiguous.pt": {"first": {"x": torch.zeros(2)}, "second": {"y": torch.zeros(2)}},
    }
    for name, entry in broken.items():
        torch.save(entry, bad / name)
    with zipfile.ZipFile(bad / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    save_file(state, bad / "whole.safetensors")
    (bad / "cut.safetensors").write_bytes((bad / "whole.safetensors").read_bytes()[:-40])
    (bad / "nothing").mkdir()
    (bad / "good.json").write_text(json.dumps(examples.document()))
    return bad


@pytest.mark.parametrize(("words", "message"), ROWS, ids=[words[:40] for words, _ in ROWS])
def test_bad_input_is_one_sentence_and_exit_2(bad, words, message):
    before = files(bad)
    done = call(bad, *arguments(words))
    check(done, message)
    assert files(bad) == before


def arguments(words):
    """The command line of a row."""
    parts = shlex.split(words)
    if words.split(" ")[0] in (*(command.__name__ for command in cli.COMMANDS), "spektrum"):
        words = words.replace("GOOD", "good.json").replace("SOURCE", " ".join(SOURCE))
        return shlex.split(words)
    usual = {"checkpoint": "model.pt", "model": "bad.py:build", "data": "bad.py:batches", "loss": "cross_entropy"}
    more = []
    for part in parts:
        name, found, value = part.partition("=")
        if found and name in usual:
            usual[name] = value
        else:
            more.append(part)
    options = [word for name in ("model", "data", "loss") for word in (f"--{name}", usual[name])]
    return ["spectrum", usual["checkpoint"], *options, *(["--out", "."] if "--out" not in parts else []), *more]


def check(done, message):
    assert done.returncode == 2, (done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("hvpspec: warning: ")]
    assert message in done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("hvpspec: ")
    assert lines[0].endswith((".", "?"))


@pytest.mark.parametrize("place", ENTRIES, ids=lambda place: ".".join(map(str, place)))
def test_a_damaged_file_is_refused_with_the_path_of_the_entry(bad, place):
    value, message = ENTRIES[place]
    document = put(examples.document(), place, value)
    if value == "-":
        at = document
        for key in place[:-1]:
            at = at[key]
        del at[place[-1]]
    (bad / "nothing/bad.json").write_text(json.dumps(document))
    done = call(bad, "compare", "good.json", "nothing/bad.json")
    (bad / "nothing/bad.json").unlink()
    check(done, f"nothing/bad.json: {message}")


def files(folder):
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_is_closed(bad, stream):
    """The sentence goes nowhere; the status still says it."""
    command = (
        f"{shlex.quote(sys.executable)} -m hvpspec compare good.json nowhere {'>' if stream == 'stdout' else '2>'}&-"
    )
    done = subprocess.run(["sh", "-c", command], cwd=bad, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stdout + done.stderr


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
