"""--matrix: which matrix of the loss, in results, reports, comparisons and refusals."""

import json

import numpy as np
import pytest
import torch
from cli_files import TRAIN, USUAL, call
from torch import nn

import hvpspec
from hvpspec.report.documents import read_spectrum

QUICK = ("--dtype", "float64", "-k", "2", "--only", "eigenvalues", "--only", "trace", "--rtol", "0.02")

SPLIT = """
class split:
    @staticmethod
    def outputs(model, batch):
        return model(batch[0])

    @staticmethod
    def loss(outputs, batch):
        return nn.functional.cross_entropy(outputs, batch[1])

pair = split.outputs, split.loss
"""


@pytest.fixture(scope="module")
def gauss_newton(folder):
    space = {}
    exec(TRAIN, space)
    model = hvpspec.load_checkpoint(folder / "model.pt", space["build"]()).double()
    x, y = (torch.cat(parts) for parts in zip(*space["batches"](), strict=True))
    parameters, z = list(model.parameters()), model(x.double())
    J = torch.stack([
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters, retain_graph=True)])
        for value in z.reshape(-1)
    ])  # fmt: skip
    curvature = torch.func.hessian(lambda z: nn.functional.cross_entropy(z, y))(z.detach())
    return (J.T @ curvature.reshape(len(J), len(J)) @ J).numpy()


@pytest.fixture(scope="module")
def split_folder(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("split")
    (place / "train.py").write_text(TRAIN + SPLIT)
    (place / "model.pt").write_bytes((folder / "model.pt").read_bytes())
    return place


def test_the_gauss_newton_matrix(folder, gauss_newton):
    done = call(folder, "spectrum", *USUAL, *QUICK, "--matrix", "ggn", "--out", "ggn")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("· Gauss-Newton matrix")
    assert "\nGauss-Newton matrix:\n" in done.stdout
    found = read_spectrum(folder / "ggn/spectrum.json")
    assert found.matrix == "ggn"
    assert np.allclose(found.eigenpairs.values, np.linalg.eigvalsh(gauss_newton)[:-3:-1], rtol=1e-9)
    assert abs(found.trace.value - np.trace(gauss_newton)) <= found.trace.error + 1e-9
    assert "Spectrum of the Gauss-Newton matrix" in (folder / "ggn/report.html").read_text()
    assert json.loads((folder / "ggn/spectrum.json").read_text())["provenance"]["options"]["matrix"] == "ggn"
    assert call(folder, "verify", "ggn/spectrum.json").returncode == 0


def test_several_are_computed_one_after_the_other_and_compared(folder, dense, gauss_newton):
    done = call(folder, "spectrum", *USUAL, *QUICK, "--matrix", "hessian,ggn", "--out", "both", "--json")
    assert done.returncode == 0, done.stderr
    compared = json.loads(done.stdout)
    rows = {row["figure"]: row for row in compared["differences"]}
    expected = np.trace(gauss_newton) - np.trace(dense[0])
    assert abs(rows["trace"]["difference"] - expected) <= rows["trace"]["error"]
    assert compared["warnings"] == []
    assert read_spectrum(folder / "both/hessian/spectrum.json").matrix is None
    assert read_spectrum(folder / "both/ggn/spectrum.json").matrix == "ggn"
    again = call(folder, "compare", "both/hessian", "both/ggn")
    assert "differ in matrix: ggn, not hessian" in again.stderr


@pytest.mark.parametrize("loss", ["train.py:split", "train.py:pair"])
def test_a_loss_of_two_functions(split_folder, gauss_newton, loss):
    done = call(split_folder, "spectrum", *USUAL[:-1], loss, *QUICK, "--matrix", "ggn", "--out", loss[9:])
    assert done.returncode == 0, done.stderr
    found = read_spectrum(split_folder / loss[9:] / "spectrum.json")
    assert np.allclose(found.eigenpairs.values, np.linalg.eigvalsh(gauss_newton)[:-3:-1], rtol=1e-9)


def test_the_fisher_matrix_of_a_likelihood_is_the_gauss_newton_matrix(folder, gauss_newton):
    done = call(folder, "spectrum", *USUAL, *QUICK, "--matrix", "fisher", "--out", "fisher")
    assert done.returncode == 0, done.stderr
    found = read_spectrum(folder / "fisher/spectrum.json")
    assert found.matrix == "ggn"
    assert np.allclose(found.eigenpairs.values, np.linalg.eigvalsh(gauss_newton)[:-3:-1], rtol=1e-9)


@pytest.mark.parametrize(("options", "said"), [
    (["--matrix", "gauss"], "no matrix is named 'gauss'; choose hessian, ggn, fisher, empirical-fisher or residual"),
    (["--matrix", "ggn,ggn"], "name each matrix once"),
    (["--matrix", "ggn", "--engine", "finite-difference"], "finite-difference is for the Hessian"),
    (["--matrix", "fisher", "--loss", "train.py:loss"], "choose ggn or empirical-fisher for other losses"),
    (["--matrix", "ggn", "--loss", "train.py:loss"], "hvpspec.SplitLoss(outputs, loss)"),
])  # fmt: skip
def test_refusals(folder, options, said):
    done = call(folder, "spectrum", *USUAL, *options, "--out", "refused")
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert not (folder / "refused/spectrum.json").exists()


def test_a_series(training_run, tmp_path):
    def track(matrix):
        return call(
            training_run, "track", "ckpt-0.pt", "ckpt-2.pt", "--model", "train.py:build", "--data", "train.py:batches",
            "--loss", "cross_entropy", "-k", "1", "--matrix", matrix, "--out", str(tmp_path / "series"),
        )  # fmt: skip

    assert track("hessian,ggn").returncode == 2
    assert track("ggn").returncode == 0
    other = track("empirical-fisher")
    assert other.returncode == 2
    assert "matrix" in other.stderr
