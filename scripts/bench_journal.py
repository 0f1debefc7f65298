"""What a journal costs: a spectrum of a network with five million parameters, with and without one, and a resumed one.

    .venv/bin/python scripts/bench_journal.py        a few minutes; writes results/journal.md

Seconds are those of the processor, so that other work on the machine does not count. Each figure is the smallest of the
runs, which take turns.
"""

from __future__ import annotations

import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from usage import only_help

import hvpspec
from hvpspec.krylov.log import journal
from hvpspec.krylov.log.records import Answer
from hvpspec.results.spectrum import Spectrum

ROOT = Path(__file__).parent.parent
WIDTHS = (784, 1800, 1800, 200, 10)
SAMPLES, BATCH = 1024, 256
TURNS = 2
OPTIONS = {"k": 3, "rtol": 0.1, "max_hvps": 14}
STOPPED_AFTER = 7


class Stopped(BaseException):
    """Ends a run, as a kill would."""


def operator(device: str = "cpu") -> hvpspec.HessianOperator:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inside, outside in pairwise(WIDTHS):
        layers += [nn.Linear(inside, outside), nn.Tanh()]
    x = torch.randn(SAMPLES, WIDTHS[0])
    y = x[:, : WIDTHS[-1]].argmax(1)
    data = list(zip(x.to(device).split(BATCH), y.to(device).split(BATCH), strict=True))
    return hvpspec.HessianOperator(nn.Sequential(*layers[:-1]).to(device), "cross_entropy", data, engine="autograd")


def measured(folder: Path | None, stop: int = 1000) -> tuple[float, Spectrum | None, int]:
    """Seconds of a run, what it found, and how large its journal was in the end."""
    H = operator()
    multiply, size = H.multiply_by_folds, 0

    def counting(columns: Tensor, folds: int, receive: object) -> Tensor:
        nonlocal size
        if H.hvps + columns.shape[1] > stop:
            raise Stopped
        size = 0 if folder is None or not folder.exists() else sum(path.stat().st_size for path in folder.iterdir())
        return multiply(columns, folds, receive)

    H.multiply_by_folds = counting  # type: ignore[method-assign]
    start = time.process_time()
    try:
        found: Spectrum | None = hvpspec.spectrum(H, journal=folder, **OPTIONS)
    except Stopped:
        found = None
    return time.process_time() - start, found, size


def same(a: Spectrum, b: Spectrum) -> bool:
    """Whether all figures are equal to the last bit."""
    pairs = ((a.eigenpairs, b.eigenpairs),)
    equal = all(
        np.array_equal(x.values, y.values) and np.array_equal(x.vectors, y.vectors) for x, y in pairs if x and y
    )
    return equal and {**a.to_dict(), "seconds": 0} == {**b.to_dict(), "seconds": 0}


def inside() -> float:
    """Seconds that the journal itself takes for one product: its checksums and its write."""
    n = operator().shape[0]
    X, product = torch.randn(n, 1), torch.randn(n, 1)
    with tempfile.TemporaryDirectory() as name, journal.Journal(Path(name) / "run", {}) as log:
        log.bind(hvpspec.krylov.operator_view.as_symmetric(torch.eye(2)))
        seconds = []
        for _ in range(10):
            start = time.process_time()
            log.answer("product", X, lambda: Answer([product]))
            seconds.append(time.process_time() - start)
        log.finish()
    return min(seconds)


def main() -> None:
    n, each = operator().shape[0], inside()
    without, kept, largest = [], [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "journal"
        for _ in range(TURNS):
            seconds, expected, _ = measured(None)
            without.append(seconds)
            seconds, found, size = measured(folder)
            kept.append(seconds)
            largest = max(largest, size)
            assert found is not None
            assert expected is not None
            assert same(found, expected)
        measured(folder, STOPPED_AFTER)
        seconds, resumed, _ = measured(folder)
        assert resumed is not None
        assert expected is not None
        equal = same(resumed, expected)
    made = expected.hvps
    share = each * made / min(without)
    lines = [
        "# What a journal costs",
        "",
        f"Made by `python scripts/bench_journal.py`; torch {torch.__version__.split('+')[0]}, "
        f"{torch.get_num_threads()} threads. A network with {n:,} parameters and {SAMPLES:,} samples, float32, "
        f"{made} products in all. Processor seconds, of the smallest of {TURNS} runs each, in "
        "turns.",
        "",
        "| run | seconds |",
        "| --- | ---: |",
        f"| without a journal | {min(without):.1f} |",
        f"| with a journal | {min(kept):.1f} ({min(kept) / min(without) - 1:+.1%}) |",
        f"| checksums and write of one product, alone | {each:.3f} ({share:.1%} of the run, for all of them) |",
        f"| resumed, with {STOPPED_AFTER} products in the journal | {seconds:.1f} |",
        "",
        f"The journal took {largest / 2**20:.0f} MiB. With it, the figures are those of the run without one to "
        f"the last bit; those of the resumed run are {'too' if equal else 'NOT'}.",
    ]
    (ROOT / "results" / "journal.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    only_help(__doc__)
    main()
