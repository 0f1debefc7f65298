"""Options of `hvpspec spectrum` beyond those that say how exact the results are."""

import json
import re

import numpy as np
import pytest
from cli_files import USUAL, call

from hvpspec.report.documents import read_spectrum

QUICK = ("--dtype", "float64", "--no-preflight", "--only", "eigenvalues")


@pytest.mark.parametrize(
    ("more", "edge", "formula", "factor"),
    [(["--lr", "0.5"], 4, "2/lr at lr = 0.5", 2), (["--lr", "0.5", "--momentum", "0.9"], 7.6, "(2 + 2β)/lr", 3.8)],
)
def test_a_learning_rate_is_compared_with_the_edge_of_stability(folder, dense, more, edge, formula, factor):
    largest = np.linalg.eigvalsh(dense[0])[-1]
    done = call(folder, "spectrum", *USUAL, *QUICK, "-k", "2", *more, "--out", "edge")
    assert done.returncode == 0, done.stderr
    rows = {
        line[: line.index("  ")]: line.split("  ", 1)[1].split() for line in done.stdout.splitlines() if "  " in line
    }
    assert float(rows["edge of stability"][0]) == edge
    assert formula in done.stdout
    assert float(rows["λ_max / edge"][0]) == pytest.approx(largest / edge, rel=1e-3)
    assert float(rows["largest stable step"][0]) == pytest.approx(factor / largest, rel=1e-3)
    options = json.loads((folder / "edge/spectrum.json").read_text())["provenance"]["options"]
    assert [options["lr"], options.get("momentum")] == [0.5, 0.9 if "--momentum" in more else None]
    assert f"{edge:g}" in (folder / "edge/report.html").read_text()


def test_the_largest_stable_step_is_shown_without_a_learning_rate(folder):
    shown = call(folder, "spectrum", *USUAL, *QUICK, "-k", "1", "--out", "step").stdout
    assert "largest stable step" in shown
    assert "edge of stability" not in shown


def test_each_quantity_shown_is_explained_on_request(folder):
    command = ("spectrum", *USUAL, *QUICK[:3], "-k", "1", "--rtol", "0.3", "--only", "trace", "--out", "explained")
    plain, explained = call(folder, *command).stdout, call(folder, *command, "--explain").stdout
    assert "Sum of all eigenvalues" in explained
    assert "Frobenius norm:" not in explained  # it is not shown
    assert "Sum of all eigenvalues" not in plain


@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
def test_which_eigenvalues(folder, dense, which):
    values = np.linalg.eigvalsh(dense[0])
    wanted = {
        "LM": sorted(values, key=abs)[-4:], "LA": values[-4:], "SA": values[:4], "BE": [*values[:2], *values[-2:]],
    }[which]  # fmt: skip
    done = call(folder, "spectrum", *USUAL, *QUICK, "-k", "4", "--which", which, "--out", f"which-{which}")
    assert done.returncode == 0, done.stderr
    spectrum = read_spectrum(folder / f"which-{which}/spectrum.json")
    assert spectrum.which == which
    found = spectrum.eigenpairs
    order = np.argsort(found.values)
    assert np.all(np.abs(found.values[order] - np.sort(wanted)) <= found.error[order] + 1e-12)
    kind = {"LM": "", "LA": "largest ", "SA": "smallest ", "BE": "outermost "}[which]
    assert f"plan: 4 {kind}eigenvalues" in done.stdout


def test_a_module_is_named_without_a_pattern(folder, dense):
    done = call(folder, "spectrum", *USUAL, *QUICK, "-k", "1", "--parameters", "2", "--out", "module")
    assert done.returncode == 0, done.stderr
    found = read_spectrum(folder / "module/spectrum.json")
    block = dense[0][56:, 56:]
    assert found.parameters == len(block) == 27
    assert abs(found.eigenpairs.values[0] - np.linalg.norm(block, 2)) <= found.eigenpairs.error[0] + 1e-12


def test_eval_mode_is_said_in_one_line(folder):
    model = ("--model", "train.py:with_dropout")
    done = call(folder, "spectrum", *USUAL, *model, *QUICK, "-k", "1", "--out", "eval")
    assert re.findall(r"^.*eval mode.*$", done.stdout, re.MULTILINE) == [
        "the model is measured in eval mode: dropout is off"
    ]
    assert "eval mode" not in call(folder, "spectrum", *USUAL, *QUICK, "-k", "1", "--out", "eval").stdout


@pytest.mark.parametrize(
    ("loss", "said"),
    [("train.py:loss", "3 batches, 50 samples)"), ("train.py:weighted", "3 batches, weights sum to 21)")],
)
def test_what_the_mean_is_taken_over(folder, loss, said):
    done = call(folder, "spectrum", *USUAL[:-1], loss, *QUICK, "-k", "1", "--out", "weights", "--force")
    assert done.returncode == 0, done.stderr
    assert said in done.stdout.splitlines()[1]
