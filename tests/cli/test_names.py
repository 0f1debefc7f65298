"""Names are data: through every public output with names that would do harm where they are not shown as they are."""

import csv
import json
import xml.etree.ElementTree as ElementTree

import html5lib
import pytest
import torch
from cli_files import call

from hvpspec.escaping import on_lines

NASTY = [
    "[bold]red[-bold]", "\x1b[2J\x1b]0;title\x07", "\u202eevil\u2066", "two\nlines\r", "<script>alert(1)</script>",
    "&amp;", r"$\frac{1}{2}$ and $", "=1+1", "\ufeff\u200b", "\x9bm :smile: \x7f",
]  # fmt: skip
TRAIN = f"""
import torch
from torch import nn

NASTY = {NASTY!r}

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        for number, name in enumerate(NASTY):
            self.register_parameter(name, nn.Parameter(torch.randn(2)))

    def forward(self, x):
        return torch.tanh(x @ torch.stack(list(self.parameters()))[:4])

def build():
    return Model()

def batches():
    torch.manual_seed(1)
    return [(torch.randn(8, 4), torch.randn(8, 2))]

def broken(model, batch):
    raise KeyError(''.join(NASTY) * 100)

globals()[NASTY[0] + NASTY[1] + NASTY[4]] = lambda outputs, targets: ((outputs - targets) ** 2).mean()
"""
LOSS = "nasty.py:" + NASTY[0] + NASTY[1] + NASTY[4]
SHORT = ("--model", "nasty.py:build", "--data", "nasty.py:batches", "--dtype", "float64", "-k", "2", "--rtol", "0.5")
FILES = ["=1+1.pt", "a[b]\x1b[31m\n$x$<i>.pt"]


@pytest.fixture(scope="module", autouse=True)
def _unrendered():
    """Here pictures are rendered: they show the names."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("nasty")
    (place / "nasty.py").write_text(TRAIN)
    space = {}
    exec(TRAIN, space)
    for name in FILES:
        torch.save(space["build"]().state_dict(), place / name)
    return place


def harmless(text):
    return text == on_lines(text)


@pytest.fixture(scope="module")
def runs(place):
    """Two runs, in folders with such names, and what they printed."""
    return [
        (place / out, call(place, "spectrum", file, *SHORT, "--loss", LOSS, "--blocks", "*", "--out", out))
        for file, out in zip(FILES, ("before\x1b[1m", "$after$\u202e"), strict=True)
    ]


def test_terminal_and_messages(place, runs):
    for _, done in runs:
        assert (done.returncode, done.stderr) == (0, "")
        assert harmless(done.stdout)
        for name in ("[bold]red[-bold]", r"\x1b[2J\x1b]0;title\x07", r"two\nlines\r", r"\x9bm :smile: \x7f"):
            assert name in done.stdout
    for more in (["--loss", "nasty.py:broken"], ["--loss", NASTY[1] * 500], ["--key", "".join(NASTY)]):
        done = call(place, "spectrum", FILES[1], *SHORT, "--loss", "mse", *more, "--out", "x")
        assert done.returncode == 2
        assert harmless(done.stderr)
        assert done.stderr.count("\n") == 1
        assert len(done.stderr) < 4500


def test_json_keeps_the_names(place, runs):
    for (folder, _), file in zip(runs, FILES, strict=True):
        text = (folder / "spectrum.json").read_text()
        assert harmless(text)
        document = json.loads(text)
        assert {block["name"] for block in document["blocks"]["blocks"]} == set(NASTY)
        assert document["provenance"]["checkpoint"]["path"] == file
        assert document["provenance"]["command"][2] == file


def test_pages_and_pictures(runs):
    for folder, _ in runs:
        page = (folder / "report.html").read_text()
        assert harmless(page)
        assert "<script" not in page
        assert r"\x1b[2J" in page
        found = html5lib.parse(page, namespaceHTMLElements=False)
        said = "".join(found.itertext())
        assert "<script>alert(1)</script>" in said
        assert "&amp;" in said
        picture = (folder / "spectrum.svg").read_text()
        ElementTree.fromstring(picture)
        assert harmless(picture.replace("\t", ""))


def test_comparisons(place, runs):
    folders = [str(folder) for folder, _ in runs]
    done = call(place, "compare", *folders, "--out", "compared", "--explain")
    assert done.returncode == 0, done.stderr
    assert harmless(done.stdout + done.stderr)
    assert harmless((place / "compared/compare.json").read_text())
    ElementTree.parse(place / "compared/compare.svg")
    done = call(place, "compare", *folders, "--json")
    assert harmless(done.stdout)
    assert json.loads(done.stdout)["runs"][0]["label"] == "before\x1b[1m"


def test_series(place):
    done = call(place, "track", *FILES, *SHORT, "--loss", "mse", "--out", "series", "--no-preflight")
    assert done.returncode == 0, done.stderr
    assert harmless(done.stdout + done.stderr)
    assert [row["checkpoint"] for row in json.loads((place / "series/track.json").read_text())["checkpoints"]] == FILES
    with (place / "series/track.csv").open(newline="") as file:
        rows = [row["checkpoint"] for row in csv.DictReader(file)]
    assert rows == ["'=1+1.pt", r"a[b]\x1b[31m\n$x$<i>.pt"]
    done = call(place, "track", *FILES, *SHORT, "--loss", "mse", "--out", "series", "--no-preflight")
    assert (done.returncode, harmless(done.stdout)) == (0, True)  # continued from the same names
