"""Runs the command line on three trained checkpoints and compares its figures with figures obtained another way.

    .venv/bin/python scripts/measure_checkpoints.py demo     about a minute; writes results/demo.md and .json
    .venv/bin/python scripts/measure_checkpoints.py crepe    about ten minutes; writes results/crepe.md and .json
    .venv/bin/python scripts/measure_checkpoints.py minilm   about fifteen minutes; writes results/minilm.md and .json

demo: all 3,466 parameters against the explicit Hessian (rows by autograd on the whole data as one batch).
crepe: CREPE "tiny", 486,552 parameters, 256 tones; the two largest eigenvalues against SciPy's
eigsh on products written out in plain autograd.
minilm: a sentence encoder, 22,713,216 parameters, from its Hugging Face directory: its top eigenvalue against eigsh and
its trace against Hutchinson's estimate, both on plain autograd; then one layer norm, against its explicit Hessian.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import crepe
import minilm
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
    """A row: figure, value, stated error, the value made another way, and where that is an estimate, its own error."""
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
        "| figure | hvpspec | stated error | obtained another way | difference | within |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for figure, value, error, other, *own in rows:
        difference = abs(value - other)
        within = "yes" if difference <= error + sum(own) else "**no**"
        compared = f"{other:.9g}" + (f" ± {own[0]:.1e}" if own else "")
        lines.append(f"| {figure} | {value:.9g} | {error:.1e} | {compared} | {difference:.1e} | {within} |")
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
    report("demo", "The digits classifier, compared with its explicit Hessian", arguments, printed, rows)


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


def measure_minilm() -> None:
    source = ["--data", "scripts/minilm.py:batches", "--loss", "cosine_similarity"]
    folder = str(minilm.fetch().relative_to(ROOT))
    block = "encoder.layer.5.output.LayerNorm.*"
    narrow = ["spectrum", folder, *source, "--parameters", block, "--dtype", "float64", "-k", "3"]
    document, _ = command_line("minilm", *narrow)
    values = np.linalg.eigvalsh(minilm_block(block.rstrip("*")))
    largest = values[np.argsort(-np.abs(values))]
    rows = [
        (f"last layer norm, λ{i}", found["value"], found["error"], largest[i - 1])
        for i, found in enumerate(document["eigenvalues"], start=1)
    ]
    rows.append(("last layer norm, trace", document["trace"]["value"], document["trace"]["error"], values.sum()))

    arguments = ["spectrum", folder, *source, "-k", "1", "--rtol", "0.1", "--max-hvps", "40"]
    arguments += ["--only", "eigenvalues", "--only", "trace"]
    document, printed = command_line("minilm", *arguments)
    first, trace = document["eigenvalues"][0], document["trace"]
    top, estimate, error = minilm_figures(probes=12)
    rows.append(("all parameters, λ1", first["value"], first["error"], top))
    rows.append(("all parameters, trace", trace["value"], trace["error"], estimate, error))
    title = "all-MiniLM-L6-v2, a published sentence encoder, 16 pairs of sentences"
    report("minilm", title, arguments, printed, rows)


def minilm_losses(model: torch.nn.Module):
    """For each batch, its share in the whole and its loss: the cosine of mean hidden states, squared error."""
    data = minilm.batches()
    pairs = sum(len(targets) for *_, targets in data)
    for first, second, targets in data:
        means = []
        for side in (first, second):
            hidden = model(**side).last_hidden_state
            means.append(
                torch.stack([h[m.bool()].mean(0) for h, m in zip(hidden, side["attention_mask"], strict=True)])
            )
        a, b = (mean / mean.norm(dim=1, keepdim=True) for mean in means)
        yield len(targets) / pairs, ((a * b).sum(1) - targets.to(a.dtype)).square().mean()


def minilm_model() -> torch.nn.Module:
    """By transformers' own loading, with its plain attention."""
    from transformers import BertModel

    return BertModel.from_pretrained(minilm.fetch(), attn_implementation="eager").eval()


def minilm_block(prefix: str) -> np.ndarray:
    """The explicit Hessian, in float64, over the parameters whose names start with `prefix`."""
    model = minilm_model().double().requires_grad_(False)
    parameters = [p.requires_grad_() for name, p in model.named_parameters() if name.startswith(prefix)]
    loss = sum(share * value for share, value in minilm_losses(model))
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(entry, parameters, retain_graph=True)])
        for entry in gradient
    ]
    H = torch.stack(rows).numpy()
    return (H + H.T) / 2


def minilm_figures(probes: int) -> tuple[float, float, float]:
    """The eigenvalue of largest magnitude by SciPy's eigsh, and the trace by Hutchinson's probes ± 1.96 deviations."""
    model = minilm_model()
    parameters = [p for name, p in model.named_parameters() if not name.startswith("pooler")]  # which nothing uses
    shapes = [p.shape for p in parameters]
    n = sum(shape.numel() for shape in shapes)

    def multiply(flat: torch.Tensor) -> torch.Tensor:
        pieces = [x.view(s) for x, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        total = torch.zeros(n)
        for share, loss in minilm_losses(model):
            gradients = torch.autograd.grad(loss, parameters, create_graph=True)
            product = torch.autograd.grad(gradients, parameters, pieces)
            total += share * torch.cat([x.reshape(-1) for x in product])
        return total

    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(probes):
        probe = torch.randint(0, 2, (n,), generator=generator).float() * 2 - 1
        samples.append(float(probe.double() @ multiply(probe).double()))
    operator = LinearOperator((n, n), lambda v: multiply(torch.from_numpy(v.reshape(-1))).numpy(), dtype=np.float32)
    (top,) = eigsh(operator, 1, which="LM", tol=1e-3, ncv=12, return_eigenvectors=False)
    return float(top), float(np.mean(samples)), float(1.96 * np.std(samples, ddof=1) / probes**0.5)


if __name__ == "__main__":
    measurements = {"demo": measure_demo, "crepe": measure_crepe, "minilm": measure_minilm}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", choices=measurements)
    measurements[parser.parse_args().checkpoint]()
