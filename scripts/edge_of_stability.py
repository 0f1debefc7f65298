"""Full-batch gradient descent on the digits, tracked: the sharpness rises to 2 / lr and hovers about it.

    .venv/bin/python scripts/edge_of_stability.py        some minutes; writes results/edge_of_stability.md and .png

Trains the demo's network with the mean squared error of its outputs, saves checkpoints, and runs `hvpspec track` on
them. λ_max of some of them is compared with that of the explicit Hessian. (Cohen et al. 2021, arXiv:2103.00065.)
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from usage import only_help

import hvpspec
from hvpspec.demo import batches as digits
from hvpspec.demo import build

ROOT = Path(__file__).parent.parent
RATE, STEPS, EVERY = 0.1, 4000, 160
COMPARED = (0, 8, 16, 24)  # numbers of checkpoints


def batches() -> list[tuple[Tensor, Tensor]]:
    """All digits in one batch; targets one-hot."""
    pairs = digits()
    x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return [(x, nn.functional.one_hot(y, 10).to(x.dtype))]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Half the squared distance of outputs and targets, the mean over samples."""
    x, y = batch
    return (model(x) - y).square().sum(1).mean() / 2


def train(folder: Path) -> list[Path]:
    torch.manual_seed(0)
    model = build().double()
    (batch,) = batches()
    batch = tuple(tensor.double() for tensor in batch)
    paths = []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            paths.append(folder / f"ckpt-{step}.pt")
            torch.save(model.state_dict(), paths[-1])
        gradients = torch.autograd.grad(loss(model, batch), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= RATE * gradient
    return paths


def explicit(path: Path) -> float:
    model = hvpspec.load_checkpoint(path, build()).double()
    names = [name for name, _ in model.named_parameters()]
    x, y = (tensor.double() for tensor in batches()[0])

    def fn(*values: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))
        return (outputs - y).square().sum(1).mean() / 2

    return float(np.linalg.eigvalsh(hvpspec.hessian(fn, [p.detach() for p in model.parameters()]).numpy())[-1])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = train(folder)
        here = "scripts/edge_of_stability.py"
        options = ["--model", "hvpspec.demo:build", "--data", f"{here}:batches", "--loss", f"{here}:loss"]
        options += ["--dtype", "float64", "--lr", str(RATE), "--measure-savings"]
        command = [sys.executable, "-m", "hvpspec", "track", *map(str, paths), *options, "--out", name]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        rows = list(csv.DictReader((folder / "track.csv").open()))
        shutil.copy(folder / "track.png", ROOT / "results" / "edge_of_stability.png")
        lines = [
            "# The edge of stability, tracked",
            "",
            f"Made by `python scripts/edge_of_stability.py`: {STEPS:,} steps of full-batch gradient descent on the "
            f"digits (the demo's network, squared error, learning rate {RATE}), a checkpoint every {EVERY}, and",
            "",
            f"    hvpspec track ckpt-*.pt {' '.join(options)}",
            "",
            "![sharpness rising to 2/lr](edge_of_stability.png)",
            "",
            "| step | loss | λ_max ± error | λ_max · lr/2 | explicit | trace | overlap | HVPs | from a random start |",
            "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for number, entry in enumerate(rows):
            value, error = float(entry["lambda_max"]), float(entry["lambda_max_error"])
            exact = ""
            if number in COMPARED:
                truth = explicit(paths[number])
                assert abs(value - truth) <= error + 1e-9 * truth, (number, value, truth, error)
                exact = f"{truth:.6f}"
            overlap = f"{float(entry['overlap']):.3f}" if entry["overlap"] else ""
            lines.append(
                f"| {entry['step']} | {float(entry['loss']):.5f} | {value:.6f} ± {error:.0e} | {value * RATE / 2:.3f} "
                f"| {exact} | {float(entry['trace']):.2f} ± {float(entry['trace_error']):.2f} | {overlap} "
                f"| {entry['hvps']} | {entry['cold_hvps']} |"
            )
        lines += ["", "```", *done.stdout.strip().splitlines()[-5:-1], "```"]
        (ROOT / "results" / "edge_of_stability.md").write_text("\n".join(lines) + "\n")
        print("\n".join(lines))


if __name__ == "__main__":
    only_help(__doc__)
    main()
