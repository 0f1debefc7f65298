"""Full-batch gradient descent and Adam on the digits, tracked: the sharpness rises to the edge of stability of each.

    .venv/bin/python scripts/edge_of_stability.py        some minutes; writes results/edge_of_stability.md and pictures

Trains the demo's network with the mean squared error of its outputs, saves checkpoints, and runs `hvpspec track` on
them: λ_max against 2 / lr for gradient descent (Cohen et al. 2021, arXiv:2103.00065); for Adam, that of the Hessian
preconditioned by its moments against 38 / lr (Cohen et al. 2022, arXiv:2207.14484). Both are read from the checkpoints
alone. λ_max of some of them is compared with that of the explicit matrix.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from usage import only_help

import hvpspec
from hvpspec.demo import batches as digits
from hvpspec.demo import build

ROOT = Path(__file__).parent.parent
RATE, STEPS, EVERY = 0.1, 4000, 160
ADAM_RATE, ADAM_BETAS, ADAM_STEPS, ADAM_EVERY = 0.001, (0.9, 0.99), 2000, 80
COMPARED, ADAM_COMPARED = (0, 8, 16, 24), (4, 24)  # numbers of checkpoints
RESULTS = ROOT / "results"


def batches() -> list[tuple[Tensor, Tensor]]:
    """All digits in one batch; targets one-hot."""
    pairs = digits()
    x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return [(x, nn.functional.one_hot(y, 10).to(x.dtype))]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Half the squared distance of outputs and targets, the mean over samples."""
    x, y = batch
    return (model(x) - y).square().sum(1).mean() / 2


def whole() -> tuple[Tensor, Tensor]:
    """The batch in float64."""
    ((x, y),) = batches()
    return x.double(), y.double()


def descend(folder: Path) -> list[Path]:
    torch.manual_seed(0)
    model, batch = build().double(), whole()
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


def adam(folder: Path) -> list[Path]:
    torch.manual_seed(0)
    model, batch = build().double(), whole()
    optimizer = torch.optim.Adam(model.parameters(), lr=ADAM_RATE, betas=ADAM_BETAS)
    paths = []
    for step in range(1, ADAM_STEPS + 1):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
        if step % ADAM_EVERY == 0:
            paths.append(folder / f"ckpt-{step}.pt")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, paths[-1])
    return paths


def explicit(path: Path, scaled: bool = False) -> float:
    """λ_max of the whole Hessian at a checkpoint; scaled: preconditioned, by Adam's rule written out."""
    model = hvpspec.load_checkpoint(path, build()).double()
    names = [name for name, _ in model.named_parameters()]
    batch = whole()

    def fn(*values: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (batch[0],))
        return (outputs - batch[1]).square().sum(1).mean() / 2

    H = hvpspec.hessian(fn, [p.detach() for p in model.parameters()])
    if scaled:
        state = torch.load(path)["optimizer"]["state"].values()
        corrected = [entry["exp_avg_sq"] / (1 - ADAM_BETAS[1] ** int(entry["step"])) for entry in state]
        scale = torch.cat([(v.sqrt() + 1e-8).rsqrt().reshape(-1) for v in corrected])
        H = scale[:, None] * H * scale
    return float(np.linalg.eigvalsh(H.numpy())[-1])


def tracked(paths: list[Path], *more: str, picture: str) -> tuple[list[dict[str, Any]], str, list[str]]:
    """The rows of a series, the command, and what it printed at the end."""
    folder, here = paths[0].parent, "scripts/edge_of_stability.py"
    options = ["--model", "hvpspec.demo:build", "--data", f"{here}:batches", "--loss", f"{here}:loss"]
    options += ["--dtype", "float64", *more]
    command = [sys.executable, "-m", "hvpspec", "track", *map(str, paths), *options, "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    shutil.copy(folder / "track.png", RESULTS / picture)
    rows = list(csv.DictReader((folder / "track.csv").open()))
    last = done.stdout.strip().splitlines()
    figures = last[next(i for i, line in enumerate(last) if " HVPs in " in line) : -2]
    return rows, f"    hvpspec track ckpt-*.pt {' '.join(options)}", figures


def checked(path: Path, entry: dict[str, Any], number: int, *, scaled: bool = False) -> str:
    """λ_max of the explicit matrix, for some of the checkpoints; it has to lie within the error."""
    if number not in (ADAM_COMPARED if scaled else COMPARED):
        return ""
    value, error, truth = float(entry["lambda_max"]), float(entry["lambda_max_error"]), explicit(path, scaled)
    assert abs(value - truth) <= error + 1e-9 * truth, (number, value, truth, error)
    return f"{truth:.6f}"


def of_descent(folder: Path) -> list[str]:
    paths = descend(folder)
    rows, command, printed = tracked(
        paths, "--lr", str(RATE), "--measure-savings", picture="edge_of_stability.png"
    )  # fmt: skip
    lines = [
        "# The edge of stability, tracked",
        "",
        f"Made by `python scripts/edge_of_stability.py`: {STEPS:,} steps of full-batch gradient descent on the "
        f"digits (the demo's network, squared error, learning rate {RATE}), a checkpoint every {EVERY}, and",
        "",
        command,
        "",
        "![sharpness rising to 2/lr](edge_of_stability.png)",
        "",
        "| step | loss | λ_max ± error | λ_max · lr/2 | explicit | trace | overlap | HVPs | from a random start |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, entry in enumerate(rows):
        value, error = float(entry["lambda_max"]), float(entry["lambda_max_error"])
        overlap = f"{float(entry['overlap']):.3f}" if entry["overlap"] else ""
        lines.append(
            f"| {entry['step']} | {float(entry['loss']):.5f} | {value:.6f} ± {error:.0e} | {value * RATE / 2:.3f} "
            f"| {checked(paths[number], entry, number)} | {float(entry['trace']):.2f} ± "
            f"{float(entry['trace_error']):.2f} | {overlap} | {entry['hvps']} | {entry['cold_hvps']} |"
        )
    return [*lines, "", "```", *printed, "```"]


def of_adam(folder: Path) -> list[str]:
    paths = adam(folder)
    only = ("--precondition", "adam", "--only", "eigenvalues")
    rows, command, printed = tracked(paths, *only, picture="adam_edge_of_stability.png")
    lines = [
        "",
        "## Adam",
        "",
        f"{ADAM_STEPS:,} steps of full-batch Adam (learning rate {ADAM_RATE}, β = {ADAM_BETAS}) on the same, a "
        f"checkpoint every {ADAM_EVERY} with the optimizer's state in it, and",
        "",
        command,
        "",
        "λ_max is that of the Hessian preconditioned by the moments in the checkpoint; the edge is "
        "(2 + 2β₁)(1 − β₁ᵗ)/((1 − β₁) lr) (arXiv:2207.14484).",
        "",
        "![sharpness rising to 38/lr](adam_edge_of_stability.png)",
        "",
        "| step | loss | λ_max ± error | edge | λ_max / edge | explicit | HVPs |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, entry in enumerate(rows):
        value, error, edge = (float(entry[name]) for name in ("lambda_max", "lambda_max_error", "edge"))
        exact = checked(paths[number], entry, number, scaled=True)
        lines.append(
            f"| {entry['step']} | {float(entry['loss']):.5f} | {value:.2f} ± {error:.0e} | {edge:.0f} "
            f"| {value / edge:.3f} | {exact} | {entry['hvps']} |"
        )
    return [*lines, "", "```", *printed, "```"]


def main() -> None:
    lines = []
    for section in (of_descent, of_adam):
        with tempfile.TemporaryDirectory() as name:
            lines += section(Path(name))
    (RESULTS / "edge_of_stability.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    only_help(__doc__)
    main()
