"""Runs the command line on two trained checkpoints and sets its figures beside figures made another way.

    .venv/bin/python scripts/measure_checkpoints.py demo     about a minute; writes results/demo.md and .json
    .venv/bin/python scripts/measure_checkpoints.py crepe    about ten minutes; writes results/crepe.md and .json

demo: all 3,466 parameters against the explicit Hessian (rows by autograd on the whole data as one batch).
crepe: CREPE "tiny", 486,552 parameters, 256 tones; the two largest eigenvalues against SciPy's
eigsh on products written out in plain autograd.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import crepe
import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh

import hvpspec
from hvpspec import demo

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"


def command_line(name: str, *arguments: str) -> tuple[dict, str]:
    """Runs hvpspec and keeps its spectrum.json as results/NAME.json."""
    done = subprocess.run(
        [sys.executable, "-m", "hvpspec", *arguments, "--out", ".cache/run"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    written = ROOT / ".cache/run/spectrum.json"
    (RESULTS / f"{name}.json").write_text(written.read_text())
    return json.loads(written.read_text()), done.stdout


def report(name: str, title: str, arguments: list[str], printed: str, rows: list[tuple]) -> None:
    """A row: figure, value, stated error, the value made another way."""
    lines = [
        f"# {title}",
        "",
        f"Made by `python scripts/measure_checkpoints.py {name}`, which runs",
        "",
        f"    hvpspec {' '.join(arguments)}",
        "",
        "```",
        *(line.rstrip() for line in printed.strip().splitlines() if not line.startswith("written")),
        "```",
        "",
        "| figure | hvpspec | stated error | made another way | difference | within |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for figure, value, error, other in rows:
        difference = abs(value - other)
        within = "yes" if difference <= error else "**no**"
        lines.append(f"| {figure} | {value:.9g} | {error:.1e} | {other:.9g} | {difference:.1e} | {within} |")
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    print((RESULTS / f"{name}.md").read_text())


def measure_demo() -> None:
    arguments = ["demo"]
    document, printed = command_line("demo", *arguments)
    values = np.linalg.eigvalsh(explicit_demo_hessian())
    largest = values[np.argsort(-np.abs(values))]
    rows = [
        (f"λ{i}", found["value"], found["error"], largest[i - 1])
        for i, found in enumerate(document["eigenvalues"], start=1)
    ]
    others = {"trace": values.sum(), "frobenius_norm": np.linalg.norm(values)}
    rows += [(name, document[name]["value"], document[name]["error"], other) for name, other in others.items()]
    report("demo", "The digits classifier, beside its explicit Hessian", arguments, printed, rows)


def explicit_demo_hessian() -> np.ndarray:
    model = hvpspec.load_checkpoint(demo.CHECKPOINT, demo.build()).double()
    ((images, labels),) = demo.batches(10_000)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(model(images.double()), labels), parameters, create_graph=True)
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(entry, parameters, retain_graph=True)])
        for gradient in gradients
        for entry in gradient.reshape(-1)
    ]
    H = torch.stack(rows).numpy()
    return (H + H.T) / 2


def measure_crepe() -> None:
    checkpoint = crepe.fetch().relative_to(ROOT)
    source = "scripts/crepe.py"
    arguments = [
        "spectrum", str(checkpoint), "--model", f"{source}:build", "--data", f"{source}:batches",
        "--loss", f"{source}:loss", "-k", "5", "--max-hvps", "60",
    ]  # fmt: skip
    document, printed = command_line("crepe", *arguments)
    others = crepe_largest(2)
    rows = [
        (f"λ{i}", document["eigenvalues"][i - 1]["value"], document["eigenvalues"][i - 1]["error"], other)
        for i, other in enumerate(others, start=1)
    ]
    report("crepe", "CREPE tiny, a published checkpoint, 256 tones", arguments, printed, rows)


def crepe_largest(k: int) -> list[float]:
    """The k largest eigenvalues by SciPy's eigsh (ARPACK) on products in plain autograd, vectors in float64."""
    model = hvpspec.load_checkpoint(crepe.fetch(), crepe.build()).eval()
    parameters = list(model.parameters())
    shapes = [p.shape for p in parameters]
    data = crepe.batches()

    def multiply(vector: np.ndarray) -> np.ndarray:
        flat = torch.from_numpy(vector.reshape(-1)).float()
        pieces = [x.view(s) for x, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        total = torch.zeros_like(flat)
        for frames, targets in data:
            loss = F.binary_cross_entropy(model(frames), targets)
            gradients = torch.autograd.grad(loss, parameters, create_graph=True)
            product = torch.autograd.grad(gradients, parameters, pieces)
            total += len(frames) * torch.cat([x.reshape(-1) for x in product])
        return (total / sum(len(frames) for frames, _ in data)).double().numpy()

    n = sum(s.numel() for s in shapes)
    operator = LinearOperator((n, n), matvec=multiply, dtype=np.float64)
    return sorted(eigsh(operator, k, which="LM", tol=1e-5, return_eigenvectors=False), reverse=True)


if __name__ == "__main__":
    {"demo": measure_demo, "crepe": measure_crepe}[sys.argv[1]]()
