"""A published checkpoint, from the file to its figures by the command line: CREPE's tiny weights."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import crepe
import numpy as np
import pytest
import torch

import hvpspec

pytestmark = pytest.mark.real
TONES = 4


@pytest.fixture(scope="module")
def checkpoint():
    return crepe.fetch()


@pytest.fixture(scope="module")
def model(checkpoint):
    return hvpspec.load_checkpoint(checkpoint, crepe.build()).eval()


def command(checkpoint, out, *options, tones=TONES):
    script = Path(crepe.__file__)
    arguments = ["--model", f"{script}:build", "--data", f"{script}:batches", "--loss", f"{script}:loss"]
    done = subprocess.run(
        [sys.executable, "-m", "hvpspec", "spectrum", str(checkpoint), *arguments, "--out", str(out), *options],
        env={**os.environ, "CREPE_TONES": str(tones)}, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((out / "spectrum.json").read_text()), done.stdout


def test_the_network_is_the_published_one(model):
    """It has the parameters that were published, and finds the pitch of every tone."""
    assert sum(p.numel() for p in model.parameters()) == 486_552
    frames, bins = crepe.tones(256)
    with torch.no_grad():
        assert torch.equal(model(frames).argmax(1), bins)


def test_the_command_line_on_all_parameters(checkpoint, model, tmp_path):
    document, printed = command(checkpoint, tmp_path, "-k", "2", "--max-hvps", "16")
    assert document["parameters"] == 486_552
    assert 0.005 < document["loss"] < 0.015
    assert document["provenance"]["checkpoint"]["sha256"] == crepe.SHA256
    assert document["provenance"]["data"]["weight"] == TONES * crepe.BINS
    assert "486,552 parameters" in printed
    # λ1 by another road: power iteration, on the whole data as one batch
    frames, targets = (torch.cat(parts) for parts in zip(*data(), strict=True))
    parameters = list(model.parameters())
    loss = torch.nn.functional.binary_cross_entropy(model(frames), targets)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    v = [torch.randn_like(p) for p in parameters]
    for _ in range(6):
        norm = torch.sqrt(sum(x.square().sum() for x in v))
        v = [x / norm for x in v]
        product = torch.autograd.grad(gradients, parameters, v, retain_graph=True)
        rayleigh = sum((x * y).sum() for x, y in zip(v, product, strict=True))
        v = product
    first = document["eigenvalues"][0]
    assert abs(first["value"] - float(rayleigh)) <= first["error"] + 1e-3 * first["value"]
    assert document["trace"]["error"] > 0
    assert document["hvps"] == 16


def test_error_bars_hold_against_the_explicit_hessian(checkpoint, model, tmp_path):
    """On the last block's batch norm: 128 parameters, few enough to write their Hessian out."""
    document, _ = command(
        checkpoint, tmp_path, "--parameters", "conv6_BN.*", "--dtype", "float64", "-k", "5", "--rtol", "0.2", tones=2
    )
    assert document["parameters"] == 128
    values = np.linalg.eigvalsh(explicit(model, ["conv6_BN.weight", "conv6_BN.bias"], tones=2))
    largest = values[np.argsort(-np.abs(values))][:5]
    for found, value in zip(document["eigenvalues"], largest, strict=True):
        assert abs(found["value"] - value) <= found["error"] <= 1e-3 * abs(value)
    for name, value in (("trace", values.sum()), ("frobenius_norm", np.linalg.norm(values))):
        assert abs(document[name]["value"] - value) <= document[name]["error"] <= 0.2 * abs(value)


def data(tones=TONES):
    frames, bins = crepe.tones(tones)
    cents = crepe.CENTS_PER_BIN * torch.arange(crepe.BINS)
    targets = torch.exp(-((cents - crepe.CENTS_PER_BIN * bins[:, None]) ** 2) / (2 * crepe.BLUR_CENTS**2))
    return [(frames, targets)]


def explicit(model, names, tones):
    """All blocks in float64 by forward-over-reverse, which hvpspec does not use."""
    model = copy.deepcopy(model).double().requires_grad_(False)
    frames, targets = (x.double() for x in data(tones)[0])
    start = torch.cat([model.get_parameter(name).detach().reshape(-1) for name in names])

    def loss(vector):
        pieces = vector.split([model.get_parameter(name).numel() for name in names])
        swapped = dict(zip(names, pieces, strict=True))
        outputs = torch.func.functional_call(model, swapped, (frames,))
        return torch.nn.functional.binary_cross_entropy(outputs, targets)

    gradient = torch.func.grad(loss)
    columns = [torch.func.jvp(gradient, (start,), (e,))[1] for e in torch.eye(len(start), dtype=torch.float64)]
    return torch.stack(columns).numpy()
