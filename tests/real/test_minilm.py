"""A published sentence encoder, from its Hugging Face directory to its figures by the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import measure_checkpoints
import minilm
import numpy as np
import pytest
import torch

import hvpspec

pytestmark = pytest.mark.real
PAIRS = 2


@pytest.fixture(scope="module")
def folder():
    return minilm.fetch()


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setenv("MINILM_PAIRS", str(PAIRS))


def command(folder, out, *options):
    arguments = ["--data", f"{Path(minilm.__file__)}:batches", "--loss", "cosine_similarity"]
    done = subprocess.run(
        [sys.executable, "-m", "hvpspec", "spectrum", str(folder), *arguments, "--out", str(out), *options],
        env=dict(os.environ), capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads((out / "spectrum.json").read_text()), done.stdout


def test_the_weights_are_those_that_transformers_loads(folder):
    ours, theirs = hvpspec.load_checkpoint(folder).state_dict(), measure_checkpoints.minilm_model().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_top_eigenvalue_and_trace_of_all_parameters(folder, tmp_path):
    """With no code but a data function. λ1 by another road: power iteration in plain autograd, in plain attention."""
    document, printed = command(
        folder,
        tmp_path,
        "-k",
        "1",
        "--max-hvps",
        "8",
        "--only",
        "eigenvalues",
        "--only",
        "trace",
        "--engine",
        "autograd",
    )
    assert document["parameters"] == 22_713_216
    assert "22,713,216 parameters" in printed
    assert document["provenance"]["data"]["weight"] == PAIRS
    assert document["trace"]["error"] > 0
    model = measure_checkpoints.minilm_model()
    parameters = [p for name, p in model.named_parameters() if not name.startswith("pooler")]
    loss = sum(share * value for share, value in measure_checkpoints.minilm_losses(model))
    assert document["loss"] == pytest.approx(loss.item(), rel=1e-4)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    v = [g.detach() for g in gradients]  # it leans to the steep directions
    for _ in range(5):
        norm = torch.sqrt(sum(x.square().sum() for x in v))
        v = [x / norm for x in v]
        product = torch.autograd.grad(gradients, parameters, v, retain_graph=True)
        rayleigh = float(sum((x * y).sum() for x, y in zip(v, product, strict=True)))
        v = product
    first = document["eigenvalues"][0]
    assert rayleigh <= document["eigenvalues_largest"]["upper"]  # a Rayleigh quotient lies below λ1
    assert abs(first["value"] - rayleigh) <= first["error"] + 0.05 * rayleigh


def test_one_layer_norm_against_its_explicit_hessian(folder, tmp_path):
    name = "encoder.layer.5.output.LayerNorm."
    document, _ = command(
        folder, tmp_path, "--parameters", f"{name}*", "--dtype", "float64", "-k", "3", "--rtol", "0.1"
    )
    values = np.linalg.eigvalsh(measure_checkpoints.minilm_block(name))
    assert document["parameters"] == len(values) == 768
    largest = values[np.argsort(-np.abs(values))][:3]
    for found, value in zip(document["eigenvalues"], largest, strict=True):
        assert abs(found["value"] - value) <= found["error"] <= 1e-3 * abs(value)
    for figure, value in (("trace", values.sum()), ("frobenius_norm", np.linalg.norm(values))):
        assert abs(document[figure]["value"] - value) <= document[figure]["error"]
