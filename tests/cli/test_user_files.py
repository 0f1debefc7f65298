"""Files as people have them: they parse the command line, their data are read by spawned workers, or never end."""

import json
import sys

import pytest
import torch
from cli_files import call
from torch import nn

import hvpspec
from hvpspec.errors import CheckpointError
from hvpspec.objective.subsets import sampled_batches

TRAIN = """
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

class Rows(Dataset):
    def __len__(self): return 12
    def __getitem__(self, i): return torch.randn(6, generator=torch.Generator().manual_seed(i)), i % 3

class Stream(IterableDataset):
    def __init__(self, last): self.last = last
    def __iter__(self):
        i = 0
        while i != self.last:
            yield Rows()[i % 12]
            i += 1

def build(width=8): return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))
def batches(): return DataLoader(Rows(), 4)
def spawned(): return DataLoader(Rows(), 4, num_workers=1, multiprocessing_context="spawn")
def endless(): return DataLoader(Stream(-1), 4)
def without_length(): return DataLoader(Stream(12), 4)
"""
PARSES = """
import argparse
from train import *
parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int{more})
args = parser.parse_args()
def made(): return build(args.width)
"""
LATE = """
import argparse
from train import *
def made():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, required=True)
    return build(parser.parse_args().width)
"""
SHORT = ("--loss", "cross_entropy", "--only", "eigenvalues", "-k", "1", "--no-preflight", "--out", ".")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    for name in ("train", "parses", "strict", "late", "leaves"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).state_dict(), tmp_path / "m.pt")
    files = {
        "train": TRAIN, "parses": PARSES.format(more=", default=8"), "strict": PARSES.format(more=", required=True"),
        "late": LATE, "leaves": "import sys; sys.exit(3)",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    for place in ("html", "write_report"):  # pictures take as long as all the rest
        monkeypatch.setattr(f"hvpspec.report.{place}.panels", lambda *_, **__: [])
    yield tmp_path
    for name in files:
        sys.modules.pop(name, None)


def largest(folder):
    return json.loads((folder / "spectrum.json").read_text())["eigenvalues"][0]["value"]


def test_a_file_that_parses_the_command_line(place):
    usual = ("--data", "train.py:batches", *SHORT)
    done = call(place, "spectrum", "m.pt", "--model", "parses.py:made", *usual)
    assert done.returncode == 0, done.stderr
    provenance = json.loads((place / "spectrum.json").read_text())["provenance"]
    assert provenance["command"][1:4] == ["spectrum", "m.pt", "--model"]
    for name, what in (("strict", "importing strict.py parses"), ("late", "late.py:made: it parses")):
        done = call(place, "spectrum", "m.pt", "--model", f"{name}.py:made", *usual)
        assert done.returncode == 2
        assert f"{what} the command line (the following arguments are required: --width), of which it gets none;" in (
            done.stderr
        )
        assert done.stderr.endswith('parse them under if __name__ == "__main__":.\n')
        assert done.stderr.count("\n") == 1
    done = call(place, "spectrum", "m.pt", "--model", "leaves.py:made", *usual)
    assert 'raised SystemExit: 3 (leaves.py:1). Put what runs under if __name__ == "__main__":.' in done.stderr


@pytest.mark.slow  # each pass starts a process that imports torch
def test_workers_that_are_spawned_import_the_file(place):
    done = call(
        place, "spectrum", "m.pt", "--model", "train.py:build", "--data", "train.py:spawned", *SHORT, "--max-hvps", "2"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((place / "spectrum.json").read_text())["provenance"]["data"]["batches"] == 3


def test_data_that_never_end(place):
    usual = ("spectrum", "m.pt", "--model", "train.py:build", *SHORT)
    assert call(place, *usual, "--data", "train.py:batches").returncode == 0
    expected = largest(place)
    done = call(place, *usual, "--data", "train.py:endless", "--max-batches", "3", "--force")
    assert done.returncode == 0, done.stderr
    assert largest(place) == expected
    assert json.loads((place / "spectrum.json").read_text())["provenance"]["options"]["max_batches"] == 3
    done = call(place, "verify", ".")
    assert done.returncode == 0, done.stderr
    drawn = ("--max-batches", "3", "--batches", "2", "--force")
    assert call(place, *usual, "--data", "train.py:endless", *drawn).returncode == 0
    assert call(place, "verify", ".").returncode == 0
    assert (
        "--max-batches must be a whole number ≥ 1" in call(place, *usual, "--data", "a:b", "--max-batches", "0").stderr
    )


def test_data_of_unknown_length_are_said_to_be_read(place, monkeypatch):
    monkeypatch.setattr(sampled_batches, "_SECONDS_UNTIL_SAID", 0.0)
    done = call(place, "check", "m.pt", "--model", "train.py:build", "--data", "train.py:without_length", *SHORT[:2])
    assert done.returncode == 0, done.stderr
    said = "batches were read so far, and the data do not say how many there are; if they do not end, --max-batches N"
    assert (done.stdout + done.stderr).count(said) == 1
    done = call(place, "check", "m.pt", "--model", "train.py:build", "--data", "train.py:batches", *SHORT[:2])
    assert said not in done.stdout + done.stderr


def test_the_first_batches():
    data = [1, 2, 3]
    first = sampled_batches.FirstBatches(data, 2)
    assert (list(first), list(first), len(first), len(sampled_batches.FirstBatches(data, 5))) == ([1, 2], [1, 2], 2, 3)
    with pytest.raises(hvpspec.InputError, match="one-shot"):
        sampled_batches.FirstBatches(iter(data), 2)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "raise ImportError('numpy.dtype size changed')",
            "repair transformers, whose import raised ImportError: numpy",
        ),
        ("import not_installed_anywhere", "repair transformers, whose import raised ModuleNotFoundError: No module"),
    ],
)
def test_a_transformers_package_that_cannot_be_imported(place, monkeypatch, code, message):
    (place / "transformers").mkdir()
    (place / "transformers/__init__.py").write_text(code)
    (place / "run").mkdir()
    (place / "run/config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    torch.save({"a": torch.zeros(2)}, place / "run/pytorch_model.bin")
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(place)
    with pytest.raises(CheckpointError, match=message):
        hvpspec.load_checkpoint(place / "run")
